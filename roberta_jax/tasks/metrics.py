"""The metrics of the tasks, and intervals for them.

Classes are scored by scikit-learn and correlations by SciPy, which the extra `finetune` installs;
entities are counted by `tasks.entities`. SQuAD's metrics are with that kind of task.

What is undefined has a value, and nothing warns:

- precision, recall and F1 are 0 where nothing was predicted or nothing was to be predicted;
- a correlation (Matthews, Pearson, Spearman) is 0 where the labels or the predictions are all the
  same: predictions that do not vary say nothing about the labels;
- a metric of numbers is NaN where one of them is not finite.
"""

import dataclasses
import importlib.util
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from roberta_jax.errors import UsageError
from roberta_jax.tasks import metric_scores as of
from roberta_jax.tasks.metric_scores import Prepare, Score

PACKAGES = {"sklearn": "scikit-learn", "scipy": "scipy"}
_BLOCK = 4_000_000  # numbers that a part of the resampled splits may have


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
      title: its name in tables and sentences.
      prepare: reads labels and predictions.
      package: the module that computes it, which has to be installed; None for NumPy alone.
      is_error: whether smaller values are better. Such a metric is in the (squared) unit of the
        labels, the others are at most 1.
    """

    title: str
    prepare: Prepare
    package: str | None = None
    is_error: bool = False


def compute(
    names: Sequence[str], gold: Sequence[Any], predicted: Sequence[Any], *, labels: Sequence[str]
) -> dict[str, float]:
    """Computes metrics by name.

    Args:
      names: keys of `METRICS`.
      gold: what is correct for each example: a label, several labels (a tuple), a number, or the
        tags of its words (a tuple).
      predicted: the predictions, as long as `gold`.
      labels: the names of all labels, in the order of their ids; the last one is the positive class
        of the F1 of two classes.

    Raises:
      UsageError: a metric is unknown or does not fit the labels, the package that computes it is
        not installed, or there are no examples.
    """
    cells, counts = _cells(gold, predicted)
    return {name: score(counts) for name, score in _scores(names, cells, labels).items()}


def bootstrap(
    names: Sequence[str],
    gold: Sequence[Any],
    predicted: Sequence[Any],
    labels: Sequence[str],
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """The 95% intervals of metrics over the choice of examples.

    The examples are drawn with replacement, as many as there are, and the interval goes from the
    2.5th to the 97.5th percentile of the metric (Efron 1979). Examples with the same label and the
    same prediction are drawn together, by their number, which is the same distribution. It says
    nothing about other seeds of the training.

    Args:
      names, gold, predicted, labels: as for `compute`.
      samples: number of times that the examples are drawn.
      seed: of the draws; the same seed gives the same intervals.

    Returns:
      Name -> (low, high); both NaN where the metric is NaN.

    Raises:
      UsageError: as for `compute`.
    """
    cells, counts = _cells(gold, predicted)
    scores = _scores(names, cells, labels)
    rng = np.random.default_rng(seed)
    total, block = int(counts.sum()), max(_BLOCK // len(counts), 1)
    values: dict[str, list[np.ndarray]] = {name: [] for name in scores}
    for begin in range(0, samples, block):
        drawn = rng.multinomial(total, counts / total, size=min(block, samples - begin))
        for name, score in scores.items():
            values[name].append(score.resampled(drawn.astype(np.float64)))
    return {name: _middle(np.concatenate(each)) for name, each in values.items()}


def of_resampled(
    name: str,
    gold: Sequence[Any],
    predicted: Sequence[Any],
    labels: Sequence[str],
    drawn: np.ndarray,
) -> np.ndarray:
    """A metric of resampled splits, for intervals that compare several models on the same draws.

    Args:
      name, gold, predicted, labels: as for `compute`, with one metric.
      drawn: [resampled splits, examples], how often each example was drawn.

    Returns:
      float64 [resampled splits].

    Raises:
      UsageError: as for `compute`.
    """
    check([name], labels)
    score = METRICS[name].prepare(
        [_hashable(each) for each in gold], [_hashable(each) for each in predicted], labels
    )
    rows = max(_BLOCK // max(len(gold), 1), 1)
    blocks = [drawn[begin : begin + rows] for begin in range(0, len(drawn), rows)]
    return np.concatenate([score.resampled(each.astype(np.float64)) for each in blocks])


def bootstrap_mean(
    values: Sequence[float], samples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """The 95% interval of the mean of a value per example; see `bootstrap`."""
    unique, counts = np.unique(np.asarray(values, np.float64), return_counts=True)
    total = int(counts.sum())
    drawn = np.random.default_rng(seed).multinomial(total, counts / total, size=samples)
    return _middle(drawn @ unique / total)


def of_kind(name: str, kind: str) -> str:
    """The key of `METRICS` for a metric of a task of some kind.

    For tags of words, `f1`, `precision` and `recall` are those of entities and `accuracy` is that
    of the tags.
    """
    return _OF_TAGS.get(name, name) if kind == "tokens" else name


def check(
    names: Sequence[str], labels: Sequence[str] | None = None, kind: str = "classification"
) -> None:
    """Checks that metrics can be computed, before a model is trained for them.

    Args:
      names: keys of `METRICS`.
      labels: the names of all labels; None if they are not known yet.
      kind: of the task, one of `task.KINDS`.

    Raises:
      UsageError: a metric is unknown, the package that computes it is not installed, or it is for
        two labels and there is another number of them.
    """
    for name in names:
        if name not in METRICS:
            raise UsageError(f"unknown metric {name!r}: choose among {', '.join(METRICS)}.")
        if kind == "question_answering":  # it computes its own
            continue
        package = METRICS[of_kind(name, kind)].package
        if package is not None and importlib.util.find_spec(package) is None:
            raise UsageError(
                f"the metric {name} needs {PACKAGES[package]}, which the extra `finetune` "
                f"installs: pip install {PACKAGES[package]}"
            )
        two_labels = name in _OF_TWO_LABELS and kind in ("classification", "multi_label")
        if two_labels and labels is not None and len(labels) != 2:
            raise UsageError(
                f"the metric {name} is of two labels, and the task has {len(labels)}; use macro_f1 "
                "or micro_f1."
            )


def _middle(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _cells(gold: Sequence[Any], predicted: Sequence[Any]) -> tuple[list[tuple], np.ndarray]:
    """The different pairs (label, prediction), and how many examples have each, int64."""
    if len(gold) != len(predicted):
        raise ValueError(f"{len(gold)} labels and {len(predicted)} predictions")
    pairs = Counter((_hashable(a), _hashable(b)) for a, b in zip(gold, predicted, strict=True))
    if not pairs:
        raise UsageError("there are no examples with labels to score.")
    return list(pairs), np.fromiter(pairs.values(), np.int64, len(pairs))


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | np.ndarray) else value


def _scores(names: Sequence[str], cells: list[tuple], labels: Sequence[str]) -> dict[str, Score]:
    check(names, labels)
    gold, predicted = ([pair[side] for pair in cells] for side in (0, 1))
    return {name: METRICS[name].prepare(gold, predicted, labels) for name in names}


METRICS: Mapping[str, Metric] = {
    # The share of the examples whose prediction is the label.
    "accuracy": Metric("accuracy", of.accuracy),
    # Of the last one of two labels (GLUE's MRPC and QQP).
    "f1": Metric("F1", of.of_last_label("f1_score"), "sklearn"),
    "precision": Metric("precision", of.of_last_label("precision_score"), "sklearn"),
    "recall": Metric("recall", of.of_last_label("recall_score"), "sklearn"),
    # The mean over the labels. With one label for each example, over those that occur among the
    # labels or the predictions; with several, over all labels, and 0 for one that does not occur.
    "macro_f1": Metric("macro F1", of.macro_f1, "sklearn"),
    # Over the decisions for all labels. With one label for each example it is the accuracy.
    "micro_f1": Metric("micro F1", of.micro_f1, "sklearn"),
    # Matthews 1975; for more than two labels Gorodkin 2004.
    "matthews_correlation": Metric("Matthews correlation", of.matthews_correlation, "sklearn"),
    # The share of the examples for which all labels and no others were predicted.
    "exact_match": Metric("exact match", of.exact_match),
    "pearson": Metric("Pearson correlation", of.correlation("pearsonr"), "scipy"),
    # Ties have the mean of their ranks.
    "spearman": Metric("Spearman correlation", of.correlation("spearmanr"), "scipy"),
    "mean_squared_error": Metric("mean squared error", of.mean_error(np.square), is_error=True),
    "mean_absolute_error": Metric("mean absolute error", of.mean_error(np.abs), is_error=True),
    # The share of the words whose tag is correct.
    "token_accuracy": Metric("accuracy of tags", of.token_accuracy),
    # Over the entities of all types: see `tasks.entities`.
    "entity_precision": Metric("entity precision", of.of_entities("precision")),
    "entity_recall": Metric("entity recall", of.of_entities("recall")),
    "entity_f1": Metric("entity F1", of.of_entities("f1")),
}
"""Name -> metric."""

_OF_TWO_LABELS = ("f1", "precision", "recall")
_OF_TAGS = {
    "accuracy": "token_accuracy",
    "f1": "entity_f1",
    "precision": "entity_precision",
    "recall": "entity_recall",
}
