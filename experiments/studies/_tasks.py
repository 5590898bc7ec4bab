"""Base configs and settings that the studies of fine-tuning share."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from configs.finetune import get_config
from experiments.study import changed_config
from roberta_jax.dotted_keys import flatten
from roberta_jax.tasks.table import TASKS

FILE = "experiments/studies/_tasks.py"

TINY = (
    "This form of the study shows that the settings run and what the report looks like. Its scores "
    "say nothing about the paper's."
)


def config(task: str, changes: Mapping[str, Any] | None = None) -> ConfigDict:
    """Returns the locked config of a task, with some values changed."""
    return changed_config(get_config(task), changes or {}, FILE)


def of_task(task: str, base: ConfigDict) -> dict[str, Any]:
    """Returns the changes that turn the recipe of the base config's task into that of this one."""
    recipe, other = flatten(get_config(task)), flatten(get_config(base.task))
    return {key: value for key, value in recipe.items() if value != other[key]}


def sweep(
    names: Sequence[str],
    base: ConfigDict,
    rates: Sequence[float] = (),
    batch_sizes: Sequence[int] = (),
) -> dict[str, dict[str, Any]]:
    """Returns the settings of a sweep: each task with each learning rate and batch size.

    Args:
      names: the tasks.
      base: the config of the first one.
      rates: the learning rates; () for that of each task's recipe.
      batch_sizes: the examples per batch; () for those of the recipe.
    """
    settings = {}
    changed = {key for key, value in flatten(base).items() if value != _recipe(base)[key]}
    for name in names:
        own = {key: value for key, value in of_task(name, base).items() if key not in changed}
        if not (rates or batch_sizes):
            settings[TASKS[name].title] = own
        for rate, size in itertools.product(rates, batch_sizes):
            settings[f"{TASKS[name].title}, rate {rate:g}, batch {size}"] = {
                **own,
                "optimizer.learning_rate": rate,
                "train.batch_size": size,
            }
    return settings


def _recipe(base: ConfigDict) -> dict[str, Any]:
    return flatten(get_config(base.task))
