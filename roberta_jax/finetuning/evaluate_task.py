"""Evaluates a fine-tuned model on a split of its task, or on a file of labelled examples."""

import json
import os
import shlex
import sys
from typing import Any

from etils import epath

from roberta_jax.errors import UsageError
from roberta_jax.finetuning.finished import FinishedModel, open_finished
from roberta_jax.finetuning.outputs import write_outputs
from roberta_jax.finetuning.results import SplitResult, baseline_name, with_intervals
from roberta_jax.finetuning.spec import validation_share
from roberta_jax.tasks import loading
from roberta_jax.tasks.examples import Example
from roberta_jax.tasks.validation_split import split_validation


def evaluate_task(
    path: str | os.PathLike,
    split: str = "validation",
    *,
    task: str | None = None,
    folder: str | None = None,
    file: str | None = None,
    output: str | None = None,
) -> tuple[FinishedModel, SplitResult]:
    """Predicts and scores all examples of a split.

    Args:
      path: see `finished.open_finished`.
      split: "train", "validation", "test" or another split of the task.
      task: the name of the task, for a model that is not a workdir's.
      folder: the folder of the task's official files. None takes that of the run, or else TFDS.
      file: a file of the same form in place of the split's own.
      output: a folder that results, predictions and reports are written to; None writes nothing.

    Returns:
      (the model, the result with intervals).

    Raises:
      UsageError: the model, the split or a file is missing or wrong.
    """
    finished = open_finished(path, task)
    examples = _examples(finished, split, folder or finished.folder, file)
    evaluated = finished.evaluate(split if file is None else file, examples)
    kind = finished.kind
    majority = kind.majority(examples, examples)
    result = with_intervals(
        finished.task,
        kind.labels,
        SplitResult(
            split=split,
            examples=examples,
            predictions=evaluated.predictions,
            scores=evaluated.scores,
            baseline=(majority and kind.scores(examples, majority)) or None,
            loss=evaluated.loss,
            baseline_name=baseline_name(finished.task, majority),
        ),
    )
    if output is not None:
        about = {
            "model": finished.path,
            "command": shlex.join(["python", "-m", "roberta_jax.evaluate", *sys.argv[1:]]),
        }
        target = epath.Path(output)
        target.mkdir(parents=True, exist_ok=True)
        files = {f"predictions/{k}": v for k, v in kind.files(evaluated.predictions).items()}
        write_outputs(target, finished.task, kind.labels, [result], about, files)
    return finished, result


def _examples(
    finished: FinishedModel, split: str, folder: str | None, file: str | None
) -> list[Example]:
    task, config = finished.task, _data_config(finished.path)
    is_of_user = task.source == "the user's own files"
    if task.reader is None:
        raise UsageError(
            f"{finished.path} does not say what task it was fine-tuned on. Give it with --task, "
            "such as --task=mnli, and its files with --folder or --file."
        )
    if not is_of_user:
        return loading.load_split(
            task, split, folder=folder, file=file, tfds_data_dir=config.get("tfds_data_dir")
        )
    if file is not None:
        return loading.load_split(task, split, folder=None, file=file)
    if not config.get("train"):
        raise UsageError(f"{finished.path} does not say where its examples are: give --file.")
    share = validation_share(config.get("validation"))
    if share is not None and split in ("train", "validation"):
        train = loading.load_split(task, "train", folder=None, file=config["train"])
        return split_validation(train, share)[split == "validation"]
    if config.get(split) is None:
        raise UsageError(f"{finished.path} has no file of the split {split!r}: give --file.")
    return loading.load_split(task, split, folder=None, file=config[split])


def _data_config(path: str) -> dict[str, Any]:
    """`data` of the run's config; {} where there is none."""
    try:
        return json.loads((epath.Path(path) / "config.json").read_text())["data"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
