"""The report of a study: where it is written, and that it says what was run."""

import dataclasses
import json
import pathlib
import re
import shlex

import pytest

from experiments import report, sweep
from experiments.reporting import report_files
from experiments.reporting.collect import collect
from experiments.reporting.report_files import readme
from experiments.reporting.results import Results
from experiments.study.arguments import parsed_study
from experiments.study.loading import ROOT, load_study
from roberta_jax.errors import UsageError
from tests.support import fake_runs, toy_study

TOY = toy_study.PATH


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The folder of the runs, as a relative path below a temporary folder."""
    monkeypatch.setattr(report_files, "can_draw", lambda: False)
    monkeypatch.setattr(report, "can_draw", lambda: True)
    monkeypatch.chdir(tmp_path)
    return pathlib.Path("runs of mine")


def finish(study, root, count=None):
    for number, point in enumerate(study.points()[:count]):
        fake_runs.finish(point, root, perplexity=20.0 + number)


def fail(arguments, capsys):
    """Runs the command, which must fail, and returns its message."""
    with pytest.raises(SystemExit) as stop:
        report.main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    return capsys.readouterr().err


def printed_command(text):
    (command,) = re.findall(r"```\n(python .*)\n```", text)
    return shlex.split(command)


@pytest.mark.parametrize(
    "arguments",
    [
        [f"{TOY}:quick"],
        [f"{TOY}:evaluated", "--seeds=7,3"],
        [f"{TOY}:quick", "--set=data.files=text of/it's $HOME `here`/*.txt", "--set=seq_len=24"],
        [f"{TOY}:quick", "--set=data.mixture=({'source': 'builtin', 'weight': 0.1},)"],
        [f"{TOY}:quick", "--set=eval.max_rows=none", "--set=optimizer.learning_rate=1e-05"],
        [f"{TOY}:quick", "--set=train.log_every=3", "--set=mesh.rules=(('embed', None),)"],
        ["table2:tiny", "--seeds=4"],
    ],
)
def test_the_printed_command_plans_the_same_points(arguments, root, capsys):
    parsed = sweep._parser().parse_args([*arguments, f"--out={root}"])
    study = parsed_study(parsed)
    fake_runs.begin(study.points()[0], root, 2)
    report.main([*arguments, f"--runs={root}"])
    text = (root / "report" / study.name / "README.md").read_text()
    argv = printed_command(text)
    assert argv[:3] == ["python", "-m", "experiments.sweep"]
    again = sweep._parser().parse_args(argv[3:])
    # The study's file is named from the root of the clone.
    again.study = str(ROOT / again.study) if "/" in again.study else again.study
    points = parsed_study(again).points()
    assert [point.name for point in points] == [point.name for point in study.points()]
    for one, other in zip(points, study.points(), strict=True):
        assert one.config().to_json() == other.config().to_json()
    assert again.out == str(root)


def test_absolute_paths_are_shortened_and_the_report_says_so(root, tmp_path, capsys):
    arguments = [f"{TOY}:quick", f"--set=data.files={tmp_path}/news.jsonl"]
    arguments += [f"--set=data.mixture=[{{'files': '{tmp_path}/more.jsonl'}}]"]
    study = load_study(arguments[0], [each.removeprefix("--set=") for each in arguments[1:]])
    finish(study, tmp_path / "all")
    report.main([*arguments, f"--runs={tmp_path / 'all'}", "--out=here"])
    text = (tmp_path / "here" / "README.md").read_text()
    argv = printed_command(text)
    assert "--set=data.files=/path/to/news.jsonl" in argv
    assert "--out=/path/to/all" in argv
    assert "`/path/to` stands for a folder" in text
    for path in (tmp_path / "here").iterdir():
        assert str(tmp_path) not in path.read_text()


def test_by_default_the_report_is_beside_the_runs(root, capsys):
    study = load_study(f"{TOY}:quick")
    finish(study, root, 3)
    before = {path: path.read_bytes() for path in ROOT.glob("experiments/results/*/*")}
    report.main([f"{TOY}:quick", f"--runs={root}"])
    path, missing = capsys.readouterr().out.splitlines()
    assert path == str(root / "report" / "toy" / "README.md")
    assert missing == "Unfinished: 1 of 4 runs are missing: LARGE (2x), seed 1: not begun."
    assert pathlib.Path(path).read_text().splitlines()[0] == f"**{missing}**"
    assert {path: path.read_bytes() for path in ROOT.glob("experiments/results/*/*")} == before
    finish(study, root)
    report.main([f"{TOY}:quick", f"--runs={root}"])
    assert capsys.readouterr().out == f"{path}\n"
    assert pathlib.Path(path).read_text().startswith("# toy\n")


def test_an_unfinished_report_is_not_written_to_the_committed_results(root, capsys, monkeypatch):
    study = load_study(f"{TOY}:quick")
    finish(study, root, 3)
    monkeypatch.setattr(report_files, "ROOT", pathlib.Path.cwd())
    folder = pathlib.Path("experiments/results/toy")
    arguments = [f"{TOY}:quick", f"--runs={root}", f"--out={folder}"]
    assert "1 of 4 runs are not finished" in fail(arguments, capsys)
    assert not folder.exists()
    finish(study, root)
    report.main(arguments)
    assert (folder / "README.md").exists()


def test_a_report_replaces_nothing_but_a_report_of_the_same_study(root, capsys):
    study = load_study(f"{TOY}:quick")
    finish(study, root)
    arguments = [f"{TOY}:quick", f"--runs={root}"]
    project = pathlib.Path("project")
    project.mkdir()
    (project / "README.md").write_text("mine")
    assert "which would be replaced" in fail([*arguments, f"--out={project}"], capsys)
    assert [path.read_text() for path in project.iterdir()] == ["mine"]
    report.main([*arguments, "--out=one"])
    report.main([*arguments, "--out=one"])
    other = dataclasses.replace(collect(study, root), study={"name": "other"})
    with pytest.raises(UsageError, match="has the report of the study toy"):
        report_files.write_report(other, "one")


def test_the_report_says_what_the_runs_were(root):
    study = load_study(f"{TOY}:quick", ["model.hidden_size=16", "seq_len=24"])
    finish(study, root)
    text = readme(collect(study, root), [])
    assert "| Small batch | 12 | 8 | 24 | 2,304 | 2 | 16 |" in text
    assert "| LARGE (2x) | 8 | 16 | 24 | 3,072 | 2 | 16 |" in text
    started = load_study(f"{TOY}:quick", ["init_from=/some/where/model"])
    finish(started, root)
    text = readme(collect(started, root), [])
    assert "| Small batch | 12 | 8 | 16 | 1,536 | /path/to/model |" in text


def test_the_verdicts_are_those_of_the_test(root):
    study = load_study(f"{TOY}:quick", seeds=(0, 1, 2))
    for point in study.points():
        large = point.setting != "Small batch"
        fake_runs.finish(point, root, perplexity=(30.0 if large else 20.0) * (1 + point.seed / 50))
    text = readme(collect(study, root), [])
    # The ratio of the perplexities is equal for all seeds but for rounding.
    assert "| perplexity | Small batch - LARGE (2x) | -0.4055 ± 0.0000 |" in text
    assert "| decided: Small batch is lower |" in text
    for point in study.points():
        if point.setting != "Small batch":
            fake_runs.finish(point, root, perplexity=(19.0, 22.0, 20.5)[point.seed])
    text = readme(collect(study, root), [])
    assert "(2) | " in text
    assert "| undecided |" in text
    assert "| decided" not in text


def test_settings_with_equal_results_are_a_warning(root):
    study = dataclasses.replace(
        load_study(f"{TOY}:quick"),
        settings={"static": {"masking.dupe_factor": 10}, "dynamic": {}},
        paper={},
    )
    for point in study.points():
        workdir = fake_runs.finish(point, root, perplexity=20.0 + point.seed)
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        final = {**json.loads(lines[-1]), "epochs": 9.5}
        (workdir / "metrics.jsonl").write_text("\n".join([*lines[:-1], json.dumps(final)]) + "\n")
    text = readme(collect(study, root), [])
    assert "- The settings 'static' and 'dynamic' train the same model: their masks are" in text
    assert "- The finished runs of 'static' and 'dynamic' have equal metrics, bit for bit" in text
    assert "| no difference: all values are equal |" in text


def test_perplexities_of_several_tokenizers_are_not_shown(root, tmp_path):
    study = dataclasses.replace(
        load_study(f"{TOY}:evaluated"),
        settings={"small": {}, "large": {"new_tokenizer.vocab_size": 500}},
        paper={},
    )
    for point in study.points():
        workdir = fake_runs.finish(point, root, perplexity=20.0 + point.seed)
        (workdir / "evaluations").mkdir()
        (workdir / "evaluations" / "measured.json").write_text(f'{{"records": {point.seed}}}')
    results = collect(study, root)
    assert [row["perplexity"] for row in results.table()] == ["not comparable"] * 2
    assert "0.5000" in results.table()[0]["records"]
    assert {each.metric for each in results.comparisons()} == {"records"}
    assert "The settings have different tokenizers" in readme(results, [])
    report_files.write_report(results, tmp_path / "report")
    assert not list((tmp_path / "report").glob("*.png"))
    with pytest.raises(UsageError, match="of different tokenizers are not comparable"):
        Results.from_folder(tmp_path / "report").figure()


def test_a_study_without_runs_is_an_error_with_the_command_that_runs_it(root, tmp_path, capsys):
    message = fail(
        [f"{TOY}:quick", "--seeds=5", "--set=seq_len=24", f"--runs={root}", "--out=here"], capsys
    )
    command = next(line for line in message.splitlines() if "experiments.sweep" in line)
    argv = shlex.split(command)
    assert argv[3:] == [
        "tests/support/toy_study.py:quick",
        "--seeds=5",
        f"--out={root}",
        "--set=seq_len=24",
    ]
    assert not (tmp_path / "here").exists()
    with pytest.raises(UsageError, match="no report of a study"):
        Results.from_folder(tmp_path)


def test_where_nothing_can_be_written_is_an_error(root, capsys):
    finish(load_study(f"{TOY}:quick"), root)
    pathlib.Path("file").write_text("")
    message = fail([f"{TOY}:quick", f"--runs={root}", "--out=file"], capsys)
    assert "cannot write file" in message


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("study.json", "{"),
        ("study.json", "[]"),
        ("study.json", '{"name": "toy"}'),
        ("points.csv", "setting,seed\nSmall batch,0\n"),
        ("points.csv", "\x00"),
        ("curves.csv", "setting,seed,step,tokens,seconds,loss,eval_loss,eval_perplexity\na,b,c\n"),
        ("curves.csv", ""),
        ("curves.csv", "setting,seed,step,tokens,seconds,loss,eval_loss,eval_perplexity\n"),
    ],
)
def test_a_damaged_report_is_an_error(name, text, root, tmp_path):
    finish(load_study(f"{TOY}:quick"), root)
    report_files.write_report(collect(load_study(f"{TOY}:quick"), root), tmp_path / "report")
    Results.from_folder(tmp_path / "report")
    (tmp_path / "report" / name).write_text(text)
    with pytest.raises(UsageError, match="damaged|cannot be read"):
        Results.from_folder(tmp_path / "report")
