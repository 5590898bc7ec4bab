"""Fine-tuning runs of a study: where the data of a task are, and the scores of a finished run."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from roberta_jax.dotted_keys import flatten
from roberta_jax.errors import UsageError
from roberta_jax.tasks.loading import available_splits
from roberta_jax.tasks.table import TASKS
from roberta_jax.tasks.task import Task

RESULTS = "results.json"  # in a workdir
SCORE = "score"  # the metric that selects the best checkpoint, on the validation examples
MAJORITY = "majority"  # the same metric of always giving the commonest answer
DATA = "{data}"  # in the value of a setting: the folder that --data names

_NEEDED = {"train", "validation"}


def find_data(task: str, folder: str) -> str | None:
    """The folder with the official files of a task, for `data.folder`.

    Args:
      task: a key of `TASKS`.
      folder: where to look: it has a folder for each task with the name that `Task.files` has, as
        "RTE", or with the task's name, as "dream"; or its subfolders have such folders.

    Returns:
      The first folder that has training and validation examples; None if there is none.
    """
    row = TASKS[task]
    qualified = {  # "train.tsv" alone may be of any task
        split: tuple(each for each in names if "/" in each or each.lower().startswith(task))
        for split, names in row.files.items()
    }
    root = pathlib.Path(folder).expanduser()
    children = _folders(root)
    for candidate in (root, *children):
        if _has(row, candidate, qualified):
            return str(candidate)
    for candidate in (root, *children, *(each for child in children for each in _folders(child))):
        if candidate.name.lower() == task and set(available_splits(row, candidate)) >= _NEEDED:
            return str(candidate)
    return None


def with_data(changes: Mapping[str, Any], base: ConfigDict, folder: str) -> dict[str, Any]:
    """The changes of a setting, with the place of its examples below a folder.

    Args:
      changes: the changes. DATA in their values is replaced by the folder. If they and `base` name
        no examples, `data.folder` is added.
      base: the config that they change.
      folder: see `find_data`.

    Raises:
      UsageError: the examples are not there.
    """
    changes = {
        key: value.replace(DATA, folder) if isinstance(value, str) else value
        for key, value in changes.items()
    }
    if any(changes.get(f"data.{key}", base.data[key]) for key in ("folder", "train")):
        return changes
    task = changes.get("task", base.task)
    found = find_data(task, folder)
    if found is None:
        raise UsageError(
            f"--data={folder} has no training and validation examples of {TASKS[task].title}. It "
            f"needs {TASKS[task].download}, in a folder of the task's name."
        )
    return {**changes, "data.folder": found}


def check_has_data(config: ConfigDict) -> None:
    """Checks that no value of a config still stands for the folder of --data.

    Raises:
      UsageError: one does.
    """
    for key, value in flatten(config).items():
        if isinstance(value, str) and DATA in value:
            raise UsageError(
                f"its {key} is {value}, and no --data=FOLDER was given. Give the folder, or "
                f"--set={key}=... where the study does not set it itself."
            )


def read_scores(workdir: epath.Path) -> dict[str, float]:
    """The scores of a fine-tuning run in per cent, and those of the majority baseline.

    Returns:
      "SPLIT.METRIC" for each split with labels, SCORE and MAJORITY. Errors, such as a mean squared
      error, have their own unit. It is empty for a run that has written no results.

    Raises:
      UsageError: the file is damaged.
    """
    path = epath.Path(workdir) / RESULTS
    if not path.exists():
        return {}
    try:
        results = json.loads(path.read_text())
        selecting, kind = results["metrics"][0], results["kind"]
        scores = {}
        for split, found in results["splits"].items():
            for name, value in found["scores"].items():
                scores[f"{split}.{name}"] = per_cent(value, name, kind)
        scores[SCORE] = scores[f"validation.{selecting}"]
        baseline = results["splits"]["validation"]["baseline"] or {}
        if selecting in baseline:
            scores[MAJORITY] = per_cent(baseline[selecting], selecting, kind)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise UsageError(
            f"{path} is damaged ({error}). Delete the folder to run the point again."
        ) from None
    return scores


def per_cent(value: float | None, name: str, kind: str) -> float:
    """A score of results.json in per cent, as papers give it.

    Args:
      value: the score; None stands for one that is not finite.
      name: the metric.
      kind: the kind of the task. Those of questions are per cent already.
    """
    if value is None:
        return math.nan
    if kind == "question_answering" or name.endswith("_error"):
        return float(value)
    return 100.0 * value


def _has(row: Task, folder: pathlib.Path, files: Mapping[str, tuple[str, ...]]) -> bool:
    return set(available_splits(dataclasses.replace(row, files=files), folder)) >= _NEEDED


def _folders(folder: pathlib.Path) -> list[pathlib.Path]:
    try:
        return sorted(each for each in folder.iterdir() if each.is_dir())
    except OSError:
        return []
