"""The files for the official scripts."""

import json

import pytest

from roberta_jax.errors import UsageError
from roberta_jax.tasks.squad import prediction_files as files
from tests.support.squad import question

EXAMPLES = [question("", name=name) for name in ("a", "b", "c")]


def test_files_have_the_official_forms():
    answer = {"text": "x", "start": 0, "end": 1, "probability": 1.0}
    answer |= {"start_logit": 2.0, "end_logit": 1.0}
    predictions = [
        {"id": "a", "prediction": "x", "n_best": [answer], "null_odds": -1.5},
        {"id": "b", "prediction": "", "n_best": [], "null_odds": 2.0},
    ]
    written = files.official_files(predictions, null_odds=True)
    shown = {"text": "x", "probability": 1.0, "start_logit": 2.0, "end_logit": 1.0}
    assert written == {
        "predictions.json": {"a": "x", "b": ""},
        "nbest_predictions.json": {"a": [shown], "b": []},
        "null_odds.json": {"a": -1.5, "b": 2.0},
    }
    assert "null_odds.json" not in files.official_files(predictions, null_odds=False)


def test_predictions_are_read_as_written(tmp_path):
    texts = {"a": "Émile 👍🏽", "b": "", "c": "\u2028"}
    path = tmp_path / "predictions.json"
    path.write_text(json.dumps(texts))
    assert files.read_predictions(path) == texts
    path.write_text(json.dumps(texts, ensure_ascii=False), encoding="utf-8")
    assert files.read_predictions(path) == texts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": "x"', "is not a JSON file"),
        ("[" * 100_000, "is not a JSON file"),
        ("", "is not a JSON file"),
        ('["x"]', "one JSON object"),
        ('[["a", "x"]]', "one JSON object"),
        ('{"a": "x", "b": "y", "a": "z"}', "several predictions with the same id: 'a'"),
        ('{"a": null, "b": "y"}', "1 prediction not a text: 'a'"),
        ('{"a": {"text": "x"}, "b": 3}', "2 predictions not a text: 'a', 'b'"),
    ],
)
def test_files_that_the_scripts_cannot_read_are_refused(tmp_path, content, message):
    path = tmp_path / "predictions.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=message) as error:
        files.read_predictions(path)
    assert str(path) in str(error.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        files.read_predictions(tmp_path / "predictions.json")


def test_all_questions_covered():
    coverage = files.check_predictions(EXAMPLES, {"a": "x", "b": "", "c": "y"}, answerable=False)
    assert coverage == files.Coverage((), ())


def test_predictions_for_other_questions_are_ignored():
    predictions = {"z": "x", "a": "x", "b": "", "c": "y", "y": ""}
    for answerable in (False, True):
        coverage = files.check_predictions(EXAMPLES, predictions, answerable=answerable)
        assert coverage == files.Coverage((), ("z", "y"))


def test_only_version_1_takes_questions_without_a_prediction():
    coverage = files.check_predictions(EXAMPLES, {"b": "x"}, answerable=True)
    assert coverage == files.Coverage(("a", "c"), ())
    with pytest.raises(UsageError, match="2 questions without a prediction.*'a', 'c'"):
        files.check_predictions(EXAMPLES, {"b": "x"}, answerable=False)


def test_predictions_must_be_texts():
    with pytest.raises(UsageError, match="1 prediction not a text: 'b'"):
        files.check_predictions(EXAMPLES, {"a": "", "b": None, "c": ""}, answerable=True)


def test_questions_must_have_their_own_ids():
    with pytest.raises(UsageError, match="several questions with the same id: 'a'"):
        files.check_predictions([*EXAMPLES, EXAMPLES[0]], {}, answerable=True)
