import dataclasses
import math

import numpy as np
import pytest

from roberta_jax.finetuning.results import (
    SplitResult,
    baseline_name,
    resampled_scores,
    with_intervals,
)
from roberta_jax.tasks import metrics
from roberta_jax.tasks.examples import ChoiceExample
from roberta_jax.tasks.kinds import kind_class
from roberta_jax.tasks.squad import scoring
from tests.support import split_results

LABELS = ("no", "yes")
TASK = split_results.task(metrics=("accuracy", "f1"))
GOLD = ["yes", "no"] * 30
PREDICTED = ["yes", "no", "no"] * 20


def test_predictions_belong_to_the_examples():
    result = split_results.result(TASK, GOLD, PREDICTED, LABELS)
    with pytest.raises(ValueError, match="has 60 examples and 59 predictions"):
        dataclasses.replace(result, predictions=result.predictions[1:])
    with pytest.raises(ValueError, match="a prediction for '1' in the place of example '0'"):
        dataclasses.replace(result, predictions=[*result.predictions[1:], result.predictions[0]])


def test_intervals_contain_the_scores():
    result = split_results.result(TASK, GOLD, PREDICTED, LABELS)
    intervals = with_intervals(TASK, LABELS, result, samples=200).intervals
    assert set(intervals) == {"accuracy", "f1"}
    for name, (low, high) in intervals.items():
        assert low < result.scores[name] < high


def test_examples_without_labels_take_no_part():
    some = split_results.result(TASK, [*GOLD, None, None], [*PREDICTED, "yes", "yes"], LABELS)
    all_ = split_results.result(TASK, GOLD, PREDICTED, LABELS)
    assert (
        with_intervals(TASK, LABELS, some, samples=50).intervals
        == with_intervals(TASK, LABELS, all_, samples=50).intervals
    )
    none = split_results.result(TASK, [None], ["yes"], LABELS)
    assert with_intervals(TASK, LABELS, none).intervals == {}
    empty = SplitResult("test", [], [], {})
    assert with_intervals(TASK, LABELS, empty).intervals == {}


def test_intervals_that_are_there_are_kept():
    result = split_results.result(TASK, GOLD, PREDICTED, LABELS, intervals={"f1": (0.0, 1.0)})
    assert with_intervals(TASK, LABELS, result) is result


def test_tags_have_the_intervals_of_entities():
    task = split_results.task("tokens", metrics=("f1", "accuracy"))
    gold = [("B-A", "O")] * 20 + [("O", "B-A")] * 20
    predicted = [["B-A", "O"]] * 30 + [["O", "O"]] * 10
    result = split_results.result(task, gold, predicted)
    assert result.scores == pytest.approx({"f1": 2 * 20 / (30 + 40), "accuracy": 50 / 80})
    intervals = with_intervals(task, (), result, samples=200).intervals
    assert set(intervals) == {"f1", "accuracy"}
    for name, (low, high) in intervals.items():
        assert low < result.scores[name] < high


def test_groups_have_intervals_of_their_own():
    task = split_results.task("choice")
    examples = [
        ChoiceExample(str(n), "", "", ("a", "b"), 0, "high" if n < 10 else "middle")
        for n in range(40)
    ]
    predictions = [{"id": str(n), "prediction": int(n < 5)} for n in range(40)]
    scores = {"accuracy": 35 / 40, "accuracy_high": 1 / 2, "accuracy_middle": 1.0}
    result = SplitResult("validation", examples, predictions, scores)
    intervals = with_intervals(task, (), result, samples=200).intervals
    assert set(intervals) == set(scores)
    assert intervals["accuracy_high"][0] < 0.5 < intervals["accuracy_high"][1]
    assert intervals["accuracy_middle"] == (1, 1)


@pytest.mark.parametrize("answerable", [True, False])
def test_questions_have_the_intervals_of_their_scores(answerable):
    task = split_results.task(
        "question_answering", metrics=("f1", "exact_match"), answerable=answerable
    )
    gold = [("an old house", "house"), ("tree",), ("the",), ("x y",), None] * 40
    predicted = ["house", "a tree house", "the", "", "text"] * 40
    result = split_results.result(task, gold, predicted)
    kind = kind_class(task.kind)(task, (), task.formatting)
    scores = kind.scores(result.examples, result.predictions)
    scores = {name: scores[name] for name in task.metrics}
    result = dataclasses.replace(result, scores=scores)
    intervals = with_intervals(task, (), result).intervals
    assert set(intervals) == set(scores)
    for name, (low, high) in intervals.items():
        # The distribution of the mean is centred on the score.
        assert (low + high) / 2 == pytest.approx(scores[name], abs=1.5)
        assert 5 < high - low < 18


def test_predictions_that_are_not_finite_give_no_number():
    task = split_results.task("regression", metrics=("pearson",))
    result = split_results.result(task, [1.0, 2.0], [math.nan, 1.0])
    low, high = with_intervals(task, (), result, samples=5).intervals["pearson"]
    assert math.isnan(low)
    assert math.isnan(high)


@pytest.mark.parametrize(
    ("kind", "answer", "expected"),
    [
        ("classification", "yes", "always 'yes'"),
        ("multi_label", ["a", "b"], "always 'a, b'"),
        ("multi_label", [], "always no label"),
        ("regression", 2.6612, "always 2.661, the mean"),
        ("choice", 0, "always choice 1"),
        ("tokens", ["O", "O"], "always 'O'"),
        ("tokens", [], "the majority baseline"),
        ("question_answering", "", "always no answer"),
        ("pronoun", False, "always 'False'"),
    ],
)
def test_baselines_have_names(kind, answer, expected):
    task = split_results.task(kind)
    assert baseline_name(task, [{"id": "0", "prediction": answer}]) == expected
    assert baseline_name(task, None) == "the majority baseline"


@pytest.mark.parametrize(
    ("kind", "metric", "gold", "predicted", "labels"),
    [
        ("classification", "matthews_correlation", GOLD, PREDICTED, LABELS),
        ("regression", "pearson", [1.0, 2.0, 4.0, 3.0], [1.5, 1.0, 3.0, 4.0], ()),
        ("choice", "accuracy", [0, 2, 1, None], [0, 1, 1, 0], ()),
        (
            "tokens",
            "f1",
            [("B-PER", "I-PER", "O"), ("O", "B-PER")],
            [["B-PER", "I-PER", "O"], ["B-PER", "O"]],  # as they are read from JSON
            ("O", "B-PER", "I-PER"),
        ),
        ("question_answering", "f1", [("a b",), ("c",), ()], ["a", "d", ""], ()),
    ],
)
def test_resampled_splits_have_the_scores_of_their_examples(kind, metric, gold, predicted, labels):
    task = split_results.task(kind, metrics=(metric,), answerable=False)
    result = split_results.result(task, gold, predicted, labels, scores={})
    known = [number for number, each in enumerate(gold) if each is not None]
    drawn = np.ones((2, len(known)), np.int64)
    drawn[1, 0], drawn[1, 1] = 2, 0  # the first example twice, the second not at all
    of_all, of_drawn = resampled_scores(task, labels, result, drawn)
    again = [known[0], *known[:1], *known[2:]]
    for value, numbers in ((of_all, known), (of_drawn, again)):
        wanted, answers = [gold[n] for n in numbers], [predicted[n] for n in numbers]
        if kind == "question_answering":
            expected = (
                100
                * scoring.question_scores(
                    [split_results.example(kind, str(n), each) for n, each in enumerate(wanted)],
                    answers,
                )[1].mean()
            )
        else:
            name = metrics.of_kind(metric, kind)
            expected = metrics.compute([name], wanted, answers, labels=labels)[name]
        assert value == pytest.approx(expected)
