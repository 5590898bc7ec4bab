"""The paired test that decides which settings differ."""

import math

import pytest

from experiments.reporting.paired_test import Comparison, compare, holm, two_sided_p

# Critical values of Student's t for a two-sided test, from published tables.
TABLE = [
    (12.706, 1, 0.05), (4.303, 2, 0.05), (9.925, 2, 0.01), (3.182, 3, 0.05), (2.776, 4, 0.05),
    (2.571, 5, 0.05), (2.228, 10, 0.05), (2.045, 29, 0.05), (3.850, 29, 0.0006),
]  # fmt: skip


@pytest.mark.parametrize(("t", "degrees_of_freedom", "p"), TABLE)
def test_p_values_are_those_of_published_tables(t, degrees_of_freedom, p):
    assert two_sided_p(t, degrees_of_freedom) == pytest.approx(p, rel=5e-3)
    assert two_sided_p(-t, degrees_of_freedom) == two_sided_p(t, degrees_of_freedom)


def test_p_values_equal_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    for degrees_of_freedom in range(1, 31):
        assert two_sided_p(0.0, degrees_of_freedom) == 1.0
        for t in (0.1, 1.0, 2.5, 4.3, 12.0, 100.0, 1e9):
            expected = 2 * stats.t.sf(t, degrees_of_freedom)
            assert two_sided_p(t, degrees_of_freedom) == pytest.approx(expected, abs=2e-15)


def test_holm_multiplies_the_smallest_p_value_most():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_difference_is_decided_by_its_spread_over_the_seeds():
    """The paper's question of SEGMENT-PAIR against SENTENCE-PAIR, with the tiny study's numbers."""
    values = {
        "SEGMENT": {0: 5.8205, 1: 5.7844, 2: 5.8992},
        "SENTENCE": {0: 5.8937, 1: 5.9273, 2: 5.8933},
    }
    (comparison,) = compare("perplexity", values)
    assert comparison.degrees_of_freedom == 2
    assert comparison.t == pytest.approx(-1.63, abs=0.01)
    assert comparison.p == comparison.adjusted_p == pytest.approx(0.245, abs=0.001)
    assert comparison.verdict == "undecided"
    values["SENTENCE"] = {seed: value + 1.0 for seed, value in values["SENTENCE"].items()}
    (comparison,) = compare("perplexity", values)
    assert comparison.verdict == "decided: SEGMENT is lower"


def test_more_comparisons_need_more_evidence():
    one = {"a": {0: 1.0, 1: 1.0, 2: 1.0}, "b": {0: 1.1, 1: 1.11, 2: 1.12}}
    assert compare("loss", one)[0].decided
    noise = {f"c{n}": {0: 1.0 + n, 1: 3.0 - n, 2: 2.0 * n} for n in range(9)}
    assert not compare("loss", one | noise)[0].decided


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ((0.5,), "undecided: a single seed"),
        ((0.0, 0.0), "no difference: all values are equal"),
        ((0.5, 0.5), "undecided"),  # no spread to judge by
        ((math.inf, 0.5), "undecided: a value is not finite"),
        ((math.nan, 0.5), "undecided: a value is not finite"),
    ],
)
def test_without_a_test_nothing_is_decided(differences, verdict):
    comparison = Comparison("loss", "a", "b", differences)
    assert comparison.verdict == verdict
    assert comparison.row()["verdict"] == verdict
    (computed,) = compare(
        "loss",
        {"a": dict(enumerate(differences)), "b": dict.fromkeys(range(len(differences)), 0.0)},
    )
    assert computed.verdict == verdict


def test_only_seeds_that_both_settings_have_are_compared():
    (comparison,) = compare("loss", {"a": {0: 1.0, 2: 3.0}, "b": {1: 9.0, 2: 1.0}})
    assert comparison.differences == (2.0,)
    assert compare("loss", {"a": {0: 1.0}, "b": {1: 1.0}}) == []
