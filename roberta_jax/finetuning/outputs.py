"""The files that a run leaves in its workdir: results, predictions, reports and submissions."""

import json
import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from roberta_jax.finetuning import figures
from roberta_jax.finetuning.class_report import class_numbers, class_report, has_entities
from roberta_jax.finetuning.results import (
    SplitResult,
    baseline_name,
    gold,
    labelled,
    with_intervals,
)
from roberta_jax.finetuning.submission import submission_file
from roberta_jax.finetuning.tables import (
    INTERVALS,
    escaped,
    fenced,
    one_line,
    score_table,
    shown,
    summary_line,
    title,
)
from roberta_jax.storage import atomic
from roberta_jax.tasks.task import Task

__all__ = ["SplitResult", "baseline_name", "summary_line", "with_intervals", "write_outputs"]

# Keys of `about` that have a place of their own in results.md and in the model card.
COMMAND, STARTED_FROM = "command", "init_from"
_MOST_POINTS = 20_000  # of a scatter plot


def write_outputs(
    folder: epath.Path,
    task: Task,
    labels: Sequence[str],
    results: Sequence[SplitResult],
    about: Mapping[str, Any],
    extra_files: Mapping[str, Any] | None = None,
) -> list[str]:
    """Writes what a run found into its workdir.

    - `predictions/SPLIT.jsonl`: a prediction per line, with scores;
    - `submission/NAME`: the file for the task's server, for the splits in `Task.submission`;
    - `report_SPLIT.txt`: precision, recall and F1 of each label or type of entity;
    - `confusion_SPLIT.png`: the confusion matrix of up to 50 labels; `scatter_SPLIT.png` for
      numbers. Both need Matplotlib; without it, results.md says how to get it;
    - `results.md`: the scores as a row like those of the paper's tables, and the command;
    - `results.json`: all of it for programs. It is written last, so that the other files are there
      if it is.

    Each file is written as a whole and replaces an older one. A number that is not finite is null
    in JSON.

    Args:
      folder: the workdir, local or on an object store.
      task: the task.
      labels: the names of the labels, in the order of their ids.
      results: one for each split.
      about: facts about the run, such as its seed and versions: names -> JSON values. `command` and
        `init_from` (the model that it started from) have their own places in results.md.
      extra_files: name -> JSON value, or text, from `Kind.files`. Names are relative to `folder`.

    Returns:
      The names of the files, relative to `folder`.

    Raises:
      UsageError: a submission cannot be written, or the package of a metric is not installed.
    """
    if len({each.split for each in results}) < len(results):
        raise ValueError(f"a split has two results: {[each.split for each in results]}")
    results = [with_intervals(task, labels, each) for each in results]
    files: dict[str, bytes] = {}
    for result in results:
        files |= _split_files(task, labels, result)
    for name, value in (extra_files or {}).items():
        text = value if isinstance(value, str) else _json(value) + "\n"
        files[_relative(name)] = _encoded(text)
    needs_picture = any(_can_be_drawn(task, labels, each) for each in results)
    missing = needs_picture and not figures.can_draw()
    if missing:
        logging.info("No picture of the predictions: it needs %s", figures.MATPLOTLIB)
    files["results.md"] = _encoded(_markdown(task, results, about, missing))
    files["results.json"] = _encoded(_json(_summary(task, labels, results, about), indent=2) + "\n")
    for name, data in files.items():
        path = epath.Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(path, data)
    return list(files)


def _split_files(task: Task, labels: Sequence[str], result: SplitResult) -> dict[str, bytes]:
    """Name -> contents, for one split."""
    split = re.sub(r"[^\w.-]", "_", result.split)
    lines = [_json(each) + "\n" for each in result.predictions]
    files = {f"predictions/{split}.jsonl": _encoded("".join(lines))}
    if submission := submission_file(task, result):
        files[f"submission/{submission[0]}"] = _encoded(submission[1])
    if report := class_report(task, labels, result):
        files[f"report_{split}.txt"] = _encoded(report)
    if _can_be_drawn(task, labels, result) and figures.can_draw():
        name = "scatter" if task.kind == "regression" else "confusion"
        files[f"{name}_{split}.png"] = _picture(task, labels, result)
    return files


def _can_be_drawn(task: Task, labels: Sequence[str], result: SplitResult) -> bool:
    pairs = labelled(task, result)
    if not pairs or task.kind in ("multi_label", "choice", "question_answering"):
        return False
    if task.kind == "tokens" and has_entities(pairs):
        return False
    return task.kind == "regression" or len(labels) <= figures.MOST_CLASSES


def _picture(task: Task, labels: Sequence[str], result: SplitResult) -> bytes:
    pairs = labelled(task, result)
    heading = f"{task.title}, {result.split}"
    if task.kind == "regression":
        wanted, predicted = zip(*pairs[:_MOST_POINTS], strict=True)
        scores = [f"{title(task, n)} {shown(task, n, v)}" for n, v in result.scores.items()]
        heading = ": ".join([heading, *([", ".join(scores)] if scores else [])])
        return figures.png(figures.scatter(wanted, predicted, heading))
    names, counts = class_numbers(task, pairs, labels)
    heading += f": {np.trace(counts):,} of {counts.sum():,} correct"
    return figures.png(figures.confusion_matrix(names, counts, heading))


def _summary(
    task: Task, labels: Sequence[str], results: Sequence[SplitResult], about: Mapping[str, Any]
) -> dict[str, Any]:
    """The contents of results.json."""
    splits = {}
    for result in results:
        known = [each for each in result.examples if gold(task, each) is not None]
        splits[result.split] = {
            "examples": len(result.examples),
            "labelled": len(known),
            "scores": dict(result.scores),
            "intervals": {name: list(ends) for name, ends in (result.intervals or {}).items()},
            "baseline": None if result.baseline is None else dict(result.baseline),
            "baseline_name": result.baseline_name,
            "loss": result.loss,
        }
        if task.kind == "classification":
            counts = Counter(each.label for each in known)
            splits[result.split]["label_counts"] = {name: counts[name] for name in labels}
    return {
        "task": task.name,
        "title": task.title,
        "kind": task.kind,
        "labels": list(labels),
        "metrics": list(task.metrics),
        "splits": splits,
        "about": dict(about),
    }


def _markdown(
    task: Task, results: Sequence[SplitResult], about: Mapping[str, Any], no_pictures: bool
) -> str:
    """The contents of results.md."""
    parts = [f"# {escaped(task.title)}", score_table(task, results)]
    if any(each.intervals for each in results):
        parts.append(INTERVALS)
    lines = [f"- {escaped(each.split)}: {escaped(summary_line(task, each))}." for each in results]
    parts.append("\n".join(lines))
    parts += about_lines(about)
    if no_pictures:
        parts.append(f"No picture of the predictions was drawn: it needs {figures.MATPLOTLIB}")
    return "\n\n".join(parts) + "\n"


def about_lines(about: Mapping[str, Any]) -> list[str]:
    """The facts about a run as paragraphs of Markdown: a list, and the command."""
    parts = []
    others = {name: value for name, value in about.items() if name != COMMAND and value is not None}
    if others:
        lines = [
            f"- {escaped(name.replace('_', ' '))}: {escaped(_fact(value))}"
            for name, value in others.items()
        ]
        parts.append("\n".join(lines))
    if about.get(COMMAND):
        parts.append(fenced(str(about[COMMAND])))
    return parts


def _fact(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_fact(each)}" for name, each in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_fact, value))
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    return str(value)


def _relative(name: str) -> str:
    if name.startswith("/") or ".." in name.split("/") or one_line(name) != name:
        raise ValueError(f"{name!r} is not the name of a file in the workdir")
    return name


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, indent=indent)


def _encoded(text: str) -> bytes:
    # Half of a surrogate pair, which UTF-8 cannot hold, is written as its JSON escape.
    return text.encode("utf-8", "backslashreplace")


def _plain(value: Any) -> Any:
    """The value as one that JSON can hold; None for numbers that are not finite."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, set | frozenset):
        return sorted(map(_plain, value))
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)
