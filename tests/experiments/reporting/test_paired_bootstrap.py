"""Intervals over seeds and examples, and the report of a study of fine-tuning."""

import dataclasses
import json

import numpy as np
import pytest

from experiments.reporting.collect import collect
from experiments.reporting.paired_bootstrap import paired_intervals, two_way_interval
from experiments.reporting.report_files import readme, write_report
from experiments.reporting.results import Results
from experiments.running import worker
from experiments.study.loading import load_study
from roberta_jax.finetuning import prepare
from roberta_jax.finetuning.spec import read_spec
from tests.support import fake_runs, finetuning, toy_transfer

EXAMPLES = 20  # of RTE's development set, as `write_rte` writes it


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transfer")
    finetuning.write_model(folder / "model")
    finetuning.write_rte(folder / "data" / "RTE")
    return folder


def study_of(folder, form="quick"):
    changes = [f"init_from={folder / 'model'}", f"data.cache_dir={folder / 'cache'}"]
    return load_study(f"{toy_transfer.PATH}:{form}", changes, data=str(folder / "data"))


def finish(point, root, correct):
    """Writes the workdir of a finished run whose first `correct` answers are right."""
    examples = prepare.prepare(read_spec(point.config())).validation.examples
    other = {"entailment": "not_entailment", "not_entailment": "entailment"}
    lines = [
        {"id": each.id, "prediction": each.label if number < correct else other[each.label]}
        for number, each in enumerate(examples)
    ]
    workdir = fake_runs.finish(point, root, perplexity=2.0)
    (workdir / "predictions").mkdir(exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (workdir / "predictions" / "validation.jsonl").write_text(text)
    split = {"scores": {"accuracy": correct / EXAMPLES}, "baseline": {"accuracy": 0.5}}
    results = {"metrics": ["accuracy"], "kind": "classification", "splits": {"validation": split}}
    (workdir / "results.json").write_text(json.dumps(results))


def finish_all(study, root, **correct):
    for point in study.points():
        finish(point, root, correct[point.setting.rpartition(" ")[2]] + point.seed)


def test_an_interval_counts_examples_and_seeds():
    rng = np.random.default_rng(0)
    of_examples = rng.normal(size=(4000, 1)).repeat(3, axis=1)  # the seeds agree
    low, high = two_way_interval(of_examples, rng)
    assert (low, high) == pytest.approx((-1.96, 1.96), abs=0.15)
    of_seeds = np.array([[-1.0, 0.0, 4.0]]).repeat(4000, axis=0)  # the examples agree
    low, high = two_way_interval(of_seeds, rng)
    assert (low, high) == pytest.approx((-1.0, 4.0), abs=0.01)
    # The variances of the mean add: 1 of the examples, and a third of that of the three seeds.
    low, high = two_way_interval(of_examples + of_seeds, rng)
    variance = 1 + (17 / 3 - 1) / 3
    assert high - low == pytest.approx(2 * 1.96 * variance**0.5, rel=0.1)


def test_runs_that_answer_alike_do_not_differ(folder, tmp_path):
    study = study_of(folder)
    finish_all(study, tmp_path, pretrained=12, random=12)
    ((row,), problems) = paired_intervals(study, tmp_path)
    assert problems == []
    assert (row["mean"], row["low"], row["high"]) == (0.0, 0.0, 0.0)


def test_the_difference_of_two_settings(folder, tmp_path):
    study = study_of(folder)
    finish_all(study, tmp_path, pretrained=15, random=9)
    ((row,), _) = paired_intervals(study, tmp_path)
    names = {"task": "RTE", "metric": "accuracy"}
    names |= {"one": "RTE, pretrained", "other": "RTE, random", "seeds": 2, "examples": EXAMPLES}
    assert {key: row[key] for key in names} == names
    assert row["mean"] == pytest.approx(30.0)  # 6 of 20 examples
    # Answers differ on six of the examples; a binomial proportion has this interval.
    assert 5 < row["low"] < 15
    assert 45 < row["high"] < 55


def test_only_seeds_that_both_settings_have_are_compared(folder, tmp_path):
    study = study_of(folder)
    one, other, more, _ = study.points()
    finish(one, tmp_path, 15)
    finish(more, tmp_path, 15)
    assert paired_intervals(study, tmp_path) == ([], [])
    finish(other, tmp_path, 9)
    ((row,), _) = paired_intervals(study, tmp_path)
    assert row["seeds"] == 1


def test_predictions_for_other_examples_are_a_problem(folder, tmp_path):
    study = study_of(folder)
    finish_all(study, tmp_path, pretrained=15, random=9)
    path = study.points()[0].workdir(tmp_path) / "predictions" / "validation.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[1:]) + "\n")
    rows, problems = paired_intervals(study, tmp_path)
    assert rows == []
    assert "evaluated on other examples" in problems[0]
    path.unlink()
    assert "cannot be read" in paired_intervals(study, tmp_path)[1][0]


def test_the_report_of_a_comparison(folder, tmp_path):
    study = study_of(folder)
    finish_all(study, tmp_path / "runs", pretrained=15, random=9)
    results = collect(study, tmp_path / "runs")
    text = readme(results, [])
    assert "| RTE, pretrained | 2/2 | 77.50 ± 3.54 (77.50) | 50.00 ± 0.00 (50.00) |" in text
    assert "| RTE | RTE, pretrained - RTE, random | +30.0000 ± 0.0000 |" in text
    assert "| RTE | accuracy | RTE, pretrained - RTE, random | +30.00 | +" in text
    assert "random values" in text
    assert str(folder) not in text
    assert "--data=/path/to/data" in text
    write_report(results, tmp_path / "report")
    again = Results.from_folder(tmp_path / "report")
    assert readme(again, []) == text
    assert again.best() == []


def test_the_report_of_a_sweep(folder, tmp_path):
    study = study_of(folder, "sweep")
    points = {(point.setting, point.seed): point for point in study.points()}
    for name, seed, correct in (("low", 0, 10), ("low", 1, 20), ("high", 0, 14), ("high", 1, 14)):
        finish(points[name, seed], tmp_path, correct)
    results = collect(study, tmp_path)
    (row,) = results.best()
    assert row["best setting"] == "low"  # its median is 75, that of the other 70
    assert (row["seeds"], row["settings measured"], row["card"]) == ("2/2", "2/2", "86.6")
    assert results.comparisons() == []
    text = readme(results, [])
    assert text.index("## Best setting of each task") < text.index("## All settings")
    assert "Nobody 2019" in text


def test_scores_that_a_task_does_not_have_are_no_gaps(folder, tmp_path):
    study = dataclasses.replace(study_of(folder), columns={"score": "score", "F1": "validation.f1"})
    assert {row["F1"] for row in _table(study, tmp_path, finished=0)} == {"no run finished"}
    assert [row["F1"] for row in _table(study, tmp_path, finished=1)] == ["–", "no run finished"]


def _table(study, root, finished):
    fake_runs.begin(study.points()[-1], root, 3)
    for point in study.points()[:finished]:
        finish(point, root, 12)
    return collect(study, root).table()


def test_the_best_setting_before_any_run_is_finished(folder, tmp_path):
    study = study_of(folder, "sweep")
    fake_runs.begin(study.points()[0], tmp_path, 3)
    (row,) = collect(study, tmp_path).best()
    assert (row["best setting"], row["settings measured"]) == ("no run finished", "0/2")


@pytest.mark.slow
def test_a_study_of_fine_tuning_from_start_to_report(folder, tmp_path):
    study = study_of(folder)
    worker.prepare(study.points())
    for point in study.points():
        worker.train(point, str(tmp_path))
        assert point.progress(tmp_path).finished
    results = collect(study, tmp_path)
    assert results.missing() == []
    assert results.equal_settings() == []
    (row,) = results.study["intervals"]
    assert (row["seeds"], row["examples"]) == (2, EXAMPLES)
    for heading in ("score", "majority"):
        assert results.summary("RTE, random", heading) is not None
    # The mean of the table is that of the intervals, which come from the predictions.
    means = [results.summary(name, "score").mean for name in (row["one"], row["other"])]
    assert row["mean"] == pytest.approx(means[0] - means[1])
