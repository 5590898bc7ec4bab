"""Sweeps of small runs that train: checked, run, killed, continued and distributed."""

import contextlib
import json
import pathlib
import random
import shlex
import socket
import subprocess
import sys
import time

import psutil
import pytest

from experiments import sweep
from experiments.reporting.collect import collect
from experiments.study.loading import load_study
from tests.support import processes, texts, toy_study

TOY = toy_study.PATH


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    texts.write_corpus(folder / "corpus.jsonl")
    return folder


def arguments(folder, form, out, *others):
    return [
        f"{TOY}:{form}",
        f"--set=data.files={folder / 'corpus.jsonl'}",
        f"--set=data.cache_dir={folder / 'cache'}",
        f"--out={out}",
        *others,
    ]


def points_of(folder, form="evaluated", seeds=None):
    changes = [f"data.files={folder / 'corpus.jsonl'}"]
    return load_study(f"{TOY}:{form}", changes, seeds).points()


def start(*arguments, **variables):
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.sweep", *arguments],
        env=processes.environment(**variables),
        cwd=processes.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments, status=0, **variables):
    process = start(*arguments, **variables)
    out, errors = process.communicate(timeout=400)
    assert process.returncode == status, out + errors
    return out, errors


def results(folder, out, form="evaluated"):
    """Returns the final metrics and the weights of each point."""
    outcomes = {}
    for point in points_of(folder, form):
        workdir = pathlib.Path(point.workdir(out))
        metrics = point.progress(out).metrics
        outcomes[str(point)] = (metrics, (workdir / "hf" / "model.safetensors").read_bytes())
    return outcomes


@pytest.fixture(scope="module")
def swept(folder):
    """The folder of a finished sweep that was not disturbed, and its output."""
    out = folder / "undisturbed"
    printed, _ = run(*arguments(folder, "evaluated", out, "--processes=2"))
    return out, printed


@pytest.mark.slow
def test_every_point_is_trained_and_evaluated(folder, swept):
    out, printed = swept
    points = points_of(folder)
    assert len(points) == 4
    for point in points:
        progress = point.progress(out)
        assert progress.finished
        assert progress.metrics["measured.seed"] == point.seed
        saved = json.loads((point.workdir(out) / "config.json").read_text())
        assert (saved["seed"], saved["train"]["batch_size"]) == (
            point.seed,
            16 if point.setting == "LARGE (2x)" else 8,
        )
        assert f"finished {point}, in" in printed
    assert "finished: 4\n" in printed
    assert len({metrics["eval_loss"] for metrics, _ in results(folder, out).values()}) == 4
    assert [cell["seeds"] for cell in collect(points[0].study, out).table()] == ["2/2", "2/2"]


@pytest.mark.slow
def test_a_finished_sweep_starts_nothing(folder, swept):
    out, _ = swept
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/log.txt")}
    printed, _ = run(*arguments(folder, "evaluated", out))
    assert "4 of 4 points were finished before" in printed
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/log.txt")} == before
    printed, _ = run(*arguments(folder, "evaluated", out, "--list"))
    lines = printed.splitlines()
    assert len(lines) == 4
    for line, point in zip(lines, points_of(folder), strict=True):
        assert line.split("  ")[0].strip() == str(point)
        assert line.endswith(f"{point.workdir(out)}  finished")


def test_all_points_are_checked_before_the_first_starts(folder, capfd):
    out = folder / "wrong"
    with pytest.raises(SystemExit) as stop:
        sweep.main(arguments(folder, "wrong", out))
    assert stop.value.code == 2
    printed, errors = capfd.readouterr()
    assert "no steps, seed 0 1: --config.train.steps=0: give a whole number from 1 to " in errors
    assert "no rate, seed 0 1: " in errors
    assert "Small batch" not in errors
    assert "Traceback" not in errors
    assert not printed
    assert not out.exists()


def test_missing_text_is_reported_before_the_first_point_starts(folder, capfd):
    out = folder / "no_text"
    with pytest.raises(SystemExit) as stop:
        sweep.main([f"{TOY}:quick", "--set=data.files=/no/such/text", f"--out={out}"])
    assert stop.value.code == 2
    errors = capfd.readouterr().err
    assert "Small batch, seed 0: " in errors
    assert "/no/such/text" in errors
    assert not out.exists()


def test_wrong_arguments_are_errors(folder, capsys):
    for wrong, message in (
        (
            ["--point=none"],
            "--point=none: no such point. With these --seeds and --set the study",
        ),
        (["--set=seq_length=3"], "unknown config key 'seq_length': did you mean seq_len?"),
        (["--shard=3/2"], "argument --shard: invalid"),
        (["--shard=1/2", "--point=a"], "not allowed with argument"),
        (["--processes=0"], "argument --processes: invalid"),
        (["--seeds=a"], "argument --seeds: invalid"),
        (["--distributed"], "--distributed takes --point"),
    ):
        with pytest.raises(SystemExit) as stop:
            sweep.main(arguments(folder, "quick", folder / "none", *wrong))
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_printed_local_command_really_runs(folder, swept, capsys):
    undisturbed, _ = swept
    out = folder / "by_hand"
    sweep.main(arguments(folder, "evaluated", out, "--print=local"))
    cd, *lines = capsys.readouterr().out.splitlines()
    point = points_of(folder)[1]
    (line,) = (line for line in lines if line.endswith(f"--point={point.name}"))
    script = f"{cd}\n{line}"
    subprocess.run(["bash", "-e", "-c", script], env=processes.environment(), check=True)
    assert [path.name for path in out.glob("[!.]*")] == [point.name]
    metrics = point.progress(out).metrics
    # The undisturbed sweep ran on another number of cores.
    assert metrics == pytest.approx(point.progress(undisturbed).metrics, rel=1e-4)


@pytest.mark.slow
def test_the_other_points_run_if_one_fails(folder):
    out = folder / "failing"
    printed, _ = run(*arguments(folder, "failing", out, "--seeds=0"), status=1)
    assert "failed too large, seed 0 (status 2)" in printed
    assert "fewer than one batch (--config.train.batch_size=4096)" in printed.replace("\n    ", " ")
    states = [str(point.progress(out)) for point in points_of(folder, "failing", [0])]
    assert states == ["not begun", "finished", "finished"]
    (again,) = (line for line in printed.splitlines() if line.startswith("To continue: "))
    printed, _ = run(*shlex.split(again.removeprefix("To continue: "))[3:], status=1)
    assert "2 of 3 points were finished before" in printed


@pytest.mark.slow
def test_two_processes_train_a_point_together(folder, swept):
    undisturbed, _ = swept
    out, point = folder / "together", points_of(folder)[0]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    pair = [
        start(
            *arguments(folder, "evaluated", out, f"--point={point.name}", "--distributed"),
            JAX_COORDINATOR_ADDRESS=f"localhost:{port}",
            JAX_NUM_PROCESSES="2",
            JAX_PROCESS_ID=str(index),
        )
        for index in range(2)
    ]
    for process in pair:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    assert point.progress(out).missing == ("measured",)
    for key, value in point.progress(out).metrics.items():
        assert value == pytest.approx(point.progress(undisturbed).metrics[key], rel=1e-4)
    # Without --distributed the same command runs the evaluation that is left.
    run(*arguments(folder, "evaluated", out, f"--point={point.name}"))
    assert point.progress(out).finished


def is_training(process):
    """Whether a child process of a sweep trains a point."""
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return "train" in process.cmdline()
    return False


@pytest.mark.slow
def test_a_sweep_killed_at_random_moments_ends_with_the_same_bits(folder, swept):
    """Kills the runner or one of its processes with SIGKILL, then runs the command again."""
    undisturbed, _ = swept
    chance, out = random.Random(0), folder / "killed"
    command = arguments(folder, "evaluated", out, "--processes=2")
    command[2] = f"--set=data.cache_dir={folder / 'cache_killed'}"
    kills = {"runner": 0, "worker": 0}
    for victim in ("worker", "runner", "runner", "worker", "worker", "runner"):
        process = start(*command)
        trainer = None
        while trainer is None and process.poll() is None:
            trainer = next(filter(is_training, psutil.Process(process.pid).children()), None)
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 6))  # importing, compiling, training, saving
        if victim == "worker" and trainer is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                trainer.kill()
                kills["worker"] += 1
            time.sleep(chance.uniform(0, 2))
        elif process.poll() is None:
            kills["runner"] += 1
        process.kill()
        process.communicate()
    assert min(kills.values())
    run(*command)
    ours, theirs = results(folder, out), results(folder, undisturbed)
    assert ours.keys() == theirs.keys()
    for point, (metrics, weights) in ours.items():
        assert (point, metrics) == (point, theirs[point][0])
        assert weights == theirs[point][1], point
