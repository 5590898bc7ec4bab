"""Sweeps of real, small runs: checked beforehand, run, killed, gone on with, split and printed."""

import contextlib
import json
import os
import pathlib
import random
import shlex
import socket
import subprocess
import sys
import time

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments import launch, study_files, sweep
from experiments.study_files import load_study
from experiments.study_results import collect
from tests.support import processes, texts

TOY = str(processes.ROOT / "tests" / "support" / "toy_study.py")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    texts.write_corpus(folder / "corpus.jsonl")
    return folder


def arguments(place, form, out, *others):
    return [
        f"{TOY}:{form}",
        f"--set=data.files={place / 'corpus.jsonl'}",
        f"--set=data.cache_dir={place / 'cache'}",
        f"--out={out}",
        *others,
    ]


def points_of(place, form="evaluated", seeds=None):
    changes = [f"data.files={place / 'corpus.jsonl'}"]
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


def results(place, out, form="evaluated"):
    """What the runs came to, without what depends on the clock."""
    found = {}
    for point in points_of(place, form):
        workdir = pathlib.Path(point.workdir(out))
        metrics = point.progress(out).metrics
        found[str(point)] = (metrics, (workdir / "hf" / "model.safetensors").read_bytes())
    return found


@pytest.fixture(scope="module")
def swept(place):
    """The folder of a finished sweep that nothing disturbed, and what it printed."""
    out = place / "undisturbed"
    printed, _ = run(*arguments(place, "evaluated", out, "--processes=2"))
    return out, printed


@pytest.mark.slow
def test_every_point_is_trained_and_evaluated(place, swept):
    out, printed = swept
    points = points_of(place)
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
    assert len({metrics["eval_loss"] for metrics, _ in results(place, out).values()}) == 4
    assert [cell["seeds"] for cell in collect(points[0].study, out).table()] == ["2/2", "2/2"]


@pytest.mark.slow
def test_a_finished_sweep_starts_nothing(place, swept):
    out, _ = swept
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/log.txt")}
    printed, _ = run(*arguments(place, "evaluated", out))
    assert "4 of 4 points were finished before" in printed
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/log.txt")} == before
    printed, _ = run(*arguments(place, "evaluated", out, "--list"))
    lines = printed.splitlines()
    assert len(lines) == 4
    for line, point in zip(lines, points_of(place), strict=True):
        assert line.split("  ")[0].strip() == str(point)
        assert line.endswith(f"{point.workdir(out)}  finished")


def test_all_points_are_checked_before_the_first_starts(place):
    out = place / "wrong"
    printed, errors = run(*arguments(place, "wrong", out), status=2)
    assert "no steps, seed 0 1: train.steps=0: a run has at least one step." in errors
    assert "no rate, seed 0 1: " in errors
    assert "Small batch" not in errors
    assert "Traceback" not in errors
    assert not printed
    assert not out.exists()


def test_text_that_is_not_there_is_told_before_the_first_starts(place):
    out = place / "no_text"
    _, errors = run(f"{TOY}:quick", "--set=data.files=/no/such/text", f"--out={out}", status=2)
    assert "Small batch, seed 0: " in errors
    assert "/no/such/text" in errors
    assert not out.exists()


def test_wrong_arguments_are_told(place, capsys):
    for wrong, said in (
        (["--point=none"], "no point 'none': with these --seeds and --set the study has"),
        (["--set=seq_length=3"], "unknown config key 'seq_length': did you mean seq_len?"),
        (["--shard=3/2"], "argument --shard: invalid"),
        (["--shard=1/2", "--point=a"], "not allowed with argument"),
        (["--processes=0"], "argument --processes: invalid"),
        (["--seeds=a"], "argument --seeds: invalid"),
        (["--distributed"], "--distributed takes --point"),
    ):
        with pytest.raises(SystemExit) as stop:
            sweep.main(arguments(place, "quick", place / "none", *wrong))
        assert stop.value.code == 2
        assert said in capsys.readouterr().err


@given(st.integers(1, 9), st.integers(1, 12))
def test_shards_are_disjoint_and_complete(n, seeds):
    points = load_study(f"{TOY}:quick", seeds=range(seeds)).points()
    shards = [sweep.selected(points, shard=(k, n)) for k in range(1, n + 1)]
    assert sorted(str(point) for shard in shards for point in shard) == sorted(map(str, points))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert shards == [sweep.selected(points, shard=(k, n)) for k in range(1, n + 1)]


AWKWARD = '/text of mine/$HOME/it\'s "here"/*.txt'


def printed_for(kind, capsys, *others):
    sweep.main(
        [f"{TOY}:quick", f"--set=data.files={AWKWARD}", "--seeds=3,4", *others, f"--print={kind}"]
    )
    return capsys.readouterr().out


def check_command(argv, name, out):
    """The printed command asks the sweep for the point `name` of the same study."""
    assert argv[1:3] == ["-m", "experiments.sweep"]
    parsed = sweep._parser().parse_args(argv[3:])
    assert (parsed.point, parsed.out) == (name, out)
    points = study_files.study_of(parsed).points()
    assert points[0].config().data.files == AWKWARD
    (point,) = sweep.selected(points, name=parsed.point)
    return parsed, point


def expected_points():
    return load_study(f"{TOY}:quick", [f"data.files={AWKWARD}"], [3, 4]).points()


def stub(folder, name):
    """A program that prints its arguments, one a line."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    path.chmod(0o755)
    return path


def test_local_commands_name_each_point(capsys):
    first, *lines = printed_for("local", capsys, "--out=a b").splitlines()
    assert shlex.split(first) == ["cd", str(processes.ROOT)]
    for line, point in zip(lines, expected_points(), strict=True):
        _, found = check_command(shlex.split(line), point.name, "a b")
        assert str(found) == str(point)


def test_the_slurm_script_runs_a_point_a_task(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(launch.sys, "executable", str(stub(tmp_path, "python")))
    script = tmp_path / "sweep.sbatch"
    script.write_text(printed_for("slurm", capsys, "--out=a b"))
    points = expected_points()
    assert script.read_text().startswith("#!/bin/bash\n#SBATCH")
    assert f"--array=0-{len(points) - 1}\n" in script.read_text()
    for number, point in enumerate(points):
        done = subprocess.run(
            ["bash", str(script)],
            env={**os.environ, "SLURM_ARRAY_TASK_ID": str(number)},
            capture_output=True,
            text=True,
            check=True,
        )
        check_command(["python", *done.stdout.splitlines()], point.name, "a b")


def test_tpu_commands_start_all_hosts_of_a_pod(capsys, tmp_path):
    stub(tmp_path / "bin", "gcloud")
    script = printed_for("tpu", capsys, "--out=gs://bucket/a b")
    done = subprocess.run(
        ["bash", "-c", script],
        env={
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "TPU_NAME": "my pod",
            "TPU_ZONE": "here",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    commands = [line for line in lines if line.startswith("--command=")]
    assert lines.count("--worker=all") == lines.count("my pod") == len(commands) == 4
    for command, point in zip(commands, expected_points(), strict=True):
        there = command.removeprefix("--command=")
        assert there.startswith("cd ~/roberta_jax && ")
        argv = shlex.split(there.split(" && ", 1)[1])
        parsed, _ = check_command(argv, point.name, "gs://bucket/a b")
        assert parsed.distributed
    without = subprocess.run(["bash", "-c", script], env={}, capture_output=True, text=True)
    assert "the name of the TPU" in without.stderr


def test_printing_checks_what_does_not_depend_on_the_machine(place, capsys):
    with pytest.raises(SystemExit):
        sweep.main(arguments(place, "wrong", "out", "--print=local"))
    assert "no steps, seed 0 1: train.steps=0" in capsys.readouterr().err
    # This machine has no 64 devices, and not those weights.
    pod = ["--set=mesh.data=64", "--set=init_from=gs://bucket/weights"]
    sweep.main(arguments(place, "quick", "out", "--print=local", *pod))
    assert capsys.readouterr().out.count("--point=") == 4


@pytest.mark.slow
def test_a_printed_local_command_really_runs(place, swept, capsys):
    undisturbed, _ = swept
    out = place / "by_hand"
    sweep.main(arguments(place, "evaluated", out, "--print=local"))
    cd, *lines = capsys.readouterr().out.splitlines()
    point = points_of(place)[1]
    (line,) = (line for line in lines if line.endswith(f"--point={point.name}"))
    script = f"{cd}\n{line}"
    subprocess.run(["bash", "-e", "-c", script], env=processes.environment(), check=True)
    assert [path.name for path in out.glob("[!.]*")] == [point.name]
    metrics = point.progress(out).metrics
    # The undisturbed one had one core of its own.
    assert metrics == pytest.approx(point.progress(undisturbed).metrics, rel=1e-4)


@pytest.mark.slow
def test_a_run_that_fails_leaves_the_others(place):
    out = place / "failing"
    printed, _ = run(*arguments(place, "failing", out, "--seeds=0"), status=1)
    assert "failed too large, seed 0 (status 2)" in printed
    assert "fewer than one batch (train.batch_size=4096)" in printed.replace("\n    ", " ")
    states = [str(point.progress(out)) for point in points_of(place, "failing", [0])]
    assert states == ["not begun", "finished", "finished"]
    (again,) = (line for line in printed.splitlines() if line.startswith("To go on: "))
    printed, _ = run(*shlex.split(again.removeprefix("To go on: "))[3:], status=1)
    assert "2 of 3 points were finished before" in printed


@pytest.mark.slow
def test_two_processes_train_a_point_together(place, swept):
    undisturbed, _ = swept
    out, point = place / "together", points_of(place)[0]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    pair = [
        start(
            *arguments(place, "evaluated", out, f"--point={point.name}", "--distributed"),
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
    # The same without --distributed does what is left.
    run(*arguments(place, "evaluated", out, f"--point={point.name}"))
    assert point.progress(out).finished


def trains(process):
    """Whether a process of a sweep is one that trains a point."""
    with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return "train" in process.cmdline()
    return False


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_in_the_same_bits(place, swept):
    """SIGKILL of the runner, or of one of its processes; then the same command again."""
    undisturbed, _ = swept
    chance, out = random.Random(0), place / "killed"
    command = arguments(place, "evaluated", out, "--processes=2")
    command[2] = f"--set=data.cache_dir={place / 'cache_killed'}"
    kills = {"runner": 0, "worker": 0}
    for victim in ("worker", "runner", "runner", "worker", "worker", "runner"):
        process = start(*command)
        trainer = None
        while trainer is None and process.poll() is None:
            trainer = next(filter(trains, psutil.Process(process.pid).children()), None)
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
    ours, theirs = results(place, out), results(place, undisturbed)
    assert ours.keys() == theirs.keys()
    for point, (metrics, weights) in ours.items():
        assert (point, metrics) == (point, theirs[point][0])
        assert weights == theirs[point][1], point
