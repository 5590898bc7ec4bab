"""Tests of files to predict for, and of those with the predictions beside the rows."""

import csv
import functools
import io
import json
import os
import pathlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from roberta_jax.errors import UsageError
from roberta_jax.tasks.examples import ChoiceExample, QuestionExample, TextExample, TokenExample
from roberta_jax.tasks.prediction_files import (
    PredictionFile,
    added_columns,
    blocks,
    prediction_columns,
    profile_input,
)
from roberta_jax.tasks.readers.user_columns import Columns
from roberta_jax.tasks.readers.user_examples import examples_of, read_user_file
from roberta_jax.tasks.readers.user_files import open_table
from roberta_jax.tasks.task import Task
from roberta_jax.tasks.user_task import user_task

LABELS = ("neg", "pos")
CELLS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=10)
TRICKY = st.one_of(CELLS, st.text('",;\t\n\r|a', max_size=5))
ROWS = [("k1", 'said "no",\nand left'), ("k2", ""), ("k3", "\r"), ("k4", "\ttabs"), ("k5", "é😀")]


def write(path, rows, header=("key", "text")):
    """Writes rows in the format of the path's ending."""
    if path.suffix == ".jsonl":
        lines = [json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in rows]
        path.write_text("".join(lines))
        return path
    text = io.StringIO()
    delimiter = "\t" if path.suffix == ".tsv" else ","
    csv.writer(text, delimiter=delimiter, lineterminator="\r\n").writerows([header, *rows])
    path.write_bytes(text.getvalue().encode())
    return path


def predicted(example, labels=LABELS):
    score = (len(example.text_a) % 7 + 1) / 9
    scores = dict(zip(labels, (1 - score, score), strict=True))
    return {"id": example.id, "prediction": max(scores, key=scores.get), "scores": scores}


def run(source, target, size=2, stop=None, fingerprint=None, labels=LABELS):
    """Predicts for a file; raises KeyboardInterrupt after `stop` blocks. Returns rows at start."""
    table = open_table(source, key="--input")
    profile = profile_input(table)
    columns = Columns(kind="classification", text="text")
    added = added_columns("classification", labels)
    with PredictionFile(target, table, profile, added, fingerprint) as output:
        begin = output.rows
        for number, (first, rows) in enumerate(blocks(table, size, begin)):
            if number == stop:
                raise KeyboardInterrupt
            examples = list(examples_of(rows, columns, (), table.path, start=first))
            output.write(rows, [predicted(each, labels) for each in examples])
    return begin


def rows_of(path):
    return [dict(row.values) for row in open_table(path).rows()]


@pytest.mark.parametrize("target", ["out.csv", "out.tsv", "out.jsonl"])
@pytest.mark.parametrize("source", ["in.csv", "in.tsv", "in.jsonl"])
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40
)
@given(rows=st.lists(st.tuples(TRICKY, TRICKY), min_size=1, max_size=5))
def test_rows_are_kept(tmp_path, source, target, rows):
    path = write(tmp_path / source, rows)
    run(path, tmp_path / target)
    got = rows_of(tmp_path / target)
    assert [(row["key"], row["text"]) for row in got] == rows
    for row, (_, text) in zip(got, rows, strict=True):
        expected = predicted(TextExample("", text))
        assert list(row) == ["key", "text", "prediction", "score", "score_neg", "score_pos"]
        assert row["prediction"] == expected["prediction"]
        assert float(row["score"]) == max(expected["scores"].values())
        assert float(row["score_neg"]) == expected["scores"]["neg"]


def test_the_output_is_what_csv_and_json_read(tmp_path):
    path = write(tmp_path / "in.csv", ROWS)
    run(path, tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        assert [(row["key"], row["text"]) for row in csv.DictReader(file)] == ROWS
    run(path, tmp_path / "out.jsonl")
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    for line, (key, text) in zip(lines, ROWS, strict=True):
        scores = predicted(TextExample("", text))["scores"]
        best = max(scores, key=scores.get)
        assert json.loads(line) == {
            "key": key,
            "text": text,
            "prediction": best,
            "score": scores[best],
            **{f"score_{name}": score for name, score in scores.items()},
        }


def test_objects_keep_their_form(tmp_path):
    source = tmp_path / "in.jsonl"
    objects = [
        {"text": "a", "meta": {"n": 1, "tags": ["x", None]}, "half": "\ud83d"},
        {"text": "b", "other": True, "null": None},
    ]
    source.write_text("".join(json.dumps(each) + "\n" for each in objects))
    run(source, tmp_path / "out.jsonl")
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    for line, each in zip(lines, objects, strict=True):
        assert {k: v for k, v in json.loads(line).items() if k in each} == each
    run(source, tmp_path / "out.csv")
    got = rows_of(tmp_path / "out.csv")
    assert [row["meta.tags"] for row in got] == ['["x", null]', ""]
    assert [row["meta.n"] for row in got] == ["1", ""]
    assert [row["half"] for row in got] == ["?", ""]
    assert [(row["other"], row["null"]) for row in got] == [("", ""), ("true", "")]


def test_text_files(tmp_path):
    source = tmp_path / "in.txt"
    source.write_text('one\n\n"three"\n')
    run(source, tmp_path / "out.csv")
    assert [row["text"] for row in rows_of(tmp_path / "out.csv")] == ["one", "", '"three"']


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
@pytest.mark.parametrize("stop", [0, 1, 2])
def test_an_interrupted_output_is_continued(tmp_path, name, stop):
    path = write(tmp_path / "in.csv", ROWS)
    run(path, tmp_path / f"whole.{name[4:]}")
    target = tmp_path / name
    target.write_text("the former output")
    with pytest.raises(KeyboardInterrupt):
        run(path, target, stop=stop)
    assert target.read_text() == "the former output"
    partial = tmp_path / f"{name}.partial"
    with partial.open("ab") as file:  # as if killed while writing a block
        file.write(b'half a ro"')
    assert run(path, target) == 2 * stop
    assert target.read_bytes() == (tmp_path / f"whole.{name[4:]}").read_bytes()
    names = {"in.csv", f"whole.{name[4:]}", name}
    assert set(os.listdir(tmp_path)) == names


@pytest.mark.parametrize("change", ["input", "fingerprint", "labels", "state", "shorter"])
def test_an_output_of_something_else_is_begun_anew(tmp_path, change):
    path = write(tmp_path / "in.csv", ROWS)
    target = tmp_path / "out.csv"
    with pytest.raises(KeyboardInterrupt):
        run(path, target, stop=2, fingerprint={"model": ("a", 1)})
    options = {"fingerprint": {"model": ("a", 1)}}
    if change == "input":
        write(path, [("k0", "other"), *ROWS[1:]])
    elif change == "fingerprint":
        options["fingerprint"] = {"model": ("b", 1)}
    elif change == "labels":
        options["labels"] = ("low", "high")
    elif change == "state":
        (tmp_path / "out.csv.partial.json").write_text("[1]")
    else:
        (tmp_path / "out.csv.partial").write_bytes(b"key")
    assert run(path, target, **options) == 0
    assert len(rows_of(target)) == len(ROWS)
    write(path, ROWS)


def test_the_same_output_continues_with_the_same_fingerprint(tmp_path):
    path = write(tmp_path / "in.csv", ROWS)
    for stop in (2, 0):
        with pytest.raises(KeyboardInterrupt):
            run(path, tmp_path / "out.csv", stop=stop, fingerprint={"model": ("a", 1)})
    assert run(path, tmp_path / "out.csv", fingerprint={"model": ["a", 1]}) == 4


def test_outputs_that_are_refused(tmp_path):
    path = write(tmp_path / "in.csv", ROWS)
    content = path.read_bytes()
    (tmp_path / "link.csv").symlink_to(path)
    (tmp_path / "folder.csv").mkdir()
    for name, message in [
        ("in.csv", "is the input"),
        ("link.csv", "is the input"),
        ("folder.csv", "is a folder"),
        ("none/out.csv", "does not exist"),
        ("out.txt", "has to end in .csv, .tsv or .jsonl"),
        ("out.csv.gz", "has to end in .csv"),
        ("out", "has to end in .csv"),
    ]:
        with pytest.raises(UsageError, match=f"--output=.*{message}"):
            run(path, tmp_path / name)
    assert path.read_bytes() == content
    write(path, ROWS, ("text", "score_pos"))
    with pytest.raises(UsageError, match="already has a column 'score_pos'"):
        run(path, tmp_path / "out.csv")
    assert not list(tmp_path.glob("*.partial*"))


def test_two_processes_do_not_write_one_file(tmp_path):
    table = open_table(write(tmp_path / "in.csv", ROWS))
    make = functools.partial(
        PredictionFile, tmp_path / "out.csv", table, profile_input(table), ("prediction",)
    )
    with make(), pytest.raises(UsageError, match="another process is writing"):
        make().__enter__()


def test_values_of_each_kind(tmp_path):
    table = open_table(write(tmp_path / "in.csv", ROWS[:1]))
    profile = profile_input(table)
    cases = [
        (
            "multi_label",
            ("x", "y"),
            {"prediction": ["x", "y"], "scores": {"x": 0.75, "y": 0.5}},
            {"prediction": "x|y", "score_x": "0.75", "score_y": "0.5"},
        ),
        (
            "multi_label",
            ("x|", "y"),
            {"prediction": ["x|"], "scores": {"x|": 0.75, "y": 0.25}},
            {"prediction": '["x|"]', "score_x|": "0.75", "score_y": "0.25"},
        ),
        ("regression", (), {"prediction": 0.1}, {"prediction": "0.1"}),
        (
            "tokens",
            ("O", "B-X"),
            {"prediction": ["O", "B-X"], "scores": [0.5, None]},
            {"prediction": '["O", "B-X"]', "scores": "[0.5, null]"},
        ),
        (
            "choice",
            (),
            {"prediction": 1, "scores": [0.25, 0.75]},
            {"prediction": "1", "score": "0.75", "scores": "[0.25, 0.75]"},
        ),
        (
            "question_answering",
            (),
            {"prediction": "no", "score": 0.5, "n_best": []},
            {"prediction": "no", "score": "0.5"},
        ),
        ("pronoun", (), {"prediction": True}, {"prediction": "true"}),
    ]
    for kind, labels, prediction, cells in cases:
        target = tmp_path / "out.csv"
        with PredictionFile(target, table, profile, added_columns(kind, labels)) as output:
            output.write(list(table.rows()), [{"id": "0", "label": None} | prediction])
        row = rows_of(target)[0]
        assert {name: row[name] for name in list(row)[2:]} == cells


def columns_for(path, content, task, **options):
    pathlib.Path(path).write_text(content)
    table = open_table(path, key="--input")
    return prediction_columns(task, table, profile_input(table), **options)


USER = user_task(
    "csv", Columns(kind="classification", text="review", label=("stars",), id="id"), LABELS
)
PAIRS = Task(
    name="rte",
    title="RTE",
    kind="classification",
    reader=read_user_file,
    fields=("sentence1", "sentence2"),
    labels=LABELS,
)
SINGLE = Task(
    name="sst-2",
    title="SST-2",
    kind="classification",
    reader=read_user_file,
    fields=("sentence",),
    labels=LABELS,
)
NER = Task(name="conll", title="CoNLL", kind="tokens", reader=read_user_file)
RACE = Task(name="race", title="RACE", kind="choice", reader=read_user_file)
SQUAD = Task(name="squad", title="SQuAD", kind="question_answering", reader=read_user_file)


def test_columns_of_the_users_own_tasks(tmp_path):
    path = tmp_path / "in.csv"
    found = columns_for(path, "id,review\na,x\nb,y\n", USER)
    assert found == Columns(kind="classification", text="review", id="id")
    assert columns_for(path, "id,review\na,x\na,y\n", USER).id is None
    assert columns_for(path, "other,review\na,x\na,y\n", USER).id is None
    assert columns_for(path, "text\na\n", USER, text_column="text").text == "text"
    with pytest.raises(UsageError, match=r"--input: .*no column 'review'.*Did you mean 'reviews'"):
        columns_for(path, "id,reviews\na,x\n", USER)
    assert columns_for(tmp_path / "in.txt", "one\n", USER).text == "text"


def test_columns_of_the_tasks_of_the_table(tmp_path):
    path = tmp_path / "in.csv"
    pair = columns_for(path, "sentence2,sentence1\na,b\n", PAIRS)
    assert (pair.text, pair.pair) == ("sentence1", "sentence2")
    pair = columns_for(path, "premise,hypothesis\na,b\n", PAIRS)
    assert (pair.text, pair.pair) == ("premise", "hypothesis")
    assert columns_for(path, "n,review\n1,b\n", SINGLE).text == "review"
    assert columns_for(tmp_path / "in.txt", "one\n", SINGLE).text == "text"
    with pytest.raises(UsageError, match="rte takes sentence1, sentence2. Write a csv"):
        columns_for(tmp_path / "in.txt", "one\n", PAIRS)
    with pytest.raises(UsageError, match=r"rte takes 2 texts \(sentence1, sentence2\)"):
        columns_for(path, "n,review\n1,b\n", PAIRS)
    with pytest.raises(UsageError, match="cannot tell which column holds the text"):
        columns_for(path, "review,comment\na,b\n", SINGLE)
    with pytest.raises(UsageError, match="a header and no rows"):
        columns_for(path, "review,comment\n", SINGLE)


def test_examples_of_the_other_kinds(tmp_path):
    path = tmp_path / "in.jsonl"

    def example(row, task):
        columns = columns_for(path, json.dumps(row) + "\n", task)
        table = open_table(path)
        return next(examples_of(table.rows(), columns, (), path, start=3))

    assert example({"words": ["a", "b"]}, NER) == TokenExample("3", ("a", "b"))
    row = {"article": "It.", "question": "Who?", "options": ["a", "b"]}
    assert example(row, RACE) == ChoiceExample("3", "It.", "Who?", ("a", "b"))
    assert example({"context": "It.", "question": "Who?"}, SQUAD) == QuestionExample(
        "3", "Who?", "It."
    )
    with pytest.raises(UsageError, match="no column 'question'"):
        example({"context": "It."}, SQUAD)
    with pytest.raises(UsageError, match="'tokens' is not a list of words"):
        example({"tokens": "a b"}, NER)
