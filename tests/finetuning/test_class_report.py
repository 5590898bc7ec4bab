import math

import numpy as np
import pytest

from roberta_jax.finetuning.class_report import class_numbers, class_report
from roberta_jax.finetuning.results import SplitResult, labelled
from tests.support import split_results


def report(task, gold, predicted, labels=()):
    return class_report(
        task, labels, split_results.result(task, gold, predicted, labels, scores={})
    )


def row(text, name):
    """The numbers in the row of a class."""
    line = next(line for line in text.splitlines() if line.startswith(name + " "))
    return line[len(name) :].split()


def test_each_label_has_its_row():
    labels = ("a", "b", "c")
    text = report(split_results.task(), list("aaaabbcc"), list("aaabbbba"), labels)
    assert text.startswith("MINE, validation: 8 examples with labels\n")
    assert row(text, "label") == ["precision", "recall", "F1", "support", "predicted"]
    assert row(text, "a") == ["75.0", "75.0", "75.0", "4", "4"]
    assert row(text, "b") == ["50.0", "100.0", "66.7", "2", "4"]
    assert row(text, "c") == ["0.0", "0.0", "0.0", "2", "0"]
    assert "the commonest mistakes:\n  1 x a was predicted as b" in text


def test_the_numbers_are_those_of_scikit_learn():
    from sklearn.metrics import classification_report

    rng = np.random.default_rng(0)
    labels = tuple(f"label {number}" for number in range(200))
    gold = [labels[number] for number in rng.integers(0, 200, 1000)]
    predicted = [g if rng.random() < 0.5 else labels[rng.integers(200)] for g in gold]
    text = report(split_results.task(), gold, predicted, labels)
    expected = classification_report(
        gold, predicted, labels=labels, output_dict=True, zero_division=0
    )
    for name in labels:
        numbers = expected[name]
        shares = [f"{100 * numbers[key]:.1f}" for key in ("precision", "recall", "f1-score")]
        assert row(text, name)[:3] == shares
        assert row(text, name)[3] == f"{numbers['support']:.0f}"


def test_the_commonest_mistakes_come_first_and_are_few():
    labels = tuple(f"l{number:02}" for number in range(30))
    gold = [name for number, name in enumerate(labels) for _ in range(number + 1)]
    text = report(split_results.task(), gold, ["l00"] * len(gold), labels)
    mistakes = text.split("the commonest mistakes:\n")[1].splitlines()
    assert mistakes[0] == "  30 x l29 was predicted as l00"
    assert len(mistakes) == 10


def test_names_stay_in_their_row():
    labels = ("a\tb\nc", "x" * 300, "|*")
    text = report(split_results.task(), list(labels), list(labels), labels)
    lines = text.splitlines()
    assert len(lines) == 6
    assert lines[3].startswith("a\\tb\\nc ")
    assert lines[4].startswith("x" * 40 + "... (300 characters)")
    assert max(map(len, lines)) < 130


def test_several_labels():
    task = split_results.task("multi_label", metrics=("exact_match",))
    gold, predicted = [("a", "b"), ("b",), ()], [["a"], ["b", "c"], []]
    text = report(task, gold, predicted, ("a", "b", "c"))
    assert row(text, "a") == ["100.0", "100.0", "100.0", "1", "1"]
    assert row(text, "b") == ["100.0", "50.0", "66.7", "2", "1"]
    assert row(text, "c") == ["0.0", "0.0", "0.0", "0", "1"]
    assert text.endswith("labels per example: 1.00, predicted: 1.00\n")


def test_several_labels_with_scores_have_average_precisions():
    task = split_results.task("multi_label", metrics=("exact_match",))
    gold = [("a",), None, (), ("a", "b")]
    result = split_results.result(task, gold, [["a"], ["a"], [], []], ("a", "b", "c"))
    for each, a, b in zip(
        result.predictions, (0.9, 0.0, 0.4, 0.3), (0.2, 0.0, 0.1, 0.4), strict=True
    ):
        each["scores"] = {"a": a, "b": b, "c": 0.5}
    text = class_report(task, ("a", "b", "c"), result)
    # The examples with a are at ranks 1 and 3.
    assert row(text, "a")[-2:] == ["1", f"{100 * (1 + 2 / 3) / 2:.1f}"]
    assert row(text, "b")[-2:] == ["0", "100.0"]
    assert row(text, "c") == ["0.0", "0.0", "0.0", "0", "0"]
    assert "ranking by score): 91.7, over 2 labels that examples have" in text
    result.predictions[0]["scores"]["a"] = math.nan
    assert "ranking" not in class_report(task, ("a", "b", "c"), result)


def test_entities_have_a_row_per_type():
    task = split_results.task("tokens", metrics=("f1",))
    gold, predicted = [("B-PER", "I-PER", "O", "B-LOC")], [["B-PER", "I-PER", "B-LOC", "O"]]
    text = report(task, gold, predicted)
    assert row(text, "PER") == ["100.0", "100.0", "100.0", "1", "1"]
    assert row(text, "LOC") == ["0.0", "0.0", "0.0", "1", "1"]
    assert row(text, "all types") == ["50.0", "50.0", "50.0", "2", "2"]


def test_parts_of_speech_have_a_row_per_tag():
    task = split_results.task("tokens", metrics=("accuracy",))
    gold, predicted = [("NOUN", "VERB"), ("NOUN",)], [["NOUN", "NOUN"], ["NOUN"]]
    text = report(task, gold, predicted, ("NOUN", "VERB"))
    assert row(text, "NOUN") == ["66.7", "100.0", "80.0", "2", "3"]
    assert "1 x VERB was predicted as NOUN" in text


def test_choices_have_a_row_per_position():
    task = split_results.task("choice")
    text = report(task, [0, 1, 1, 9], [0, 0, 1, 9])
    assert row(text, "choice 2") == ["100.0", "50.0", "66.7", "2", "1"]
    assert text.index("choice 2") < text.index("choice 10")


def test_whether_a_pronoun_refers():
    text = report(split_results.task("pronoun"), [True, False], [True, True])
    assert row(text, "True") == ["50.0", "100.0", "66.7", "1", "2"]


def test_numbers_have_their_distribution_and_the_largest_errors():
    task = split_results.task("regression", metrics=("pearson",))
    text = report(task, [1.0, 2.0, 4.0], [1.0, 2.5, math.nan])
    assert "labels      mean     2.333" in text
    largest = text.split("the largest errors:\n")[1].splitlines()
    assert largest[0].split() == ["4", "was", "predicted", "as", "nan:", "2"]
    assert largest[1].split() == ["2", "was", "predicted", "as", "2.5:", "1"]
    assert len(largest) == 2


@pytest.mark.parametrize("kind", ["classification", "tokens", "regression", "multi_label"])
def test_there_is_no_report_without_labels(kind):
    task = split_results.task(kind)
    assert class_report(task, ("a",), SplitResult("test", [], [], {})) is None
    assert report(task, [None], ["a"], ("a",)) is None


def test_one_label_alone():
    text = report(split_results.task(), ["a"] * 3, ["a"] * 3, ("a",))
    assert row(text, "a") == ["100.0", "100.0", "100.0", "3", "3"]
    assert "mistakes" not in text


def test_counts_are_by_label_and_prediction():
    task = split_results.task()
    result = split_results.result(task, list("aab"), list("abb"), ("b", "a"))
    names, counts = class_numbers(task, labelled(task, result), ("b", "a"))
    assert names == ["b", "a"]
    assert counts.tolist() == [[1, 0], [1, 1]]
