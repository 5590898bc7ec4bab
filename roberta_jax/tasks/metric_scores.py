"""How the metrics of `tasks.metrics` are computed, for all examples and for resampled ones.

A function here reads labels and predictions once and returns a `Score`. A resampled split is a
number for each example, the times that it was drawn, so that 1000 of them are a few matrix products
and no new pass over the labels. The value for all examples is that of scikit-learn or SciPy where
they have the metric; tests hold both ways to the same values.

The letters at the end of the names of arrays: S resampled splits, N examples, K labels.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from roberta_jax.errors import UsageError
from roberta_jax.tasks import entities

SEVERAL = tuple | set | frozenset  # several labels, or tags


@dataclasses.dataclass(frozen=True)
class Score:
    """A metric of some predictions.

    Attributes:
      resampled: float64 [S, N], how often each example counts -> float64 [S], the metric.
      library: int64 [N] -> the metric as a library computes it; None for NumPy alone.
    """

    resampled: Callable[[np.ndarray], np.ndarray]
    library: Callable[[np.ndarray], float] | None = None

    def __call__(self, counts: np.ndarray) -> float:
        """The metric where each example counts as often as `counts`, int64 [N], says."""
        if self.library is None:
            return float(self.resampled(counts[None].astype(np.float64))[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is undefined
            return float(self.library(counts))


# (labels of the examples, predictions, names of all labels) -> the score.
Prepare = Callable[[Sequence[Any], Sequence[Any], Sequence[str]], Score]


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole; 0 where the whole is 0."""
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), 0.0)


def _share(part: Sequence[int], whole: Sequence[int]) -> Score:
    """The sum of one number of each example as a share of the sum of another."""
    part_N, whole_N = np.array(part, np.int64), np.array(whole, np.int64)
    return Score(lambda weights_SN: _ratio(weights_SN @ part_N, weights_SN @ whole_N))


# One label for each example.


def accuracy(gold, predicted, labels) -> Score:
    if isinstance(gold[0], SEVERAL):
        raise UsageError(
            "the metric accuracy is of examples with one label each; use exact_match or micro_f1 "
            "for several labels, and token_accuracy for tags."
        )
    return _share([a == b for a, b in zip(gold, predicted, strict=True)], [1] * len(gold))


def of_last_label(function: str) -> Prepare:
    """`f1_score`, `precision_score` or `recall_score` of scikit-learn, for the last of two."""

    def prepare(gold, predicted, labels) -> Score:
        if isinstance(gold[0], SEVERAL):
            raise UsageError(
                "the metrics f1, precision and recall are of examples with one label each; use "
                "macro_f1 or micro_f1 for several labels, and entity_f1 for tags."
            )

        def resampled(correct_SK, gold_SK, predicted_SK):
            total = {
                "f1_score": (gold_SK + predicted_SK) / 2,
                "precision_score": predicted_SK,
                "recall_score": gold_SK,
            }[function]
            return _ratio(correct_SK, total)[:, 1]

        options = {"labels": [1], "average": "macro", "zero_division": 0.0}
        return _classes(gold, predicted, labels, resampled, function, options)

    return prepare


def macro_f1(gold, predicted, labels) -> Score:
    if isinstance(gold[0], SEVERAL):
        return _several(
            gold, predicted, labels, lambda both, total: _ratio(2 * both, total).mean(1)
        )

    def resampled(correct_SK, gold_SK, predicted_SK):
        total = gold_SK + predicted_SK  # a class that was not drawn takes no part in the mean
        return _ratio(2 * correct_SK, total).sum(1) / (total > 0).sum(1)

    options = {"average": "macro", "zero_division": 0.0}
    return _classes(gold, predicted, labels, resampled, "f1_score", options)


def micro_f1(gold, predicted, labels) -> Score:
    if isinstance(gold[0], SEVERAL):
        return _several(
            gold, predicted, labels, lambda both, total: _ratio(2 * both.sum(1), total.sum(1))
        )

    def resampled(correct_SK, gold_SK, predicted_SK):
        return correct_SK.sum(1) / gold_SK.sum(1)

    options = {"average": "micro", "zero_division": 0.0}
    return _classes(gold, predicted, labels, resampled, "f1_score", options)


def matthews_correlation(gold, predicted, labels) -> Score:
    def resampled(correct_SK, gold_SK, predicted_SK):
        number = gold_SK.sum(1)

        def spread(a_SK, b_SK):
            return number**2 - (a_SK * b_SK).sum(1)

        both = number * correct_SK.sum(1) - (gold_SK * predicted_SK).sum(1)
        product = spread(gold_SK, gold_SK) * spread(predicted_SK, predicted_SK)
        return _ratio(both, np.sqrt(product))

    return _classes(gold, predicted, labels, resampled, "matthews_corrcoef", {})


def _classes(gold, predicted, labels, resampled, function: str, options: dict) -> Score:
    """A function of `sklearn.metrics` that takes the numbers of labels.

    Args:
      gold, predicted, labels: as for `Prepare`.
      resampled: the same function of the number of examples of each class that are correct, that
        have it as their label, and for which it was predicted; float64 [S, K] each.
      function: its name.
      options: its further arguments.
    """
    numbers = {name: number for number, name in enumerate(labels)}
    for name in (*gold, *predicted):
        numbers.setdefault(name, len(numbers))
    gold_N, predicted_N = (np.array([numbers[n] for n in side]) for side in (gold, predicted))
    gold_NK, predicted_NK = (
        (side[:, None] == np.arange(len(numbers))).astype(np.int64)
        for side in (gold_N, predicted_N)
    )

    def library(counts_N: np.ndarray) -> float:
        from sklearn import metrics

        return getattr(metrics, function)(gold_N, predicted_N, sample_weight=counts_N, **options)

    return Score(
        lambda weights_SN: resampled(
            weights_SN @ (gold_NK * predicted_NK), weights_SN @ gold_NK, weights_SN @ predicted_NK
        ),
        library,
    )


# Several labels.


def exact_match(gold, predicted, labels) -> Score:
    same = [set(a) == set(b) for a, b in zip(gold, predicted, strict=True)]
    return _share(same, [1] * len(gold))


def indicators(rows: Sequence[Sequence[str]], labels: Sequence[str]) -> np.ndarray:
    """int64 [N, K], 1 where an example has a label."""
    numbers = {name: number for number, name in enumerate(labels)}
    matrix = np.zeros((len(rows), len(labels)), np.int64)
    for row, names in zip(matrix, rows, strict=True):
        row[[numbers[name] for name in names]] = 1
    return matrix


def _several(gold, predicted, labels, average: Callable[..., np.ndarray]) -> Score:
    """The F1 of several labels. (scikit-learn takes a single column for that of two classes.)

    Args:
      gold, predicted, labels: as for `Prepare`.
      average: the F1, [S], from the number of examples for which each label is correct, and of
        those that have it plus those for which it was predicted; float64 [S, K] both.
    """
    labels = labels or sorted({name for row in (*gold, *predicted) for name in row})
    gold_NK, predicted_NK = indicators(gold, labels), indicators(predicted, labels)
    return Score(
        lambda weights_SN: average(
            weights_SN @ (gold_NK * predicted_NK), weights_SN @ (gold_NK + predicted_NK)
        )
    )


# Numbers.


def _numbers(gold, predicted) -> np.ndarray | None:
    """float64 [2, N]; None if one of them is not finite."""
    values = np.array([gold, predicted], np.float64)
    return values if np.isfinite(values).all() else None


_NOT_FINITE = Score(lambda weights_SN: np.full(len(weights_SN), math.nan))


def mean_error(function: Callable[[np.ndarray], np.ndarray]) -> Prepare:
    """The mean of a function of the differences."""

    def prepare(gold, predicted, labels) -> Score:
        values = _numbers(gold, predicted)
        if values is None:
            return _NOT_FINITE
        errors_N = function(values[0] - values[1])
        return Score(lambda weights_SN: weights_SN @ errors_N / weights_SN.sum(1))

    return prepare


def correlation(function: str) -> Prepare:
    """`pearsonr` or `spearmanr` of `scipy.stats`; 0 where one side is constant."""

    def prepare(gold, predicted, labels) -> Score:
        values = _numbers(gold, predicted)
        if values is None:
            return _NOT_FINITE

        def library(counts_N: np.ndarray) -> float:
            from scipy import stats

            if (values.min(1) == values.max(1)).any():
                return 0.0
            return getattr(stats, function)(*np.repeat(values, counts_N, axis=1)).statistic

        def resampled(weights_SN: np.ndarray) -> np.ndarray:
            if function == "spearmanr":
                return _weighted_pearson(*(_ranks(each, weights_SN) for each in values), weights_SN)
            return _weighted_pearson(*values, weights_SN)

        return Score(resampled, library)

    return prepare


def _ranks(values_N: np.ndarray, weights_SN: np.ndarray) -> np.ndarray:
    """The ranks of values that occur as often as the weights say, ties having the mean of theirs.

    float64 [S, N]; the ranks of what does not occur have no meaning.
    """
    unique, place_N = np.unique(values_N, return_inverse=True)
    order = np.argsort(place_N, kind="stable")
    starts = np.searchsorted(place_N[order], np.arange(len(unique)))
    times = np.add.reduceat(weights_SN[:, order], starts, axis=1)
    return (np.cumsum(times, axis=1) - (times - 1) / 2)[:, place_N]


def _weighted_pearson(a: np.ndarray, b: np.ndarray, weights_SN: np.ndarray) -> np.ndarray:
    """Pearson's correlation of float64 [N] or [S, N], [S]; 0 where one side is constant."""
    number = weights_SN.sum(1)

    def mean(values: np.ndarray) -> np.ndarray:
        return (weights_SN * values).sum(1) / number

    a_SN, b_SN = a - mean(a)[:, None], b - mean(b)[:, None]
    spread_a, spread_b = mean(a_SN**2), mean(b_SN**2)
    # Rounding leaves numbers that are all the same with a variance just above 0.
    varies = (spread_a > 1e-26 * mean(a**2)) & (spread_b > 1e-26 * mean(b**2))
    return np.where(
        varies, mean(a_SN * b_SN) / np.sqrt(np.where(varies, spread_a * spread_b, 1)), 0
    )


# Tags.


def token_accuracy(gold, predicted, labels) -> Score:
    pairs = [list(zip(a, b, strict=True)) for a, b in zip(gold, predicted, strict=True)]
    return _share([sum(a == b for a, b in tags) for tags in pairs], list(map(len, pairs)))


def of_entities(field: str) -> Prepare:
    """The precision, recall or F1 of the entities of all types."""

    def prepare(gold, predicted, labels) -> Score:
        counts = np.zeros((len(gold), 3), np.int64)
        for row, wanted, proposed in zip(counts, gold, predicted, strict=True):
            for each in entities.sentence_counts(wanted, proposed).values():
                row += dataclasses.astuple(each)
        correct, proposed, wanted = counts.T
        if field == "f1":
            return _share(2 * correct, proposed + wanted)
        return _share(correct, proposed if field == "precision" else wanted)

    return prepare
