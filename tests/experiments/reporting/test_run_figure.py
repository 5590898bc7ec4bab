"""The curves of training runs, and the command that plots them."""

import json
import os
import stat
import sys
import tomllib

import pytest

pytest.importorskip("matplotlib")

from experiments import plot_metrics
from experiments.reporting import run_figure
from experiments.study.loading import ROOT
from roberta_jax.errors import UsageError
from roberta_jax.training.metrics import FILE


def write_run(folder, *, evaluated=True, start=9.0):
    """A workdir with four records of the loss, two evaluations and n-gram baselines."""
    folder.mkdir()
    records = []
    for step in (100, 200, 300, 400):
        records.append({"step": step, run_figure.LOSS: start - step / 100, "learning_rate": 1e-3})
        if evaluated and step % 200 == 0:
            records.append({"step": step, run_figure.PERPLEXITY: 1000.0 - step})
    if evaluated:
        records.append(dict.fromkeys(run_figure.BASELINES, 500.0) | {"step": 400})
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / FILE).write_text(text + '{"step": 500, "lo')  # as after a kill
    return folder


def lines(panel):
    return {line.get_label(): line.get_xydata().tolist() for line in panel.get_lines()}


def test_each_run_is_a_curve_with_its_name(tmp_path):
    one, two = write_run(tmp_path / "one"), write_run(tmp_path / "two", start=8.0)
    loss, perplexity = run_figure.figure([one, two]).axes
    curves = lines(loss)
    assert list(curves) == [str(one), str(two)]
    assert curves[str(one)] == [[100, 8.0], [200, 7.0], [300, 6.0], [400, 5.0]]
    assert curves[str(two)][0] == [100, 7.0]
    assert lines(perplexity)[f"{one}: 600"] == [[200, 800.0], [400, 600.0]]
    # Both runs have the same baselines, which are drawn once.
    assert {"unigram model: 500", "bigram model: 500"} <= set(lines(perplexity))
    assert len(lines(perplexity)) == 4
    assert perplexity.get_yscale() == "log"
    assert all(panel.get_ylabel() and panel.get_legend() for panel in (loss, perplexity))
    assert perplexity.get_xlabel() == "step"


def test_each_score_of_fine_tuning_has_a_panel(tmp_path):
    run, other = tmp_path / "rte", write_run(tmp_path / "pretrained")
    run.mkdir()
    records = [{"step": 50, "loss": 0.7}, {"step": 100, "loss": 0.5}]
    for step, accuracy in ((50, 0.6), (100, 0.8), (150, 0.7)):
        records.append({"step": step, "eval_loss": 1.0, "eval_accuracy": accuracy, "eval_f1": 0.1})
    records.append({"step": 150, "eval_accuracy": 0.8, "best_step": 100, "finished": 1.0})
    (run / FILE).write_text("".join(json.dumps(record) + "\n" for record in records))
    loss, accuracy, f1 = run_figure.figure([run]).axes
    assert [panel.get_ylabel() for panel in (loss, accuracy, f1)] == [
        "training loss",
        "accuracy",
        "f1",
    ]
    assert lines(accuracy) == {f"{run}: 0.7": [[50, 0.6], [100, 0.8], [150, 0.7]]}
    both = run_figure.figure([run, other]).axes
    assert [panel.get_ylabel() for panel in both[1:]] == ["held-out perplexity", "accuracy", "f1"]
    assert f"{run}: none yet" in lines(both[1])
    assert f"{other}: none yet" in lines(both[2])


def test_a_run_without_evaluation_has_one_panel(tmp_path):
    one, two = write_run(tmp_path / "one", evaluated=False), write_run(tmp_path / "two")
    assert len(run_figure.figure([one]).axes) == 1
    labels = list(lines(run_figure.figure([one, two]).axes[1]))
    assert labels == [
        f"{one}: none yet",
        f"{two}: 600",
        f"unigram model: 500 ({two})",
        f"bigram model: 500 ({two})",
    ]


def test_the_command_writes_an_image(tmp_path, capsys):
    out = tmp_path / "loss.png"
    plot_metrics.main([str(write_run(tmp_path / "run")), f"--out={out}"])
    assert out.read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"{out}\n"


@pytest.mark.parametrize("out", ["nowhere/loss.png", "loss.nonsense"])
def test_bad_input_ends_with_a_message(out, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run")
    for arguments, message in (
        (["run", f"--out={out}"], f"cannot write {out}"),
        (["no"], "no/metr"),
    ):
        with pytest.raises(SystemExit) as stop:
            plot_metrics.main(arguments)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_an_empty_workdir_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="no training loss in"):
        run_figure.figure([tmp_path])


def test_without_matplotlib_the_message_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match="needs matplotlib, which the extra `plot` installs"):
        run_figure.figure([write_run(tmp_path / "run")])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert [name.partition(">")[0] for name in extras["plot"]] == ["matplotlib"]
    assert [name.partition(">")[0] for name in extras["tensorboard"]] == ["tensorboard"]
    for name in extras:  # CONTRIBUTING.md says what each is for
        assert f"`{name}`" in (ROOT / "CONTRIBUTING.md").read_text()


def test_a_device_is_not_replaced_by_a_file(tmp_path, capsys):
    """A pipe or a device can be written to, but must stay what it is."""
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    plot_metrics.write_figure(SmallFigure(), pipe)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert os.read(reader, 100) == b"picture"
    os.close(reader)


class SmallFigure:
    def savefig(self, file, **options):
        file.write(b"picture")
