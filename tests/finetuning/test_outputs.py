import json
import math
import pathlib

import numpy as np
import pytest
from etils import epath

from roberta_jax.errors import UsageError
from roberta_jax.finetuning import figures
from roberta_jax.finetuning.outputs import write_outputs
from roberta_jax.finetuning.results import SplitResult
from tests.support import object_store, split_results

LABELS = ("entailment", "not_entailment")
TASK = split_results.task(name="rte", title="RTE", submission={"test": "RTE.tsv"})
GOLD = ["entailment"] * 6 + ["not_entailment"] * 4
PREDICTED = ["entailment"] * 5 + ["not_entailment"] * 5
ABOUT = {
    "command": "python -m roberta_jax.finetune --config=configs/finetune.py:rte",
    "init_from": "runs/tiny",
    "seed": 3,
    "learning_rate": 2e-5,
    "versions": {"jax": "0.10.2"},
    "early": None,
}


@pytest.fixture
def results():
    validation = split_results.result(
        TASK,
        GOLD,
        PREDICTED,
        LABELS,
        baseline={"accuracy": 0.6},
        baseline_name="always 'entailment'",
        loss=0.5,
    )
    return [validation, split_results.result(TASK, [None] * 3, PREDICTED[:3], split="test")]


def written(folder, task=TASK, labels=LABELS, results=(), about=ABOUT, **options):
    names = write_outputs(epath.Path(folder), task, labels, results, about, **options)
    found = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )
    assert sorted(names) == found
    assert names[-1] == "results.json"
    return names


def read(folder, name="results.json"):
    """A JSON file; NaN, which is not JSON, is an error."""
    return json.loads((folder / name).read_text("utf-8"), parse_constant=pytest.fail)


def read_lines(folder, name):
    text = (folder / name).read_text("utf-8")
    return [json.loads(line, parse_constant=pytest.fail) for line in text.split("\n")[:-1]]


def test_a_run_leaves_its_files(tmp_path, results):
    names = written(tmp_path, results=results)
    assert set(names) == {
        "confusion_validation.png",
        "predictions/test.jsonl",
        "predictions/validation.jsonl",
        "report_validation.txt",
        "results.json",
        "results.md",
        "submission/RTE.tsv",
    }
    assert (tmp_path / "confusion_validation.png").read_bytes().startswith(b"\x89PNG")
    assert "not_entailment" in (tmp_path / "report_validation.txt").read_text()


def test_results_hold_scores_intervals_counts_and_facts(tmp_path, results):
    written(tmp_path, results=results)
    summary = read(tmp_path)
    validation = summary["splits"]["validation"]
    low, high = validation.pop("intervals")["accuracy"]
    assert low < 0.9 < high
    assert validation == {
        "examples": 10,
        "labelled": 10,
        "scores": {"accuracy": 0.9},
        "baseline": {"accuracy": 0.6},
        "baseline_name": "always 'entailment'",
        "loss": 0.5,
        "label_counts": {"entailment": 6, "not_entailment": 4},
    }
    test = summary["splits"]["test"]
    assert (test["examples"], test["labelled"], test["scores"], test["loss"]) == (3, 0, {}, None)
    assert summary["about"] == ABOUT
    assert summary["labels"] == list(LABELS)


def test_the_markdown_has_the_row_and_the_command(tmp_path, results):
    written(tmp_path, results=results)
    text = (tmp_path / "results.md").read_text()
    assert text.startswith("# RTE\n\n| task | split | examples | accuracy | baseline |\n")
    assert "| RTE | validation | 10 | 90.0 (" in text
    assert "\n- seed: 3\n- learning rate: 2e-05\n- versions: jax 0.10.2\n" in text
    assert "None" not in text
    assert text.endswith(f"```\n{ABOUT['command']}\n```\n")


def test_predictions_are_a_line_each(tmp_path, results):
    written(tmp_path, results=results)
    lines = read_lines(tmp_path, "predictions/validation.jsonl")
    assert lines == results[0].predictions
    submission = (tmp_path / "submission" / "RTE.tsv").read_text().splitlines()
    assert len(submission) == 1 + 3


def test_files_of_the_kind_are_written_as_they_are(tmp_path, results):
    extra = {"nbest_predictions.json": {"1": [math.nan]}, "a/notes.txt": "text\n"}
    written(tmp_path, results=results, extra_files=extra)
    assert read(tmp_path, "nbest_predictions.json") == {"1": [None]}
    assert (tmp_path / "a" / "notes.txt").read_text() == "text\n"
    for name in ("../a", "/a", "a\nb"):
        with pytest.raises(ValueError, match="is not the name of a file in the workdir"):
            written(tmp_path, results=results, extra_files={name: 1})


def test_the_files_are_replaced(tmp_path, results):
    written(tmp_path, results=results)
    before = (tmp_path / "results.json").read_bytes()
    written(tmp_path, results=results, about={"seed": 4})
    assert read(tmp_path)["about"] == {"seed": 4}
    written(tmp_path, results=results)
    assert (tmp_path / "results.json").read_bytes() == before


def test_an_object_store_holds_the_same(tmp_path, monkeypatch, results):
    object_store.install(tmp_path / "store", monkeypatch.setattr)
    local = written(tmp_path / "local", results=results)
    remote = write_outputs(epath.Path("gs://bucket/run"), TASK, LABELS, results, ABOUT)
    assert remote == local
    for name in local:
        there = epath.Path("gs://bucket/run") / name
        assert there.read_bytes() == (tmp_path / "local" / name).read_bytes()


def test_an_error_leaves_the_old_files(tmp_path):
    task = split_results.task("regression", metrics=("pearson",), submission={"test": "S.tsv"})
    good, bad = (
        split_results.result(task, [None], [value], split="test") for value in (1.0, math.nan)
    )
    written(tmp_path, task, (), [good])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="diverged"):
        write_outputs(epath.Path(tmp_path), task, (), [good, bad][1:], {})
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_two_results_of_a_split_are_an_error(tmp_path, results):
    with pytest.raises(ValueError, match="a split has two results"):
        written(tmp_path, results=[results[0], results[0]])


def test_numbers(tmp_path):
    task = split_results.task(
        "regression",
        metrics=("pearson", "spearman"),
        submission={"validation": "STS-B.tsv"},
        label_scale=5.0,
    )
    gold = [float(n % 6) for n in range(30)]
    result = split_results.result(task, gold, [value / 2 + 3 for value in gold])
    names = written(tmp_path, task, (), [result])
    assert "scatter_validation.png" in names
    assert "submission/STS-B.tsv" in names
    assert read(tmp_path)["splits"]["validation"]["intervals"]["pearson"] == pytest.approx([1, 1])


def test_numbers_that_are_not_finite_are_null(tmp_path):
    task = split_results.task("regression", metrics=("pearson",))
    result = split_results.result(
        task, [1.0, 2.0], [math.nan, math.inf], baseline={"pearson": 0.0}, loss=math.nan
    )
    about = {"speed": np.float32("inf"), "steps": np.int64(3), "path": pathlib.Path("a")}
    written(tmp_path, task, (), [result], about)
    summary = read(tmp_path)
    split = summary["splits"]["validation"]
    assert (split["scores"], split["loss"]) == ({"pearson": None}, None)
    assert split["intervals"] == {"pearson": [None, None]}
    assert summary["about"] == {"speed": None, "steps": 3, "path": "a"}
    lines = read_lines(tmp_path, "predictions/validation.jsonl")
    assert [line["prediction"] for line in lines] == [None, None]
    assert "| nan (nan to nan) |" in (tmp_path / "results.md").read_text()


def test_names_that_could_break_files(tmp_path):
    labels = ("a\tb", "c\nd|e", "*f*_`<g>", "x" * 3000, "\ud800 $1", "日本 \u2028")
    result = split_results.result(TASK, list(labels) * 2, list(labels[::-1]) * 2, labels)
    names = written(tmp_path, labels=labels, results=[result], about={"a|b\n": "c\nd"})
    assert "confusion_validation.png" in names
    lines = read_lines(tmp_path, "predictions/validation.jsonl")
    assert [line["prediction"] for line in lines] == list(labels[::-1]) * 2
    assert read(tmp_path)["labels"] == list(labels)
    table = [s for s in (tmp_path / "results.md").read_text().split("\n") if s.startswith("|")]
    assert len(table) == 3
    assert len((tmp_path / "report_validation.txt").read_text("utf-8").split("\n")) < 30


def test_the_name_of_a_split_becomes_a_file_name(tmp_path):
    result = split_results.result(TASK, GOLD, PREDICTED, LABELS, split="../my file")
    names = written(tmp_path, results=[result])
    assert "predictions/.._my_file.jsonl" in names


@pytest.mark.parametrize(("number", "drawn"), [(1, True), (50, True), (51, False), (200, False)])
def test_up_to_fifty_labels_are_drawn(tmp_path, number, drawn):
    labels = tuple(f"label {n}" for n in range(number))
    result = split_results.result(TASK, list(labels), list(labels), labels)
    names = written(tmp_path, labels=labels, results=[result])
    assert ("confusion_validation.png" in names) == drawn
    assert "report_validation.txt" in names


@pytest.mark.parametrize("gold", [[], [None, None]])
def test_a_split_without_labels_has_predictions_alone(tmp_path, gold):
    result = split_results.result(TASK, gold, ["entailment"] * len(gold))
    names = written(tmp_path, results=[result])
    assert names == ["predictions/validation.jsonl", "results.md", "results.json"]
    assert len(read_lines(tmp_path, names[0])) == len(gold)


@pytest.mark.parametrize(
    ("kind", "metric", "gold", "predicted", "labels"),
    [
        ("tokens", "f1", [("B-A", "O")], [["B-A", "O"]], ("O", "B-A")),
        ("multi_label", "micro_f1", [("a",), ()], [["a"], ["b"]], ("a", "b")),
        ("choice", "accuracy", [0, 2], [0, 1], ()),
        ("pronoun", "accuracy", [True, False], [True, True], ()),
    ],
)
def test_every_kind_has_its_report(tmp_path, kind, metric, gold, predicted, labels):
    task = split_results.task(kind, metrics=(metric,))
    names = written(tmp_path, task, labels, [split_results.result(task, gold, predicted, labels)])
    assert "report_validation.txt" in names
    assert ("confusion_validation.png" in names) == (kind == "pronoun")
    split = read(tmp_path)["splits"]["validation"]
    assert set(split["intervals"]) == set(split["scores"]) == {metric}


def test_questions_have_predictions_and_scores(tmp_path):
    task = split_results.task("question_answering", metrics=("f1", "exact_match"))
    result = split_results.result(task, [("tree", "house")], ["tree"], scores={"f1": 100.0})
    names = written(tmp_path, task, (), [result])
    assert names == ["predictions/validation.jsonl", "results.md", "results.json"]
    assert "| 100.0 (100.0 to 100.0) |" in (tmp_path / "results.md").read_text()


def test_without_matplotlib_a_line_says_how_to_get_it(tmp_path, monkeypatch, results):
    monkeypatch.setattr(figures, "can_draw", lambda: False)
    names = written(tmp_path, results=results)
    assert not [name for name in names if name.endswith(".png")]
    text = (tmp_path / "results.md").read_text()
    assert "Matplotlib, which the extra `finetune` installs: pip install matplotlib" in text
    other = SplitResult("test", [], [], {})
    written(tmp_path / "none", results=[other])
    assert "Matplotlib" not in (tmp_path / "none" / "results.md").read_text()
