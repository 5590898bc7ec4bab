"""The results of a study: numbers, curves, what is missing, and the written report."""

import csv
import dataclasses
import json
import math

import numpy as np
import pytest

from tests.support import fake_runs, toy_study

pytest.importorskip("matplotlib")

from experiments import report
from experiments.reporting import report_files
from experiments.reporting.collect import MAX_RECORDS, collect, training_seconds
from experiments.reporting.results import Results, Summary
from experiments.study.loading import load_study
from roberta_jax.errors import UsageError

TOY = toy_study.PATH
PERPLEXITIES = {"Small batch": [20.5, 23.75, 21.0], "LARGE (2x)": [30.0, 34.0, 31.5]}


def toy(form="quick", seeds=(0, 1, 2)):
    return load_study(f"{TOY}:{form}", seeds=seeds)


def finish_all(study, root):
    for point in study.points():
        perplexity = PERPLEXITIES[point.setting][point.seed]
        fake_runs.finish(point, root, perplexity=perplexity, start=6.0 + point.seed)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "runs"


def test_the_numbers_equal_those_of_numpy(root):
    finish_all(toy(), root)
    results = collect(toy(), root)
    for setting, values in PERPLEXITIES.items():
        summary = results.summary(setting, "perplexity")
        assert summary.values == tuple(values)
        assert summary.mean == pytest.approx(np.mean(values), rel=1e-12)
        assert summary.deviation == pytest.approx(np.std(values, ddof=1), rel=1e-12)
        assert summary.median == np.median(values)
    assert results.table() == [
        {
            "setting": "Small batch",
            "seeds": "3/3",
            "perplexity": "21.75 ± 1.75 (21.00)",
            "perplexity, paper": "",
            "records": "not measured",
            "MNLI": "not measured",
            "MNLI, paper": "",
        },
        {
            "setting": "LARGE (2x)",
            "seeds": "3/3",
            "perplexity": "31.83 ± 2.02 (31.50)",
            "perplexity, paper": "3.99",
            "records": "not measured",
            "MNLI": "not measured",
            "MNLI, paper": "84.7",
        },
    ]


def test_without_matplotlib_the_report_has_no_plots(root, tmp_path, monkeypatch):
    finish_all(toy(), root)
    monkeypatch.setattr(report_files.importlib.util, "find_spec", lambda name: None)
    report_files.write_report(collect(toy(), root), tmp_path / "report")
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {"README.md", "points.csv", "curves.csv", "study.json"}
    assert "png" not in (tmp_path / "report" / "README.md").read_text()


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((84.25,), "84.25"),
        ((0.5, 0.25), "0.3750 ± 0.1768 (0.3750)"),
        ((1234.5, 1235.5), "1235 ± 1 (1235)"),
        ((0.0, 0.0), "0.0 ± 0.0 (0.0)"),
        ((math.inf,), "inf"),
        ((math.inf, 2.0), "inf ± nan (inf)"),
    ],
)
def test_a_summary_as_text(values, text):
    assert str(Summary(values)) == text


def test_an_incomplete_study_is_reported_with_what_is_missing(root):
    study = toy("evaluated")
    points = {(point.setting, point.seed): point for point in study.points()}
    for seed in (0, 1):
        point = points["Small batch", seed]
        workdir = fake_runs.finish(point, root, perplexity=PERPLEXITIES["Small batch"][seed])
        if not seed:
            (workdir / "evaluations").mkdir()
            (workdir / "evaluations" / "measured.json").write_text('{"records": 7}')
    fake_runs.begin(points["LARGE (2x)", 2], root, 4)
    results = collect(study, root)
    small, large = results.table()
    assert (small["seeds"], small["perplexity"]) == ("2/3", "22.12 ± 2.30 (22.12)")
    assert (small["records"], small["MNLI"]) == ("7.000, n = 1", "not measured")
    assert (large["seeds"], large["perplexity"]) == ("0/3", "no run finished")
    assert results.missing() == [
        "Small batch, seed 1: finished, but without the evaluations measured",
        "Small batch, seed 2: not begun",
        "LARGE (2x), seed 0: not begun",
        "LARGE (2x), seed 1: not begun",
        "LARGE (2x), seed 2: step 4/8",
    ]
    text = report_files.readme(results, [])
    assert text.splitlines()[0] == (
        "**Unfinished: 5 of 6 runs are missing: Small batch, seed 1: finished, but without the "
        "evaluations measured; Small batch, seed 2: not begun; LARGE (2x), seed 0: not begun; "
        "LARGE (2x), seed 1: not begun; LARGE (2x), seed 2: step 4/8.**"
    )
    assert "1 of 6 runs are finished" in text
    assert all(f"- {line}\n" in text for line in results.missing())
    labels = [line.get_label() for line in results.figure().axes[0].get_lines()]
    assert [label.split(":")[0] for label in labels] == [
        "Small batch (2 of 3 seeds)",
        "LARGE (2x) (1 of 3 seeds)",
    ]


def test_an_unfinished_seed_is_not_part_of_the_mean(root):
    study = toy()
    small = [point for point in study.points() if point.setting == "Small batch"]
    fake_runs.finish(small[0], root, perplexity=20.0, start=6.0)
    fake_runs.begin(small[1], root, 4, start=9.0)
    (line,) = collect(study, root).figure().axes[0].get_lines()
    assert line.get_xydata().tolist() == [[step, 6.0 - step / 12] for step in range(1, 13)]


def test_if_no_seed_is_finished_the_mean_has_the_steps_that_all_have(root):
    study = toy(seeds=(0, 1))
    small = [point for point in study.points() if point.setting == "Small batch"]
    fake_runs.begin(small[0], root, 7, start=6.0)
    fake_runs.begin(small[1], root, 4, start=9.0)
    (line,) = collect(study, root).figure().axes[0].get_lines()
    expected = [[step, 7.5 - step / 12] for step in range(1, 5)]
    np.testing.assert_allclose(line.get_xydata(), expected)


def test_curves_are_drawn_with_the_spread_of_the_seeds(root):
    study = toy()
    finish_all(study, root)
    results = collect(study, root)
    tokens = {"Small batch": 8 * 16, "LARGE (2x)": 16 * 16}
    steps = {"Small batch": 12, "LARGE (2x)": 8}
    for x, scale in (("steps", lambda _: 1), ("tokens", tokens.get), ("seconds", None)):
        loss, perplexity = results.figure(x).axes
        assert perplexity.get_xlabel()
        for panel, last in ((loss, None), (perplexity, PERPLEXITIES)):
            assert panel.get_ylabel()
            assert len(panel.get_lines()) == len(panel.collections) == 2
            for line, band, setting in zip(
                panel.get_lines(), panel.collections, steps, strict=True
            ):
                assert line.get_label().startswith(f"{setting}: ")
                at = line.get_xdata()[-1]
                # fake_runs writes a speed of 1000 tokens per second.
                factor = tokens[setting] / 1000 if scale is None else scale(setting)
                assert at == pytest.approx(steps[setting] * factor)
                ends = [y for x_of, y in band.get_paths()[0].vertices if x_of == at]
                if last is None:
                    end = [5.0, 6.0, 7.0]  # the losses fall by 1 from 6, 7 and 8
                else:
                    end = last[setting]
                assert line.get_ydata()[-1] == pytest.approx(np.mean(end))
                assert (min(ends), max(ends)) == pytest.approx((min(end), max(end)))
    assert perplexity.get_yscale() == "log"  # from 1000 to 20


def test_an_unknown_axis_is_an_error(root):
    finish_all(toy(), root)
    with pytest.raises(UsageError, match="one of steps, tokens, seconds"):
        collect(toy(), root).figure("hours")


def test_the_loss_is_the_masked_language_modeling_loss(root):
    study = toy()
    records = [{"step": 1, "loss": 6.0, "masked_lm_loss": 5.25, "next_sentence_loss": 0.75}]
    fake_runs.write_records(study.points()[0].workdir(root), records)
    results = collect(study, root)
    assert [row["loss"] for row in results.curves] == [5.25]
    # Seconds are computed from recorded speeds, and there are none.
    assert results.curves[0]["seconds"] is None
    with pytest.raises(UsageError, match="no curve to draw against seconds"):
        results.figure("seconds")


def test_seconds_are_summed_from_the_recorded_speeds():
    records = [
        {"step": 10, "loss": 1.0},  # without a speed: the median is 200
        {"step": 20, "loss": 1.0, "tokens_per_second": 100.0},
        {"step": 25, "eval_loss": 1.0},
        {"step": 30, "loss": 1.0, "tokens_per_second": 200.0},
        {"step": 40, "loss": 1.0, "tokens_per_second": 400.0},
        {"step": 40, "eval_loss": 1.0},
    ]
    seconds = training_seconds(records, 1000)
    assert seconds == pytest.approx({10: 50.0, 20: 150.0, 25: 175.0, 30: 200.0, 40: 225.0})


def test_long_curves_are_thinned_to_the_same_steps_for_all_seeds(root):
    study = dataclasses.replace(
        toy(seeds=(0, 1)), settings={"long": {"train.steps": 5000}}, paper={}
    )
    first, second = study.points()
    fake_runs.finish(first, root, perplexity=20.0)
    fake_runs.begin(second, root, 2500)
    rows = collect(study, root).curves
    steps = {
        seed: [row["step"] for row in rows if row["seed"] == seed and row["loss"] is not None]
        for seed in (0, 1)
    }
    assert len(steps[0]) == MAX_RECORDS + 1
    assert steps[0][-1] == 5000
    assert steps[1][:-1] == steps[0][: len(steps[1]) - 1]


def test_the_written_report_is_complete_and_can_be_read(root, tmp_path, capsys):
    finish_all(toy(), root)
    folder = tmp_path / "report"
    report.main([f"{TOY}:quick", "--seeds=0,1,2", f"--runs={root}", f"--out={folder}"])
    assert capsys.readouterr().out == f"{folder / 'README.md'}\n"
    names = {"README.md", "points.csv", "curves.csv", "study.json"}
    pictures = {"steps.png", "tokens.png", "seconds.png"}
    assert {path.name for path in folder.iterdir()} == names | pictures
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    for name in names:
        assert str(tmp_path) not in (folder / name).read_text(), name
    text = (folder / "README.md").read_text()
    for part in ("Does a larger batch help?", "Nobody 2019, Table 0", "A note.", "6 of 6 runs"):
        assert part in text
    assert "| LARGE (2x) | 3/3 | 31.83 ± 2.02 (31.50) | 3.99 | not measured |" in text
    assert all(f"({name})" in text for name in pictures)
    with open(folder / "points.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["eval_perplexity"]) for row in rows] == [
        value for values in PERPLEXITIES.values() for value in values
    ]

    collected, again = collect(toy(), root), Results.from_folder(folder)
    assert again.table() == collected.table()
    assert again.missing() == []
    assert list(again.curves) == list(collected.curves)
    assert list(again.points) == list(collected.points)
    assert again.study == json.loads(json.dumps(collected.study))
    ours, theirs = (each.figure("tokens").axes[1].get_lines() for each in (again, collected))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one.get_xydata(), other.get_xydata())
