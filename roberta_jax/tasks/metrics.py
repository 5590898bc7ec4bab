"""The metrics of the tasks."""

from collections.abc import Sequence
from typing import Any


def compute(
    names: Sequence[str], gold: Sequence[Any], predicted: Sequence[Any], *, labels: Sequence[str]
) -> dict[str, float]:
    """Computes metrics by name.

    Args:
      names: keys of `METRICS`.
      gold: the labels of the examples, or the numbers of a regression.
      predicted: the predictions, as long as `gold`.
      labels: the names of all labels, in the order of their ids; the last one is the positive class
        of the F1 of two classes.
    """
    return {name: METRICS[name](gold, predicted, labels) for name in names}


def accuracy(gold: Sequence[Any], predicted: Sequence[Any], labels: Sequence[str]) -> float:
    """The share of the examples whose prediction is the label."""
    return sum(a == b for a, b in zip(gold, predicted, strict=True)) / len(gold)


METRICS = {"accuracy": accuracy}
