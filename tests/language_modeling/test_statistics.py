"""Metrics and their bootstrap intervals."""

import numpy as np
import pytest

from roberta_jax.language_modeling.statistics import METRICS, RESAMPLES, estimates, metrics_of


def sums_of(seed, documents=40, shift=0.0, targets=None):
    rng = np.random.default_rng(seed)
    targets = rng.integers(5, 40, documents) if targets is None else targets
    of_documents = rng.normal(3 + shift, 0.5, documents)
    return {
        "masked_loss": of_documents * targets,
        "masked_top1": rng.binomial(targets, 0.3),
        "masked_top5": rng.binomial(targets, 0.6),
        "masked_targets": targets,
    }


def test_metrics_are_ratios_of_the_sums_of_all_documents():
    sums = sums_of(0) | {
        "pseudo_loss": np.array([30.0, 0, 50] + [0] * 37),
        "pseudo_targets": np.array([10, 0, 30] + [0] * 37),
        "pseudo_words": np.array([8, 0, 12] + [0] * 37),
    }
    assert metrics_of(sums) == list(METRICS)
    [of_model] = estimates([sums], list(METRICS))
    targets = sums["masked_targets"].sum()
    expected = {
        "masked_loss": sums["masked_loss"].sum() / targets,
        "masked_perplexity": np.exp(sums["masked_loss"].sum() / targets),
        "accuracy_at_1": sums["masked_top1"].sum() / targets,
        "accuracy_at_5": sums["masked_top5"].sum() / targets,
        "pseudo_loss": 80 / 40,
        "pseudo_perplexity": np.exp(80 / 40),
        "pseudo_loss_per_word": 80 / 20,
        "pseudo_perplexity_per_word": np.exp(80 / 20),
    }
    assert {name: each.value for name, each in of_model.items()} == pytest.approx(expected)
    for each in of_model.values():
        assert each.low <= each.value <= each.high
    # The interval of e to the power of x has the ends of that of x.
    loss, perplexity = of_model["masked_loss"], of_model["masked_perplexity"]
    assert np.exp([loss.low, loss.high]) == pytest.approx(
        [perplexity.low, perplexity.high], rel=1e-3
    )


def test_intervals_agree_with_scipy():
    scipy_stats = pytest.importorskip("scipy.stats")
    sums = sums_of(1)
    [of_model] = estimates([sums], ["masked_loss"])
    theirs = scipy_stats.bootstrap(
        (sums["masked_loss"], sums["masked_targets"]),
        lambda loss, targets, axis: loss.sum(axis) / targets.sum(axis),
        paired=True,
        n_resamples=5000,
        method="percentile",
        rng=0,
    ).confidence_interval
    width = theirs.high - theirs.low
    mine = of_model["masked_loss"]
    assert abs(mine.low - theirs.low) < 0.1 * width
    assert abs(mine.high - theirs.high) < 0.1 * width


def test_intervals_hold_the_true_value_as_often_as_they_say():
    """The true mean is 3; of 200 corpora about 95% of the intervals hold it."""
    held = 0
    for seed in range(200):
        targets = np.full(40, 20)
        [of_model] = estimates([sums_of(seed, targets=targets)], ["masked_loss"], seed)
        held += of_model["masked_loss"].low <= 3 <= of_model["masked_loss"].high
    assert 180 <= held <= 198


def test_differences_are_paired():
    """The second model loses the same amount on each document: an interval without width."""
    first = sums_of(2, targets=np.full(40, 20))
    second = first | {"masked_loss": first["masked_loss"] + 0.25 * first["masked_targets"]}
    of_first, of_second, difference = estimates([first, second], ["masked_loss"])
    assert difference["masked_loss"].value == pytest.approx(0.25)
    assert [difference["masked_loss"].low, difference["masked_loss"].high] == pytest.approx(
        [0.25] * 2
    )
    assert of_first["masked_loss"].high - of_first["masked_loss"].low > 0.05
    assert of_second["masked_loss"].value == pytest.approx(of_first["masked_loss"].value + 0.25)
    same = estimates([first, first], metrics_of(first))[2]
    assert all((each.value, each.low, each.high) == (0, 0, 0) for each in same.values())


def test_documents_without_a_target_have_no_influence():
    sums = sums_of(3, documents=10)
    more = {name: np.concatenate([values, np.zeros(30, int)]) for name, values in sums.items()}
    assert estimates([sums], metrics_of(sums)) == estimates([more], metrics_of(more))


def test_a_single_document_has_no_interval():
    sums = sums_of(4, documents=1)
    for of_model in estimates([sums, sums], metrics_of(sums)):
        assert all((each.low, each.high) == (None, None) for each in of_model.values())


def test_many_documents_are_resampled_in_parts(monkeypatch):
    sums = sums_of(5)
    whole = estimates([sums], ["masked_loss"])
    monkeypatch.setattr("roberta_jax.language_modeling.statistics._CHUNK", 40 * RESAMPLES // 7)
    parts = estimates([sums], ["masked_loss"])
    assert parts == whole
