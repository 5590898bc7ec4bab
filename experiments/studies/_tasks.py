"""Base configs and settings that the studies of fine-tuning share."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs.finetune import get_config
from experiments.study import changed_config
from roberta_jax.dotted_keys import flatten

FILE = "experiments/studies/_tasks.py"


def config(task: str, changes: Mapping[str, Any] | None = None) -> ConfigDict:
    """Returns the locked config of a task, with some values changed."""
    return changed_config(get_config(task), changes or {}, FILE)


def of_task(task: str, base: ConfigDict) -> dict[str, Any]:
    """Returns the changes that turn the config of another task into that of this one.

    Values that `base` itself has changed, such as the number of steps, stay as they are.
    """
    recipe, other = flatten(get_config(task)), flatten(get_config(base.task))
    return {key: value for key, value in recipe.items() if value != other[key]}
