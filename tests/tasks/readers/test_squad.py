"""SQuAD's JSON."""

import json
import logging

import pytest

from roberta_jax.errors import UsageError
from roberta_jax.tasks.table import TASKS
from tests.support.messages import one_screen

CONTEXT = "Zoë was born in Köln 😀 in 1990. She left Köln in 2010."


def written(tmp_path, *questions, context=CONTEXT, **document):
    path = tmp_path / "dev.json"
    paragraph = {"context": context, "qas": list(questions)}
    value = {"version": "1.1", "data": [{"paragraphs": [paragraph], **document}]}
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def read(path, task="squad1", split="validation"):
    return list(TASKS[task].reader(path, TASKS[task], split))


def question(*answers, identity="q1", **fields):
    found = [{"text": text, "answer_start": start} for text, start in answers]
    return {"id": identity, "question": "Where?", "answers": found, **fields}


def test_answers_and_title(tmp_path):
    at = CONTEXT.index("1990")
    path = written(tmp_path, question(("1990", at), ("in 1990", at - 3)), title="Zoë")
    (example,) = read(path)
    assert (example.id, example.question, example.context) == ("q1", "Where?", CONTEXT)
    assert (example.answers, example.starts) == (("1990", "in 1990"), (at, at - 3))
    assert example.title == "Zoë"
    assert all(
        CONTEXT.startswith(text, start)
        for text, start in zip(example.answers, example.starts, strict=True)
    )


def test_questions_without_an_answer(tmp_path):
    path = written(
        tmp_path,
        question(is_impossible=True, plausible_answers=[{"text": "Köln", "answer_start": 16}]),
        question(("Zoë", 0), identity="q2", is_impossible=False),
    )
    first, second = read(path, "squad2")
    assert (first.answers, second.answers) == ((), ("Zoë",))
    with pytest.raises(UsageError, match=r"question q1 has no answer.*squad2"):
        read(path, "squad1")


def test_unlabelled_questions(tmp_path):
    path = written(tmp_path, {"id": "q1", "question": "Where?"})
    for task in ("squad1", "squad2"):
        (example,) = read(path, task, "test")
        assert (example.answers, example.starts) == (None, None)


def test_wrong_starts_are_corrected_where_the_text_occurs_once(tmp_path, caplog):
    once, twice = ("1990", 0), ("Köln", 3)
    path = written(tmp_path, question(once, twice, ("Berlin", 0), ("", 0), ("2010", 9999)))
    with caplog.at_level(logging.WARNING):
        (example,) = read(path)
    assert example.answers == ("1990", "Köln", "Berlin", "", "2010")  # scores compare the texts
    assert example.starts == (CONTEXT.index("1990"), -1, -1, -1, CONTEXT.index("2010"))
    assert "2 answers with another start" in caplog.text
    assert "3 answers not in their passage" in caplog.text


def test_an_answer_that_occurs_several_times_keeps_its_start(tmp_path, caplog):
    second = CONTEXT.rindex("Köln")
    with caplog.at_level(logging.WARNING):
        (example,) = read(written(tmp_path, question(("Köln", second))))
    assert example.starts == (second,)
    assert not caplog.text


def test_long_passages_and_newlines(tmp_path):
    context = "A line.\n" * 20_000 + "The end.\r\nIt is."
    (example,) = read(written(tmp_path, question(("The end.", 160_000)), context=context))
    assert example.context == context
    assert example.starts == (160_000,)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "expected a JSON object, found a list"),
        ({"version": "1.1"}, "no key 'data'; the keys are version"),
        ({"data": {}}, "'data' must be a list, and is an object"),
        ({"data": [{"paragraphs": [{"qas": []}]}]}, "no key 'context'"),
        ({"data": [{"paragraphs": [{"context": "a", "qas": [{"id": "1"}]}]}]}, "'question'"),
    ],
)
def test_another_form_of_json(tmp_path, value, message):
    path = tmp_path / "train.json"
    path.write_text(json.dumps(value))
    with pytest.raises(UsageError, match=message) as error:
        read(path)
    assert str(path) in one_screen(error.value)


def test_answers_of_another_form_name_the_question(tmp_path):
    for answer in ({"text": "Zoë"}, {"text": "Zoë", "answer_start": "0"}, "Zoë"):
        with pytest.raises(UsageError, match="question q7"):
            read(written(tmp_path, question(identity="q7") | {"answers": [answer]}))


def test_no_questions(tmp_path):
    assert read(written(tmp_path)) == []
