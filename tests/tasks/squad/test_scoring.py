"""Exact match and F1, against the values of the official scripts."""

import itertools
import json
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roberta_jax.tasks.squad import scoring
from tests.support.squad import question, read_squad


@pytest.fixture(scope="module")
def golden(real_data):
    return real_data / "golden_metrics" / "squad"


def load(path):
    return json.loads(path.read_text())


def same(scores):
    """The scores; to rounding from Python 3.12 on, whose `sum` rounds once and not each time."""
    return scores if sys.version_info < (3, 12) else pytest.approx(scores, rel=1e-13)


@pytest.mark.parametrize(
    "name",
    [
        "xquad_en_pred_v1_bert_ensemble_google_ai_lan.json",
        "xquad_en_pred_v1_logistic_regression_baseline.json",
    ],
)
def test_version_1_equals_the_official_script(real_data, golden, name):
    predictions, expected = load(golden / name), load(golden / "expected_v1.json")[name]
    examples = read_squad(real_data / "squad" / "squad_v1_xquad_en.json.xz")
    texts = [predictions.get(each.id) for each in examples]
    assert (len(texts), len(texts) - texts.count(None)) == (expected["total"], expected["covered"])
    scores = scoring.evaluate_v1(examples, texts)
    assert scores == same({name: expected[name] for name in ("exact_match", "f1")})


@pytest.mark.parametrize("name", ["gold", "perturbed"])
def test_version_2_equals_the_official_script(real_data, golden, name):
    predictions = load(golden / f"v2_{name}_pred.json")
    examples = read_squad(real_data / "squad" / "squad_v2.json.xz")
    scores = scoring.evaluate_v2(examples, [predictions[each.id] for each in examples])
    assert scores == same(load(golden / "expected_v2.json")[name])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Quick, brown-fox!", "quick brownfox"),
        ("a an the", ""),
        ("another theatre an", "another theatre"),
        ("it's “quoted”", "its “quoted”"),
        ("A\u00a0B\u3000c", "b c"),
        ("ÉCOLE", "école"),
        ("the_end", "theend"),
    ],
)
def test_texts_are_normalized(text, expected):
    assert scoring.normalized(text) == expected


def test_f1_counts_repeated_words_once_each():
    assert scoring.f1("red red blue", "red green", empty_matches=True) == pytest.approx(2 / 5)
    assert scoring.f1("red", "blue", empty_matches=True) == 0


def test_versions_differ_in_texts_without_words():
    assert scoring.f1("the", "a", empty_matches=True) == 1
    assert scoring.f1("the", "a", empty_matches=False) == 0
    assert scoring.f1("the", "cat", empty_matches=True) == 0
    assert scoring.exact_match("the", "a") == 1


def test_the_best_of_several_answers_counts():
    example = question("", ("a red house", 0), ("house", 6))
    assert scoring.evaluate_v1([example], ["House."]) == {"exact_match": 100, "f1": 100}
    assert scoring.evaluate_v1([example], ["red house, big"])["f1"] == pytest.approx(80)


def test_a_question_without_a_prediction_or_an_answer_scores_nothing_in_version_1():
    examples = [question("", ("x", 0)), question("", ("x", 0)), question("")]
    assert scoring.evaluate_v1(examples, ["x", None, "x"])["f1"] == pytest.approx(100 / 3)


def test_version_2_scores_both_kinds_of_questions():
    examples = [question("", ("cat", 0)), question(""), question("", ("the", 0))]
    scores = scoring.evaluate_v2(examples, ["black cat", "x", ""])
    assert scores == {
        "exact": pytest.approx(100 / 3),
        "f1": pytest.approx(100 * (2 / 3 + 1) / 3),
        "total": 3,
        # An answer without words is like none, but its question counts among those with one.
        "HasAns_exact": 50,
        "HasAns_f1": pytest.approx(100 * (2 / 3 + 1) / 2),
        "HasAns_total": 2,
        "NoAns_exact": 0,
        "NoAns_f1": 0,
        "NoAns_total": 1,
    }
    assert not any(key.startswith("NoAns") for key in scoring.evaluate_v2(examples[:1], ["cat"]))


QUESTIONS = st.lists(
    st.tuples(st.sampled_from([0, 0.25, 0.5, 0.75, 1]), st.booleans(), st.booleans()),
    min_size=1,
    max_size=7,
)


@given(QUESTIONS, st.randoms())
def test_the_best_threshold_is_the_best_of_all(questions, random):
    """Every threshold is tried, with null odds in any order."""
    has_answer = np.array([each[1] for each in questions])
    answered = np.array([each[2] for each in questions])
    # What question_scores gives: an empty text is right where there is no answer, else wrong.
    scores = np.where(
        has_answer, np.array([each[0] for each in questions]) * answered, 1.0 * ~answered
    )
    odds = np.array(random.sample(range(-50, 50), len(questions))) / 4
    arguments = scores, odds, has_answer, answered

    def score_at(threshold):
        return 100 * np.mean(np.where(odds > threshold, ~has_answer, scores))

    best, threshold = scoring.best_threshold(*arguments)
    assert best == pytest.approx(max(map(score_at, [-np.inf, *odds])))
    applied = scoring.applied_threshold(*arguments)
    assert score_at(applied) == pytest.approx(best)
    assert np.isfinite(applied)
    nothing = 100 * np.mean(~has_answer)
    assert threshold == (0 if best == pytest.approx(nothing) else applied)


def test_thresholds_are_those_of_the_official_script_for_hand_computed_cases():
    examples = [question("", ("a1", 0)), question(""), question("", ("b c", 0)), question("")]
    scores = scoring.evaluate_thresholds(examples, ["a1", "x", "b", ""], [-3, 1, 0.5, 9])
    # Answered by rising odds: two questions without an answer count at first, then one more with
    # the right answer, then one that is half right in F1, and then one is lost.
    assert scores == {
        "best_exact": 75,
        "best_exact_thresh": -3,
        "best_f1": pytest.approx(100 * (3 + 2 / 3) / 4),
        "best_f1_thresh": 0.5,
    }


def test_thresholds_at_zero_where_no_answer_is_best():
    examples = [question(""), question("")]
    scores = scoring.evaluate_thresholds(examples, ["x", "y"], [-1, -2])
    assert (scores["best_f1"], scores["best_f1_thresh"]) == (100, 0)


@given(st.lists(st.sampled_from("ab"), max_size=4), st.lists(st.sampled_from("ab"), max_size=4))
def test_f1_is_symmetric_and_one_for_the_same_words(gold, predicted):
    first, second = ("w" + " w".join(words) if words else "" for words in (gold, predicted))
    one = scoring.f1(first, second, empty_matches=True)
    assert one == pytest.approx(scoring.f1(second, first, empty_matches=True))
    assert 0 <= one <= 1
    same = any(list(order) == gold for order in itertools.permutations(predicted))
    assert (one == pytest.approx(1)) == same
