"""Evaluates a fine-tuned model on a split of its task, or on a file of labelled examples."""

import os
import shlex
import sys

from etils import epath

from roberta_jax.errors import UsageError
from roberta_jax.finetuning.finished import FinishedModel, read_finished
from roberta_jax.finetuning.outputs import write_outputs
from roberta_jax.finetuning.results import SplitResult
from roberta_jax.finetuning.splits import VALIDATION, Sources, recorded_sources
from roberta_jax.tasks import loading
from roberta_jax.tasks.examples import Example


def evaluate_task(
    path: str | os.PathLike,
    split: str = "validation",
    *,
    task: str | None = None,
    folder: str | None = None,
    file: str | None = None,
    output: str | None = None,
    dtype: str | None = None,
) -> tuple[FinishedModel, SplitResult]:
    """Predicts and scores all examples of a split.

    Args:
      path: see `finished.open_finished`.
      split: "train", "validation", "test" or another split of the task.
      task: the name of the task, for a model that is not a workdir's.
      folder: the folder of the task's official files. None takes what the run was trained on, or
        else TFDS.
      file: a file of the same form in place of the split's own.
      output: a folder that results, predictions and reports are written to; None writes nothing.
      dtype: of activations and matrix products, "float32" or "bfloat16". None takes that of the
        run, or float32 for a model that is not a workdir's.

    Returns:
      (the model, the result with intervals).

    Raises:
      UsageError: the model, the split or a file is missing or wrong.
    """
    trained_for = read_finished(path, task)
    finished = trained_for.load(execution=trained_for.execution(dtype))
    examples = _examples(finished, split, folder, file)
    name = split if file is None else os.path.basename(file)
    evaluated = finished.evaluate(name, examples, is_validation=split == VALIDATION and not file)
    kind = finished.kind
    baseline = finished.baseline
    if baseline is None:  # of a model whose training examples are not known
        baseline = kind.baseline(examples)
    result = evaluated.result(kind, name, examples, baseline)
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
    if finished.task.reader is None:
        raise UsageError(
            f"{finished.path} does not say what task it was fine-tuned on. Give it with --task, "
            "such as --task=mnli, and its files with --folder or --file."
        )
    sources = recorded_sources(finished.path)
    if file is not None:
        return loading.load_split(finished.task, split, folder=folder, file=file)
    if folder is not None or sources is None:
        sources = Sources(folder=folder)
    return sources.load(finished.task, split)
