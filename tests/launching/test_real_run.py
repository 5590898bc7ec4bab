"""A training of two processes under the launcher, one of which is killed or stops to answer."""

import signal
import subprocess
import sys
import time

import psutil
import pytest

from configs.pretrain import get_config
from roberta_jax.dotted_keys import flatten
from roberta_jax.launching.environment import free_port, process_variables
from roberta_jax.training.metrics import read_metrics
from tests.support import processes, texts

# Long enough that a signal hits it between two checkpoints.
STEPS = {"train.steps": 120, "train.checkpoint_every": 5, "train.eval_every": 40}


def command(folder, workdir):
    """Returns the command line of the training with the small config."""
    small = flatten(texts.small_config(folder / "corpus.jsonl", folder / "cache", **STEPS))
    defaults = flatten(get_config("tiny"))
    return [
        *("python", "-m", "roberta_jax.pretrain", "--config=configs/pretrain.py:tiny"),
        f"--workdir={workdir}",
        *(f"--config.{key}={value}" for key, value in small.items() if value != defaults[key]),
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("launched")
    texts.write_corpus(folder / "corpus.jsonl")
    return folder


def start(folder, workdir, *options, **variables):
    options = ["--backoff=0.1", *(options or ["--processes=2"])]
    return subprocess.Popen(
        [sys.executable, "-m", "roberta_jax.launch", *options, "--", *command(folder, workdir)],
        cwd=processes.ROOT,
        env=processes.environment(JAX_COMPILATION_CACHE_DIR=str(folder / "compiled"), **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_steps(supervisor, workdir, step=12):
    """Waits until the run has made some steps."""
    deadline = time.monotonic() + 400
    while max((record["step"] for record in read_metrics(workdir)), default=0) < step:
        assert supervisor.poll() is None, supervisor.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def send(supervisor, workdir, index, number):
    """Sends a signal to a process in the middle of the run."""
    wait_for_steps(supervisor, workdir)
    for child in psutil.Process(supervisor.pid).children():
        if child.environ().get("JAX_PROCESS_ID") == str(index):
            child.send_signal(number)


def finished(supervisor, workdir):
    """Waits for the end, and returns the output, the model's bytes and the metrics."""
    output, _ = supervisor.communicate(timeout=400)
    assert supervisor.returncode == 0, output
    varying = ("tokens_per_second", "mfu")
    metrics = [
        {key: value for key, value in record.items() if key not in varying}
        for record in read_metrics(workdir)
    ]
    return output, (workdir / "hf" / "model.safetensors").read_bytes(), metrics


@pytest.fixture(scope="module")
def uninterrupted(folder):
    workdir = folder / "uninterrupted"
    output, *result = finished(start(folder, workdir), workdir)
    assert "launch:" not in output
    assert not (workdir / "launch").exists()
    return result


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_a_run_one_of_whose_processes_is_killed_ends_with_the_same_bits(
    folder, uninterrupted, index
):
    workdir = folder / f"killed-{index}"
    supervisor = start(folder, workdir)
    send(supervisor, workdir, index, signal.SIGKILL)
    output, *result = finished(supervisor, workdir)
    assert result == uninterrupted
    assert f"launch: process {index} was ended by SIGKILL" in output
    assert output.count("Continuing from the checkpoint of step ") == 1
    (crash,) = (workdir / "launch").glob("crash-*.txt")
    assert "newest checkpoint: step " in crash.read_text()


@pytest.mark.slow
def test_a_run_one_of_whose_processes_hangs_ends_with_the_same_bits(folder, uninterrupted):
    workdir = folder / "hung"
    supervisor = start(folder, workdir, "--processes=2", "--stalled_after=90")
    send(supervisor, workdir, 1, signal.SIGSTOP)
    output, *result = finished(supervisor, workdir)
    assert result == uninterrupted
    assert "launch: " in output
    assert output.count("Continuing from the checkpoint of step ") == 1


@pytest.mark.slow
def test_sigterm_to_the_launcher_saves_and_the_same_command_continues(folder, uninterrupted):
    workdir = folder / "stopped"
    supervisor = start(folder, workdir)
    wait_for_steps(supervisor, workdir)
    supervisor.terminate()
    output, _ = supervisor.communicate(timeout=200)
    assert supervisor.returncode == 143, output
    assert "launch: restart" not in output
    _, *result = finished(start(folder, workdir), workdir)
    assert result == uninterrupted


@pytest.mark.slow
def test_the_launchers_of_two_hosts_restart_when_one_process_is_killed(folder, uninterrupted):
    """Each host has a launcher of its own, which only sees its own process."""
    workdir = folder / "hosts"
    port = free_port()
    first, second = (
        start(folder, workdir, "--max_restarts=5", **process_variables(index, 2, port, 0))
        for index in range(2)
    )
    wait_for_steps(first, workdir)
    (process,) = psutil.Process(second.pid).children()
    process.kill()
    output, *result = finished(first, workdir)
    assert result == uninterrupted
    assert "launch: restart 1 of 5 in " in output
    assert "launch: the process was ended by SIGKILL" in finished(second, workdir)[0]
