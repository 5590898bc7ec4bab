"""Precision, recall and F1 of each label or type of entity, as plain text."""

import importlib.util
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from roberta_jax.errors import counted, shortened
from roberta_jax.finetuning.results import SplitResult, gold, labelled
from roberta_jax.finetuning.tables import one_line, shown, title
from roberta_jax.tasks import entities, metric_scores
from roberta_jax.tasks.task import Task

_HEADINGS = ["precision", "recall", "F1", "support", "predicted"]
_MOST_MISTAKES = 10


def class_report(task: Task, labels: Sequence[str], result: SplitResult) -> str | None:
    """The report of a split; None where nothing is labelled, and for questions.

    It has the scores, and by the kind of task:

    - a row per label (or number of a choice, or type of entity) with precision, recall and F1 times
      100, the number of examples that have it, and the number that it was predicted for;
    - the commonest mistakes;
    - for several labels with scores, the average precision of each, and the mean;
    - for numbers, their distribution and the largest errors.
    """
    pairs = labelled(task, result)
    if not pairs or task.kind == "question_answering":
        return None
    heading = f"{task.title}, {result.split}: {counted(len(pairs), 'example')} with labels"
    scores = [f"{title(task, n)}: {shown(task, n, v)}" for n, v in result.scores.items()]
    if task.kind == "regression":
        body = _numbers(task, result)
    elif task.kind == "multi_label":
        body = _several(task, pairs, labels, result)
    elif task.kind == "tokens" and has_entities(pairs):
        body = _entities(pairs)
    else:
        body = _classes(*class_numbers(task, pairs, labels))
    parts = [one_line(heading), "\n".join(scores), *body]
    return "\n\n".join(part for part in parts if part) + "\n"


def has_entities(pairs: Sequence[tuple[Any, Any]]) -> bool:
    """Whether the tags are those of entities (`B-PER`), and not parts of speech, for example."""
    return any(tag[1:2] == "-" for tags, _ in pairs for tag in tags)


def class_numbers(
    task: Task, pairs: Sequence[tuple[Any, Any]], labels: Sequence[str]
) -> tuple[list[str], np.ndarray]:
    """How often each class was predicted for each.

    Args:
      task: the task.
      pairs: (gold, prediction) of the examples.
      labels: the names of the labels in the order of their ids.

    Returns:
      The names of the classes, which are tags for `tokens` and numbers of choices for `choice`; and
      counts, int64 [gold, predicted].
    """
    if task.kind == "tokens":
        pairs = [pair for tags in pairs for pair in zip(*tags, strict=True)]
    if task.kind == "choice":
        labels = [
            f"choice {n + 1}" for n in range(1 + max((max(pair) for pair in pairs), default=0))
        ]
        pairs = [(labels[a], labels[b]) for a, b in pairs]
    pairs = [(str(a), str(b)) for a, b in pairs]
    others = {name for pair in pairs for name in pair} - set(labels)
    names = [*labels, *sorted(others)]
    number = {name: index for index, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), np.int64)
    for (a, b), count in Counter(pairs).items():
        counts[number[a], number[b]] = count
    return names, counts


def _classes(names: Sequence[str], counts: np.ndarray) -> list[str]:
    correct, support, predicted = np.diag(counts), counts.sum(1), counts.sum(0)
    rows = [_row(*each) for each in zip(names, correct, predicted, support, strict=True)]
    mistakes = [(counts[a, b], names[a], names[b]) for a, b in np.argwhere(counts) if a != b]
    mistakes.sort(key=lambda each: -each[0])
    return [_table("label", rows), _mistakes(mistakes)]


def _several(
    task: Task,
    pairs: Sequence[tuple[Any, Any]],
    labels: Sequence[str],
    result: SplitResult,
) -> list[str]:
    wanted, proposed = (metric_scores.indicators(side, labels) for side in zip(*pairs, strict=True))
    both = (wanted * proposed).sum(0)
    rows = [_row(*each) for each in zip(labels, both, proposed.sum(0), wanted.sum(0), strict=True)]
    given, found = wanted.sum() / len(pairs), proposed.sum() / len(pairs)
    lines = [f"labels per example: {given:.2f}, predicted: {found:.2f}"]
    headings = _HEADINGS
    if precisions := _average_precisions(task, labels, result, wanted):
        headings = [*_HEADINGS, "AP"]
        for name, row in zip(labels, rows, strict=True):
            row.append(f"{100 * precisions[name]:.1f}" if name in precisions else "")
        mean = sum(precisions.values()) / len(precisions)
        lines.append(
            f"mean average precision (AP, of the ranking by score): {100 * mean:.1f}, over "
            f"{counted(len(precisions), 'label')} that examples have"
        )
    return [_table("label", rows, headings), "\n".join(lines)]


def _average_precisions(
    task: Task, labels: Sequence[str], result: SplitResult, wanted: np.ndarray
) -> dict[str, float]:
    """Label -> its average precision, for the labels that an example has.

    {} where the predictions have no scores, or scikit-learn is not installed.
    """
    scores = [
        prediction.get("scores")
        for example, prediction in zip(result.examples, result.predictions, strict=True)
        if gold(task, example) is not None
    ]
    if not all(scores) or importlib.util.find_spec("sklearn") is None:
        return {}
    from sklearn.metrics import average_precision_score

    ranked = np.array([[each[name] for name in labels] for each in scores], np.float64)
    if not np.isfinite(ranked).all():
        return {}
    return {
        name: float(average_precision_score(wanted[:, number], ranked[:, number]))
        for number, name in enumerate(labels)
        if wanted[:, number].any()
    }


def _entities(pairs: Sequence[tuple[Any, Any]]) -> list[str]:
    counts = entities.counts_by_type(*zip(*pairs, strict=True))
    total = sum(counts.values(), entities.Counts())
    rows = [
        _row(name, each.correct, each.predicted, each.gold)
        for name, each in [*counts.items(), ("all types", total)]
    ]
    return [_table("entity", rows)]


def _numbers(task: Task, result: SplitResult) -> list[str]:
    known = [
        (example, prediction["prediction"])
        for example, prediction in zip(result.examples, result.predictions, strict=True)
        if example.label is not None
    ]
    wanted = np.array([example.label for example, _ in known], np.float64)
    predicted = np.array([value for _, value in known], np.float64)
    lines = [
        f"{name:<12}mean {values.mean():9.4g}   deviation {values.std():9.4g}   "
        f"from {values.min():9.4g} to {values.max():9.4g}"
        for name, values in (("labels", wanted), ("predictions", predicted))
    ]
    errors = np.nan_to_num(np.abs(wanted - predicted), nan=np.inf)
    largest = [
        f"  {wanted[i]:9.4g} was predicted as {predicted[i]:9.4g}: {_name(known[i][0].id)}"
        for i in np.argsort(-errors, kind="stable")[:_MOST_MISTAKES]
        if errors[i] > 0
    ]
    parts = ["\n".join(lines)]
    return [*parts, "\n".join(["the largest errors:", *largest])] if largest else parts


def _row(name: str, correct: int, predicted: int, support: int) -> list[str]:
    counts = entities.Counts(int(correct), int(predicted), int(support))
    shares = (counts.precision, counts.recall, counts.f1)
    return [name, *(f"{100 * share:.1f}" for share in shares), f"{support:,}", f"{predicted:,}"]


def _table(heading: str, rows: Sequence[Sequence[str]], headings: Sequence[str] = _HEADINGS) -> str:
    lines = [[heading, *headings], *([_name(row[0]), *row[1:]] for row in rows)]
    width = max(len(line[0]) for line in lines)
    return "\n".join(
        f"{first:<{width}}" + "".join(f"{cell:>11}" for cell in rest) for first, *rest in lines
    )


def _mistakes(mistakes: Sequence[tuple[int, str, str]]) -> str:
    if not mistakes:
        return ""
    lines = [
        f"  {count:,} x {_name(wanted)} was predicted as {_name(predicted)}"
        for count, wanted, predicted in mistakes[:_MOST_MISTAKES]
    ]
    return "\n".join(["the commonest mistakes:", *lines])


def _name(text: str) -> str:
    return shortened(one_line(text), 40)
