"""RACE, DREAM, SWAG, HellaSwag and CommonsenseQA."""

import json

import pytest

from roberta_jax.errors import UsageError
from roberta_jax.tasks.table import TASKS
from tests.support.messages import one_screen

PASSAGE = {
    "article": "One line.\nAnother one.",
    "questions": ["It is  _  .", "What?"],
    "options": [["a", "b", "c", "d"], ["e", "f", "g", "h"]],
    "answers": ["B", "D"],
    "id": "high80.txt",
}
SWAG = ",video-id,sent1,sent2,ending0,ending1,ending2,ending3,label\n"


def read(task, path, split="train"):
    return list(TASKS[task].reader(path, TASKS[task], split))


def written(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def test_race_folders(tmp_path):
    for number in (80, 9):
        written(tmp_path / "high" / f"{number}.txt", PASSAGE | {"id": f"high{number}.txt"})
    written(tmp_path / "middle" / "13.txt", PASSAGE | {"id": "middle13.txt"})
    examples = read("race", tmp_path)
    assert [each.id for each in examples[::2]] == ["middle13.txt-0", "high9.txt-0", "high80.txt-0"]
    assert [each.group for each in examples] == ["middle"] * 2 + ["high"] * 4
    assert examples[0].context == "One line. Another one."
    assert examples[0].question == "It is  _  ."
    assert (examples[1].choices, examples[1].label) == (("e", "f", "g", "h"), 3)
    assert [each.group for each in read("race", tmp_path / "high")] == ["high"] * 4


def test_race_without_answers_and_of_another_form(tmp_path):
    path = tmp_path / "high" / "1.txt"
    hidden = {key: value for key, value in PASSAGE.items() if key != "answers"}
    written(path, hidden)
    assert [each.label for each in read("race", tmp_path)] == [None, None]
    written(path, PASSAGE | {"answers": ["B", "E"]})
    with pytest.raises(UsageError, match=r"1.txt: the answer 'E' is not the letter"):
        read("race", tmp_path)
    written(path, PASSAGE | {"answers": ["B"]})
    with pytest.raises(UsageError, match=r"2 questions, 2 lists of options and 1 answer"):
        read("race", tmp_path)
    written(path, "no json")
    with pytest.raises(UsageError, match=r"1.txt is not JSON"):
        read("race", tmp_path)
    path.unlink()
    with pytest.raises(UsageError, match="no passages of RACE"):
        read("race", tmp_path)


def test_race_json_lines(tmp_path):
    row = {
        "example_id": "middle12.txt",
        "question_id": 2,
        "article": "A.\r\nB.",
        "answer": "A",
        "question": "Q _ ?",
        "options": ["a", "b"],
    }
    (example,) = read("race", written(tmp_path / "train.jsonl", row))
    assert (example.id, example.group, example.label) == ("middle12.txt-2", "middle", 0)
    assert example.context == "A. B."


def test_dream(tmp_path):
    questions = [{"question": "Q?", "choice": ["a", "b", "c"], "answer": "c"}]
    path = written(tmp_path / "train.json", [[["M: Hi.", "W: Yes?\nNo."], questions, "5-510"]])
    (example,) = read("dream", path)
    assert (example.id, example.context) == ("5-510-0", "M: Hi. W: Yes?\nNo.")
    assert (example.question, example.choices, example.label) == ("Q?", ("a", "b", "c"), 2)
    questions[0]["answer"] = "d"
    written(path, [[["M: Hi."], questions, "5-510"]])
    with pytest.raises(UsageError, match=r"dialogue 0: the answer 'd' is not one of the choices"):
        read("dream", path)
    for wrong in ({}, [[["M: Hi."], []]], [{"turns": []}]):
        with pytest.raises(UsageError, match=r"train.json"):
            read("dream", written(path, wrong))


def test_swag(tmp_path):
    text = SWAG + '0,v,"He says ""no"",\nloudly.",She,a,"b, c",d,e,2\n7,v,A,B,a,b,c,d,0\n'
    first, second = read("swag", written(tmp_path / "train.csv", "\ufeff" + text))
    assert first.context == 'He says "no",\nloudly.'
    assert (first.question, first.choices, first.label) == ("She", ("a", "b, c", "d", "e"), 2)
    assert (second.id, second.label) == ("7", 0)


def test_swag_without_labels_and_of_another_form(tmp_path):
    path = tmp_path / "test.csv"
    header = SWAG.replace(",label", "")
    assert read("swag", written(path, header + "0,v,A,B,a,b,c,d\n"))[0].label is None
    with pytest.raises(UsageError, match=r"test.csv:3: 2 columns, and the first line has 9"):
        read("swag", written(path, SWAG + "0,v,A,B,a,b,c,d,1\n1,v\n"))
    with pytest.raises(UsageError, match=r"test.csv:2: the label '4' is not the number of one"):
        read("swag", written(path, SWAG + "0,v,A,B,a,b,c,d,4\n"))
    with pytest.raises(UsageError, match=r"no columns sent1, sent2, ending0, ending1") as error:
        read("swag", written(path, "text,label\na,0\n"))
    assert "text, label" in one_screen(error.value)
    with pytest.raises(UsageError, match="not a row of CSV"):
        read("swag", written(path, SWAG + '0,v,"A,B,a,b,c,d,1\n'))
    assert read("swag", written(path, "")) == []


def test_hellaswag(tmp_path):
    row = {
        "ind": 24,
        "ctx": "A man. He",
        "ctx_a": "A man.",
        "ctx_b": "he",
        "label": 3,
        "endings": ["a", "b", "c", "d"],
        "split_type": "zeroshot",
    }
    path = tmp_path / "hellaswag_val.jsonl"
    (example,) = read("hellaswag", written(path, row))
    assert (example.id, example.context, example.question) == ("24", "A man. He", "")
    assert (example.choices, example.label) == (("a", "b", "c", "d"), 3)
    assert example.group == "zeroshot"
    del row["label"]
    assert read("hellaswag", written(path, row))[0].label is None
    with pytest.raises(UsageError, match=r"'endings' must be a list of texts, and has 1"):
        read("hellaswag", written(path, row | {"endings": ["a", 1]}))


def test_commonsenseqa(tmp_path):
    choices = [{"label": "A", "text": "hen house"}, {"label": "B", "text": "forest"}]
    row = {"id": "x", "answerKey": "B", "question": {"stem": "Where?", "choices": choices}}
    path = tmp_path / "train_rand_split.jsonl"
    (example,) = read("commonsenseqa", written(path, row))
    assert (example.id, example.context, example.question) == ("x", "", "Where?")
    assert (example.choices, example.label) == (("hen house", "forest"), 1)
    hidden = {key: value for key, value in row.items() if key != "answerKey"}
    assert read("commonsenseqa", written(path, hidden))[0].label is None
    with pytest.raises(UsageError, match=r"jsonl:1: the answer 'C' is not one of the choices A, B"):
        read("commonsenseqa", written(path, row | {"answerKey": "C"}))


def test_long_fields(tmp_path):
    long = "x" * 100_000
    path = written(tmp_path / "train.csv", SWAG + f'0,v,"{long}",B,a,b,c,d,1\n')
    assert read("swag", path)[0].context == long
