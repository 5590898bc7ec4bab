"""Tests which settings of a study differ, by the differences of their runs with the same seed."""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence

LEVEL = 0.05  # an adjusted p-value below it decides a comparison


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two settings, compared by a paired t-test over the seeds that both have.

    Attributes:
      metric: the heading of the column.
      one: the name of the first setting.
      other: the name of the second setting.
      differences: value of `one` minus value of `other`, one for each seed.
      adjusted_p: the two-sided p-value, adjusted by Holm's method for the number of comparisons
        that were made in the column; None where the test does not apply.
    """

    metric: str
    one: str
    other: str
    differences: tuple[float, ...]
    adjusted_p: float | None = None

    @property
    def mean(self) -> float:
        return statistics.fmean(self.differences)

    @property
    def standard_error(self) -> float | None:
        """The standard error of the mean; None for one seed or values that are not finite."""
        if len(self.differences) < 2 or not all(map(math.isfinite, self.differences)):
            return None
        return statistics.stdev(self.differences) / math.sqrt(len(self.differences))

    @property
    def degrees_of_freedom(self) -> int:
        return len(self.differences) - 1

    @property
    def t(self) -> float | None:
        """Student's t, or None where the differences have no spread."""
        error = self.standard_error
        return self.mean / error if error else None

    @property
    def p(self) -> float | None:
        """The two-sided p-value of `t`, not adjusted."""
        return None if self.t is None else two_sided_p(self.t, self.degrees_of_freedom)

    @property
    def decided(self) -> bool:
        return self.adjusted_p is not None and self.adjusted_p < LEVEL

    @property
    def verdict(self) -> str:
        """ "decided: SETTING is lower", "undecided", or why there is no test."""
        if not all(map(math.isfinite, self.differences)):
            return "undecided: a value is not finite"
        if not any(self.differences):
            return "no difference: all values are equal"
        if len(self.differences) < 2:
            return "undecided: a single seed"
        if not self.decided:
            return "undecided"
        return f"decided: {self.one if self.mean < 0 else self.other} is lower"

    def row(self) -> dict[str, str]:
        """Returns the comparison as a row of a table."""
        error, t, adjusted = self.standard_error, self.t, self.adjusted_p
        spread = "" if error is None else f" ± {error:.4f}"
        return {
            "column": self.metric,
            "difference": f"{self.one} - {self.other}",
            "mean ± standard error": f"{self.mean:+.4f}{spread}",
            "t (degrees of freedom)": "" if t is None else f"{t:.1f} ({self.degrees_of_freedom})",
            "adjusted p": "" if adjusted is None else _format_p(adjusted),
            "verdict": self.verdict,
        }


def compare(metric: str, values: Mapping[str, Mapping[int, float]]) -> list[Comparison]:
    """Compares each setting with each other one.

    Args:
      metric: the heading of the column.
      values: {setting: {seed: value}}.
    """
    return adjusted(differences(metric, values))


def differences(metric: str, values: Mapping[str, Mapping[int, float]]) -> list[Comparison]:
    """Compares each setting with each other one, without adjusting p-values; see `compare`."""
    comparisons = []
    for (one, left), (other, right) in itertools.combinations(values.items(), 2):
        seeds = [seed for seed in left if seed in right]
        if seeds:
            of_seeds = tuple(left[seed] - right[seed] for seed in seeds)
            comparisons.append(Comparison(metric, one, other, of_seeds))
    return comparisons


def adjusted(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The comparisons with p-values that are adjusted for the number of them."""
    comparisons = list(comparisons)
    tested = [index for index, each in enumerate(comparisons) if each.p is not None]
    p_values = holm([comparisons[index].p for index in tested])
    for index, p in zip(tested, p_values, strict=True):
        comparisons[index] = dataclasses.replace(comparisons[index], adjusted_p=p)
    return comparisons


def two_sided_p(t: float, degrees_of_freedom: int) -> float:
    """Returns the probability that Student's t is at least as far from 0.

    For whole degrees of freedom the distribution is a finite sum (Abramowitz and Stegun 1964,
    26.7.3 and 26.7.4). The error is about 1e-15, so that smaller probabilities are not exact.
    """
    angle = math.atan2(abs(t), math.sqrt(degrees_of_freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees_of_freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(1 + odd, degrees_of_freedom, 2):
        total += term
        term *= cosine**2 * k / (k + 1)
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return min(max(1.0 - inside, 0.0), 1.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts p-values for their number by the step-down method of Holm (1979)."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min((len(p_values) - rank) * p_values[index], 1.0))
        adjusted[index] = largest
    return adjusted


def _format_p(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"
