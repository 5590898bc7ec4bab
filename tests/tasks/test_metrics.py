"""Metrics: golden values, what is undefined, and intervals."""

import csv
import json
import lzma
import math
import warnings

import numpy as np
import pytest

from roberta_jax.errors import UsageError
from roberta_jax.tasks import metrics

pytestmark = pytest.mark.filterwarnings("error")


def one(name, gold, predicted, labels=("a", "b")):
    return metrics.compute([name], gold, predicted, labels=labels)[name]


def column(path, field):
    with lzma.open(path, "rt", encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        if isinstance(field, str):
            field = next(rows).index(field)
        return [row[field] for row in rows]


@pytest.mark.parametrize(("task", "field"), [("CoLA", 1), ("SST-2", "label"), ("RTE", "label")])
def test_golden_values_of_scikit_learn(real_data, task, field):
    folder = real_data / "golden_metrics"
    expected = json.loads((folder / "expected_glue.json").read_text())[task]
    gold = column(real_data / "glue" / task / "dev.tsv.xz", field)
    predicted = json.loads((folder / f"glue_{task}_pred.json").read_text())
    assert len(gold) == expected["n"]
    assert {name: gold.count(name) for name in expected["labels"]} == expected["label_counts"]
    scores = metrics.compute(
        ["accuracy", "f1", "matthews_correlation"], gold, predicted, labels=expected["labels"]
    )
    assert scores == pytest.approx(
        {
            "accuracy": expected["accuracy"],
            "f1": expected["f1_pos_last_label"],
            "matthews_correlation": expected["mcc"],
        },
        abs=1e-12,
        rel=0,
    )
    for name in expected["labels"]:
        constant = [name] * len(gold)
        mcc = one("matthews_correlation", gold, constant, expected["labels"])
        assert mcc == expected["all_one_class_mcc"]


def test_golden_values_of_scipy(real_data):
    folder = real_data / "golden_metrics"
    expected = json.loads((folder / "expected_glue.json").read_text())["STS-B"]
    gold = [float(value) for value in column(real_data / "glue/STS-B/dev.tsv.xz", "score")]
    predicted = json.loads((folder / "glue_STS-B_pred.json").read_text())
    assert len(gold) == expected["n"]
    scores = metrics.compute(["pearson", "spearman"], gold, predicted, labels=())
    assert scores == pytest.approx(
        {"pearson": expected["pearson"], "spearman": expected["spearman_ties_averaged"]},
        abs=1e-12,
        rel=0,
    )


def test_single_labels_by_hand():
    gold, predicted = list("aabbb"), list("abbba")
    assert one("accuracy", gold, predicted) == 3 / 5
    assert one("f1", gold, predicted) == pytest.approx(2 / 3)  # of b: 2 of 3 found, 2 of 3 correct
    assert one("precision", gold, predicted) == pytest.approx(2 / 3)
    assert one("recall", gold, predicted) == pytest.approx(2 / 3)
    assert one("macro_f1", gold, predicted) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert one("micro_f1", gold, predicted) == pytest.approx(3 / 5)
    assert one("matthews_correlation", gold, predicted) == pytest.approx(1 / 6)


def test_the_last_label_is_the_positive_one():
    gold, predicted = list("aaab"), list("aabb")
    assert one("f1", gold, predicted, ["a", "b"]) == pytest.approx(2 / 3)
    assert one("f1", gold, predicted, ["b", "a"]) == pytest.approx(4 / 5)


def test_macro_f1_leaves_out_labels_that_do_not_occur():
    assert one("macro_f1", list("ab"), list("ab"), ["a", "b", "c"]) == 1
    assert one("macro_f1", list("ab"), list("ac"), ["a", "b", "c"]) == pytest.approx(1 / 3)


def test_several_labels_by_hand():
    labels = ["a", "b", "c"]
    gold = [("a", "b"), (), ("b",), ("c",)]
    predicted = [["b", "a"], [], ["a", "b"], []]
    assert one("exact_match", gold, predicted, labels) == 2 / 4
    assert one("micro_f1", gold, predicted, labels) == pytest.approx(2 * 3 / (3 + 4 + 1))
    assert one("macro_f1", gold, predicted, labels) == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_several_labels_equal_scikit_learn():
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(0)
    labels = list("abcde")
    wanted, proposed = rng.random((2, 60, 5)) < 0.4
    rows = [[tuple(np.array(labels)[row]) for row in matrix] for matrix in (wanted, proposed)]
    for name in ("micro", "macro"):
        expected = f1_score(wanted, proposed, average=name)
        assert one(f"{name}_f1", *rows, labels) == pytest.approx(expected, abs=1e-12, rel=0)


def test_one_label_of_which_there_may_be_none():
    assert one("micro_f1", [("a",), ("a",), ()], [["a"], [], []], ["a"]) == pytest.approx(2 / 3)


def test_numbers_by_hand():
    gold, predicted = [1.0, 2.0, 3.0], [2.0, 2.0, 5.0]
    assert one("mean_squared_error", gold, predicted) == pytest.approx(5 / 3)
    assert one("mean_absolute_error", gold, predicted) == pytest.approx(1)
    assert one("pearson", gold, [2.0, 4.0, 6.0]) == pytest.approx(1)
    assert one("spearman", gold, [3.0, 2.0, -9.0]) == pytest.approx(-1)
    assert one("spearman", [1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(math.sqrt(0.9))  # a tie


def test_tags_are_scored_by_entity_and_by_word():
    gold, predicted = [("B-A", "I-A", "O"), ("B-A",)], [["B-A", "O", "O"], ["B-A"]]
    assert one("token_accuracy", gold, predicted) == 3 / 4
    assert one("entity_precision", gold, predicted) == 1 / 2
    assert one("entity_recall", gold, predicted) == 1 / 2
    assert one("entity_f1", gold, predicted) == 1 / 2
    assert one("token_accuracy", [()], [[]]) == 0
    assert metrics.of_kind("f1", "tokens") == "entity_f1"
    assert metrics.of_kind("f1", "classification") == "f1"


@pytest.mark.parametrize("value", ["a", "b"])
@pytest.mark.parametrize("predicted", ["aaa", "bbb", "aab"])
def test_labels_that_are_all_the_same(value, predicted):
    gold = [value] * 3
    assert one("matthews_correlation", gold, list(predicted)) == 0
    assert one("matthews_correlation", list(predicted), gold) == 0
    share = predicted.count(value) / 3
    assert one("accuracy", gold, list(predicted)) == pytest.approx(share)
    assert one("f1", list("aaa"), list("aaa")) == 0
    assert 0 <= one("macro_f1", gold, list(predicted)) <= 1


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_a_correlation_without_variation_is_zero(name):
    assert one(name, [1.0, 2.0, 3.0], [2.0, 2.0, 2.0]) == 0
    assert one(name, [2.0, 2.0, 2.0], [1.0, 2.0, 3.0]) == 0
    assert one(name, [1.0], [1.0]) == 0
    assert abs(one(name, [1.0, 2.0, 3.0], [1.0, 1.0, 1.0 + 1e-15])) <= 1


@pytest.mark.parametrize("name", ["pearson", "spearman", "mean_squared_error"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_give_nan(name, value):
    assert math.isnan(one(name, [1.0, 2.0, 3.0], [1.0, value, 3.0]))
    low, high = metrics.bootstrap([name], [1.0, 2.0], [value, value], (), samples=3)[name]
    assert math.isnan(low)
    assert math.isnan(high)


def test_no_examples_is_an_error():
    with pytest.raises(UsageError, match="no examples"):
        metrics.compute(["accuracy"], [], [], labels=["a"])


def test_another_number_of_predictions_is_an_error():
    with pytest.raises(ValueError, match="2 labels and 1 predictions"):
        metrics.compute(["accuracy"], ["a", "a"], ["a"], labels=["a"])


def test_metrics_that_do_not_fit_are_named():
    with pytest.raises(UsageError, match="unknown metric 'acuracy': choose among accuracy, f1"):
        one("acuracy", ["a"], ["a"])
    with pytest.raises(UsageError, match="task has 3; use macro_f1"):
        one("f1", ["a"], ["a"], ["a", "b", "c"])
    with pytest.raises(UsageError, match="use exact_match"):
        one("accuracy", [("a",)], [["a"]])
    with pytest.raises(UsageError, match="entity_f1 for tags"):
        one("f1", [("a",)], [["a"]])


def test_check_finds_what_cannot_be_computed(monkeypatch):
    metrics.check(["f1", "accuracy"], ["a", "b"])
    metrics.check(["f1", "accuracy"])
    metrics.check(["f1"], ["O", "B-A", "I-A"], "tokens")
    metrics.check(["exact_match", "f1"], [], "question_answering")
    with pytest.raises(UsageError, match="task has 1"):
        metrics.check(["f1"], ["a"])
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
    metrics.check(["accuracy", "mean_squared_error"])
    metrics.check(["f1"], kind="tokens")
    with pytest.raises(UsageError, match=r"f1 needs scikit-learn, .* `finetune` installs: pip"):
        metrics.check(["f1"])
    with pytest.raises(UsageError, match="pearson needs scipy"):
        one("pearson", [1.0], [1.0])


def test_every_metric_has_its_value_and_interval_for_perfect_predictions():
    sides = {"sklearn": ["a", "b", "b", "a"], None: ["a", "b", "b", "a"]}
    for name, metric in metrics.METRICS.items():
        gold = sides.get(metric.package, [1.0, 2.0, 2.0, 3.0])
        if name.startswith(("entity", "token")):
            gold = [("B-A", "I-A"), ("O", "B-C")]
        if metric.is_error:
            gold = [1.0, 2.0]
        expected = 0 if metric.is_error else 1
        assert one(name, gold, gold) == pytest.approx(expected), name
        low, high = metrics.bootstrap([name], gold, gold, ("a", "b"), samples=20)[name]
        assert low <= expected <= high + 1e-9, name


# Intervals.

# Kind of gold label -> metrics, labels and predictions of 40 examples.
SIDES = {
    "one label": (
        ("accuracy", "macro_f1", "micro_f1", "matthews_correlation"),
        lambda rng: [str(each) for each in rng.choice(list("abcd"), 40, p=[0.5, 0.3, 0.15, 0.05])],
    ),
    "two labels": (("f1", "precision", "recall"), lambda rng: list(rng.choice(list("ab"), 40))),
    "several": (
        ("exact_match", "micro_f1", "macro_f1"),
        lambda rng: [tuple(np.array(list("abcd"))[rng.random(4) < 0.4]) for _ in range(40)],
    ),
    "numbers": (
        ("pearson", "spearman", "mean_squared_error", "mean_absolute_error"),
        lambda rng: rng.integers(0, 12, 40).astype(float).tolist(),
    ),
    "tags": (
        ("token_accuracy", "entity_f1", "entity_precision", "entity_recall"),
        lambda rng: [tuple(rng.choice(["O", "B-A", "I-A"], 3)) for _ in range(40)],
    ),
}


@pytest.mark.parametrize("kind", SIDES)
def test_resampled_splits_have_the_metrics_of_their_examples(kind):
    names, draw = SIDES[kind]
    labels = list("ab" if kind == "two labels" else "abcd")
    rng = np.random.default_rng(0)
    for size in (1, 2, 5, 40):
        gold, predicted = draw(rng)[:size], draw(rng)[:size]
        weights = rng.multinomial(size, [1 / size] * size, size=20)
        for name in names:
            score = metrics.METRICS[name].prepare(gold, predicted, labels)
            expected = []
            for counts in weights:
                rows = np.repeat(np.arange(size), counts)
                drawn = ([side[row] for row in rows] for side in (gold, predicted))
                expected.append(one(name, *drawn, labels))
            resampled = score.resampled(weights.astype(float))
            np.testing.assert_allclose(resampled, expected, rtol=0, atol=1e-12, err_msg=name)


def test_every_metric_is_resampled_in_a_test():
    assert {name for names, _ in SIDES.values() for name in names} == set(metrics.METRICS)


def test_the_interval_of_an_accuracy_is_that_of_the_binomial_distribution():
    from scipy.stats import binom

    gold, predicted = ["a"] * 277, ["a"] * 185 + ["b"] * 92
    low, high = metrics.bootstrap(["accuracy"], gold, predicted, ["a", "b"], 4000)["accuracy"]
    expected = binom.ppf([0.025, 0.975], 277, 185 / 277) / 277
    assert [low, high] == pytest.approx(expected, abs=0.006)


def test_intervals_of_numbers_and_of_tags_contain_the_value():
    rng = np.random.default_rng(0)
    gold = rng.normal(size=200)
    predicted = gold + rng.normal(size=200)
    names = ["pearson", "spearman", "mean_squared_error"]
    values = metrics.compute(names, gold.tolist(), predicted.tolist(), labels=())
    intervals = metrics.bootstrap(names, gold.tolist(), predicted.tolist(), (), samples=200)
    for name in names:
        low, high = intervals[name]
        assert low < values[name] < high
        assert high - low < 0.7
    gold = [("B-A", "O")] * 50 + [("O", "O")] * 50
    predicted = [("B-A", "O")] * 70 + [("O", "O")] * 30
    low, high = metrics.bootstrap(["entity_f1"], gold, predicted, (), samples=200)["entity_f1"]
    assert low < 2 * 50 / (50 + 70) < high


def test_the_same_seed_gives_the_same_interval():
    gold, predicted = list("ababab"), list("aababb")
    draws = [
        metrics.bootstrap(["accuracy", "f1"], gold, predicted, ["a", "b"], 100, seed)
        for seed in (0, 0, 1)
    ]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


def test_resampling_prints_no_warning():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        names = ["f1", "macro_f1", "micro_f1", "matthews_correlation"]
        metrics.bootstrap(names, list("ab"), list("bb"), ["a", "b"], 50)
        metrics.bootstrap(["pearson", "spearman"], [1.0, 2.0], [1.0, 3.0], (), 50)
    assert not caught
