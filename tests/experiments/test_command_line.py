"""How the commands end: by Ctrl-C, by a reader that has gone, on a full disk."""

import os
import signal
import subprocess
import sys
import time

import pytest

from experiments import command_line, sweep
from experiments.running.runner import Runner
from experiments.study.loading import load_study
from roberta_jax.errors import UsageError
from tests.support import fake_runs, processes, toy_study

TOY = f"{toy_study.PATH}:quick"


def start(*arguments, module="experiments.sweep", **options):
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env=processes.environment(),
        cwd=processes.ROOT,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UsageError("wrong"), 2, "error: wrong\n"),
        (
            OSError(28, "No space left on device", "a/b"),
            2,
            "error: a/b: No space left on device.\n",
        ),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
    ],
)
def test_errors_end_the_command_with_a_message(error, status, message, capsys):
    with pytest.raises(SystemExit) as stop, command_line.command():
        raise error
    assert stop.value.code == status
    assert capsys.readouterr().err == message
    with pytest.raises(ZeroDivisionError), command_line.command():  # a bug keeps its traceback
        _ = 1 / 0


@pytest.mark.parametrize("action", ["--list", "--print=slurm", "--print=tpu"])
def test_a_reader_that_has_gone_is_no_error(action, tmp_path):
    process = start(TOY, f"--out={tmp_path}", action, stdout=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 141


def test_a_path_that_is_not_utf8_can_be_printed(tmp_path):
    out = os.fsdecode(b"\xff")
    result = subprocess.run(
        [sys.executable, "-m", "experiments.sweep", TOY, f"--out={out}", "--list"],
        env=processes.environment(),
        cwd=processes.ROOT,
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "\\udcff/small-batch-seed0-" in result.stdout


def test_a_file_as_the_runs_folder_is_refused_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(Runner, "prepare", lambda *_: pytest.fail("a process was started"))
    (tmp_path / "file").write_text("text")
    with pytest.raises(SystemExit) as stop:
        sweep.main([TOY, f"--out={tmp_path / 'file'}"])
    assert stop.value.code == 2
    assert (tmp_path / "file").read_text() == "text"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("points", ["some finished", "none"])
def test_a_stopped_sweep_says_so_once(number, status, points, tmp_path, monkeypatch, capsys):
    """The processes are those of `tests/experiments/running`; here the command is tested."""
    study = load_study(TOY)
    if points != "none":
        fake_runs.finish(study.points()[0], tmp_path, perplexity=20.0)

    def loop(runner):
        os.kill(os.getpid(), number)

    monkeypatch.setattr(Runner, "prepare", lambda *_: 0)
    monkeypatch.setattr(Runner, "_loop", loop)
    with pytest.raises(SystemExit) as stop:
        sweep.main([TOY, f"--out={tmp_path}", "--processes=2"])
    assert stop.value.code == status
    output = capsys.readouterr().out
    assert output.count("To continue: python -m experiments.sweep") == 1
    assert f"--out={tmp_path} --processes=2" in output


def test_ctrl_c_while_preparing_ends_with_130(tmp_path):
    process = start(TOY, f"--out={tmp_path / 'runs'}", "--set=data.files=x", stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    children = f"/proc/{process.pid}/task/{process.pid}/children"
    if not os.path.exists(children):
        process.kill()
        pytest.skip("this system does not list child processes")
    while time.monotonic() < deadline and process.poll() is None:
        with open(children) as file:
            if file.read().strip():
                break
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert output.splitlines()[0] == "Stopped before the first point."
    assert not (tmp_path / "runs").exists()


def test_more_processes_than_points_are_not_planned(tmp_path, monkeypatch):
    planned = []

    class Recorder(Runner):
        def __init__(self, *arguments, processes):
            planned.append(processes)
            super().__init__(*arguments, processes=processes)

        def prepare(self, points):
            return 2

    monkeypatch.setattr(sweep, "Runner", Recorder)
    with pytest.raises(SystemExit):
        sweep.main([TOY, f"--out={tmp_path}", f"--processes={10**12}"])
    assert planned == [4]
