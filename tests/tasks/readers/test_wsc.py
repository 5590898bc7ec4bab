"""The Winograd Schema Challenge in SuperGLUE's JSON lines."""

import json

import pytest

from roberta_jax.errors import UsageError
from roberta_jax.tasks.readers.wsc import noun_phrases
from roberta_jax.tasks.table import TASKS

TEXT = "Mark told Pete many lies about himself, which Pete put in his book. He should be honest."


def record(span1="Mark", at1=0, span2="He", at2=13, text=TEXT, **fields):
    target = {"span1_index": at1, "span1_text": span1, "span2_index": at2, "span2_text": span2}
    return {"text": text, "target": target, "idx": 3, **fields}


def read(tmp_path, *records):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return list(TASKS["wsc"].reader(path, TASKS["wsc"], "train"))


def test_positions_are_characters(tmp_path):
    (example,) = read(tmp_path, record(label=False))
    assert TEXT[slice(*example.pronoun)] == "He"
    assert (example.query, example.query_start) == ("Mark", 0)
    assert (example.id, example.label) == ("3", False)
    assert example.candidates == ("Pete", "many lies", "his book")


def test_the_number_of_the_word_decides_between_several(tmp_path):
    (second,) = read(tmp_path, record("Pete", 8))
    assert second.query_start == TEXT.rindex("Pete")
    (first,) = read(tmp_path, record("Pete", 2))
    assert first.query_start == TEXT.index("Pete")


@pytest.mark.parametrize("at", [12, 14, 99, -1])
def test_wrong_numbers_of_words(tmp_path, at):
    (example,) = read(tmp_path, record(at2=at))
    assert TEXT[slice(*example.pronoun)] == "He"


def test_marks_and_line_ends_of_the_phrases(tmp_path):
    (example,) = read(tmp_path, record("the city\ncouncil,", 0, "him,", 3, "He saw the him, ok"))
    assert example.query == "the city council"
    assert example.query_start == -1
    assert example.pronoun == (11, 14)
    assert example.label is None


def test_what_cannot_be_used(tmp_path):
    with pytest.raises(UsageError, match=r"train.jsonl:1: the sentence does not have the pronoun"):
        read(tmp_path, record(span2="they"))
    with pytest.raises(UsageError, match=r"train.jsonl:1: no key 'target'"):
        read(tmp_path, {"text": "a"})
    with pytest.raises(UsageError, match=r"train.jsonl:1: the label must be true or false"):
        read(tmp_path, record(label="maybe"))
    with pytest.raises(UsageError, match=r"'span2_index' must be a whole number"):
        read(tmp_path, record(at2=None))


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        (
            "The trophy doesn't fit into the brown suitcase because it is too large.",
            ["The trophy", "the brown suitcase"],
        ),
        (
            "The city councilmen refused the demonstrators a permit because they feared violence.",
            ["The city councilmen", "the demonstrators", "a permit"],
        ),
        ("Jane knocked on Susan's door but she did not answer.", ["Jane", "Susan"]),
        ("Since it was late, Uncle Vernon slept.", ["Uncle Vernon"]),
        ("", []),
        ("It was so.", []),
    ],
)
def test_noun_phrases(text, phrases):
    assert noun_phrases(text) == phrases


def test_noun_phrases_leave_out_the_one_in_question():
    text = "The trophy doesn't fit into the brown suitcase."
    assert noun_phrases(text, excluding="the trophy") == ["the brown suitcase"]
    assert noun_phrases(text, excluding="suitcase") == ["The trophy"]
