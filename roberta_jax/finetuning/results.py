"""What a run found on a split, and the intervals of its scores."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from roberta_jax.errors import shortened
from roberta_jax.tasks import metrics
from roberta_jax.tasks.examples import Example
from roberta_jax.tasks.kinds.base import Prediction
from roberta_jax.tasks.task import Task

Intervals = Mapping[str, tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class SplitResult:
    """Predictions and scores of a split.

    Attributes:
      split: its name, such as "validation".
      examples: its examples.
      predictions: the prediction for each example, from `Kind.predictions`.
      scores: from `Kind.scores`; {} where no example has a label.
      baseline: the scores of `Kind.majority`; None where there is no such baseline.
      loss: the mean loss over the examples with labels; None where it was not computed.
      baseline_name: what the baseline predicts; see `baseline_name`.
      intervals: metric -> (low, high), from `with_intervals`; None if not computed yet.
    """

    split: str
    examples: Sequence[Example]
    predictions: Sequence[Prediction]
    scores: Mapping[str, float]
    baseline: Mapping[str, float] | None = None
    loss: float | None = None
    baseline_name: str = "the majority baseline"
    intervals: Intervals | None = None

    def __post_init__(self):
        if len(self.examples) != len(self.predictions):
            raise ValueError(
                f"the split {self.split} has {len(self.examples)} examples and "
                f"{len(self.predictions)} predictions"
            )
        for example, prediction in zip(self.examples, self.predictions, strict=True):
            if example.id != prediction["id"]:
                raise ValueError(
                    f"the split {self.split} has a prediction for {prediction['id']!r} in the "
                    f"place of example {example.id!r}"
                )


def gold(task: Task, example: Example) -> Any:
    """What is to be predicted for an example; None where it is unknown."""
    if task.kind == "question_answering":
        return example.answers
    return example.tags if task.kind == "tokens" else example.label


def labelled(task: Task, result: SplitResult) -> list[tuple[Any, Any]]:
    """(gold, prediction) of the examples whose label is known."""
    pairs = (
        (gold(task, example), prediction["prediction"])
        for example, prediction in zip(result.examples, result.predictions, strict=True)
    )
    return [(wanted, predicted) for wanted, predicted in pairs if wanted is not None]


def baseline_name(task: Task, predictions: Sequence[Prediction] | None) -> str:
    """What the predictions of `Kind.majority` are, such as "always 'entailment'"."""
    if not predictions:
        return "the majority baseline"
    answer = predictions[0]["prediction"]
    if task.kind in ("classification", "pronoun"):
        return f"always {shortened(str(answer), 40)!r}"
    if task.kind == "multi_label":
        return f"always {shortened(', '.join(answer), 60)!r}" if answer else "always no label"
    if task.kind == "regression":
        return f"always {answer:.4g}, the mean"
    if task.kind == "choice":
        return f"always choice {answer + 1}"
    if task.kind == "question_answering" and not answer:
        return "always no answer"
    if task.kind == "tokens" and answer:
        return f"always {shortened(answer[0], 40)!r}"
    return "the majority baseline"


def with_intervals(
    task: Task, labels: Sequence[str], result: SplitResult, samples: int = 1000, seed: int = 0
) -> SplitResult:
    """The result with the 95% intervals of the task's metrics, also by group (`accuracy_high`).

    See `metrics.bootstrap`. For questions, the intervals are those of the exact match and the F1.
    """
    if result.intervals is not None:
        return result
    options, labels = {"samples": samples, "seed": seed}, task.in_own_order(labels)
    if task.kind == "question_answering":
        intervals = {
            name: metrics.bootstrap_mean(values, **options)
            for name, values in _question_scores(task, result).items()
            if name in result.scores
        }
        return dataclasses.replace(result, intervals=intervals)
    pairs = labelled(task, result)
    intervals = _intervals(task, labels, result, pairs, "", options)
    groups = [
        getattr(each, "group", None) for each in result.examples if gold(task, each) is not None
    ]
    for group in sorted({name for name in groups if name is not None}):
        of_group = [pair for pair, name in zip(pairs, groups, strict=True) if name == group]
        intervals |= _intervals(task, labels, result, of_group, f"_{group}", options)
    return dataclasses.replace(result, intervals=intervals)


def resampled_scores(
    task: Task, labels: Sequence[str], result: SplitResult, drawn: np.ndarray
) -> np.ndarray:
    """The selecting metric of resampled splits.

    Args:
      task: the task.
      labels: the names of the labels, in the order of their ids.
      result: predictions for a split.
      drawn: [resampled splits, examples with known labels], how often each was drawn.

    Returns:
      float64 [resampled splits], on the scale of `SplitResult.scores`.
    """
    name, labels = task.metrics[0], task.in_own_order(labels)
    if task.kind == "question_answering":
        values = np.asarray(_question_scores(task, result)[name])
        return drawn @ values / drawn.sum(axis=1)
    wanted, predicted = zip(*labelled(task, result), strict=True)
    return metrics.of_resampled(metrics.of_kind(name, task.kind), wanted, predicted, labels, drawn)


def _question_scores(task: Task, result: SplitResult) -> dict[str, list[float]]:
    """Score -> its value for each question with known answers, per cent."""
    from roberta_jax.tasks.squad import scoring

    known = [
        (example, prediction["prediction"])
        for example, prediction in zip(result.examples, result.predictions, strict=True)
        if example.answers is not None
    ]
    if not known:
        return {}
    if task.answerable:
        of_each = [scoring.evaluate_v1([example], [text]) for example, text in known]
        return {name: [each[name] for each in of_each] for name in ("exact_match", "f1")}
    exact, f1 = scoring.question_scores(*zip(*known, strict=True))
    return {"exact_match": (100 * exact).tolist(), "f1": (100 * f1).tolist()}


def _intervals(
    task: Task,
    labels: Sequence[str],
    result: SplitResult,
    pairs: Sequence[tuple[Any, Any]],
    ending: str,
    options: Mapping[str, int],
) -> dict[str, tuple[float, float]]:
    """Name of a score -> its interval, for the scores whose names have this ending."""
    names = {
        metrics.of_kind(name, task.kind): name + ending
        for name in metrics.METRICS
        if name + ending in result.scores
    }
    if not pairs or not names:
        return {}
    wanted, predicted = zip(*pairs, strict=True)
    found = metrics.bootstrap(list(names), wanted, predicted, labels, **options)
    return {names[name]: interval for name, interval in found.items()}
