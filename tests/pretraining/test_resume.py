"""An interrupted run that is continued ends with the same bits as an uninterrupted one."""

import contextlib
import os
import pathlib
import random
import signal
import socket
import subprocess
import time

import pytest

from roberta_jax.errors import UsageError
from roberta_jax.pretrain import pretrain
from roberta_jax.training import preemption
from roberta_jax.training.metrics import read_metrics
from tests.support import processes, texts

# Enough steps that a kill can hit any part of the run. The config has dropout, so the random state
# matters, too.
STEPS = {"train.steps": 60, "train.checkpoint_every": 3, "train.eval_every": 7}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a corpus, a cache of its prepared text, and the workdirs of these tests."""
    folder = tmp_path_factory.mktemp("resume")
    texts.write_corpus(folder / "corpus.jsonl")
    return folder


def small_config(folder, **changes):
    return texts.small_config(folder / "corpus.jsonl", folder / "cache", **changes)


def model_bytes(workdir):
    return (pathlib.Path(workdir) / "hf" / "model.safetensors").read_bytes()


def reproducible_metrics(workdir):
    """The records without speeds."""
    varying = ("tokens_per_second", "mfu")
    return [
        {key: value for key, value in record.items() if key not in varying}
        for record in read_metrics(workdir)
    ]


PAIRS = {
    "seq_len": 32,
    "data.format": "sentence_pair",
    "data.dupe_factor": 2,
    "objective.next_sentence": True,
    "model.type_vocab_size": 2,
    "masking.scheme": "span",
    "masking.dupe_factor": 3,
    "optimizer.name": "lamb",
    "eval.short_inputs": True,
}


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="full_sentences"),
        pytest.param(PAIRS, id="pairs", marks=pytest.mark.slow),
    ],
)
def test_stops_between_steps_change_no_bit(folder, tmp_path, monkeypatch, changes):
    config = small_config(folder, **changes, **{"train.per_device_batch_size": 4})
    expected = pretrain(config, tmp_path / "uninterrupted")
    # How many times `should_stop` returns False in each run, before it returns True.
    numbers_of_polls = iter([4, 3, 9, 2, 10_000])

    def stop_requests(*_):
        polls = 0
        allowed_polls = next(numbers_of_polls)

        def should_stop():
            nonlocal polls
            polls += 1
            return polls > allowed_polls

        return contextlib.nullcontext(preemption.StopRequests(should_stop))

    monkeypatch.setattr(preemption, "stop_requests", stop_requests)
    stops = []
    while True:
        result = pretrain(config, tmp_path / "interrupted")
        if result.finished:
            break
        stops.append(result.step)
    assert len(stops) >= 3
    assert stops[0] == 5  # an evaluation is due at this step; the next run makes it
    assert stops == sorted(stops)
    assert result.metrics == expected.metrics
    assert model_bytes(tmp_path / "interrupted") == model_bytes(tmp_path / "uninterrupted")
    assert reproducible_metrics(tmp_path / "interrupted") == reproducible_metrics(
        tmp_path / "uninterrupted"
    )
    if changes:
        head, expected_head = (
            (tmp_path / run / "hf" / "nsp_head.safetensors").read_bytes()
            for run in ("interrupted", "uninterrupted")
        )
        assert head == expected_head


# Runs in processes of their own.


def train(workdir, *overrides):
    """Trains with the small config and overrides such as "train.steps=3", as the command does."""
    from roberta_jax import cli

    changes = {}
    for override in overrides:
        key, _, value = override.partition("=")
        changes[key] = int(value) if value.lstrip("-").isdigit() else value
    corpus, cache = changes.pop("data.files"), changes.pop("data.cache_dir")
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        from roberta_jax.training.distributed import join_processes

        join_processes()
    with cli.usage_errors():
        pretrain(texts.small_config(corpus, cache, **changes), workdir)


def start(folder, workdir, cache="cache", devices=1, variables=None, **changes):
    """Starts a process that calls `train`."""
    overrides = {
        "data.files": folder / "corpus.jsonl",
        "data.cache_dir": folder / cache,
        **STEPS,
        **changes,
    }
    arguments = [f"{key}={value}" for key, value in overrides.items()]
    return subprocess.Popen(
        processes.command(__name__, "train", workdir, *arguments),
        env=processes.environment(devices, **(variables or {})),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, timeout=200):
    out, errors = process.communicate(timeout=timeout)
    assert process.returncode == 0, errors[-4000:]
    return out


def wait_for(process, condition, timeout=120):
    end = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, process.communicate()[1][-4000:]
        assert time.monotonic() < end
        time.sleep(0.02)


def files_in_checkpoints(workdir):
    checkpoints = workdir / "checkpoints"
    return [p.name for p in checkpoints.iterdir()] if checkpoints.exists() else []


def steps_on_disk(workdir):
    return [int(name) for name in files_in_checkpoints(workdir) if name.isdigit()]


def is_temporary(name):
    return "tmp" in name


def test_sigterm_saves_and_exits_with_status_0(folder):
    workdir = folder / "terminated"
    process = start(folder, workdir, **{"train.steps": 100_000})
    wait_for(process, lambda: (workdir / "metrics.jsonl").exists() and read_metrics(workdir))
    process.send_signal(signal.SIGTERM)
    out = finish(process)
    assert "Stopped at step" in out
    assert "same command continues" in out
    step = int(out.split("Stopped at step ")[1].split()[0])
    assert max(steps_on_disk(workdir)) == step > 0


@pytest.fixture(scope="module")
def uninterrupted(folder):
    """The workdir of a finished run."""
    finish(start(folder, folder / "uninterrupted"))
    return folder / "uninterrupted"


@pytest.mark.slow
def test_killed_at_random_moments(folder, uninterrupted):
    """SIGKILL hits a run while it prepares text, starts, trains, saves or exports."""
    rng = random.Random(0)
    started = time.monotonic()
    finish(start(folder, folder / "timing", cache="cache_timing"))
    full_time = time.monotonic() - started
    workdir, steps_when_killed = folder / "killed", []
    # The first kills hit the preparation of the text; the later ones leave time to train.
    fractions = [0.15, 0.3, 0.45, *(rng.uniform(0.5, 1.0) for _ in range(4))]
    for fraction in fractions:
        process = start(folder, workdir, cache="cache_killed")
        try:
            process.wait(timeout=fraction * full_time)
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
        steps_when_killed.append(max(steps_on_disk(workdir), default=0))
    finish(start(folder, workdir, cache="cache_killed"))
    assert model_bytes(workdir) == model_bytes(uninterrupted), steps_when_killed
    assert reproducible_metrics(workdir) == reproducible_metrics(uninterrupted)
    assert steps_when_killed == sorted(steps_when_killed)


@pytest.mark.slow
def test_killed_during_saves(folder, uninterrupted):
    """SIGKILL hits a save that has created its temporary folder and not yet renamed it.

    On a busy machine the save may end before the signal arrives, so there are several attempts.
    """
    workdir, interrupted_saves, attempts = folder / "killed_saving", 0, 0
    while interrupted_saves < 2 and attempts < 9:
        attempts += 1
        process = start(folder, workdir)
        steps_before = set(steps_on_disk(workdir))

        def saving(steps_before=steps_before):
            new_steps = set(steps_on_disk(workdir)) - steps_before
            return bool(new_steps) and any(map(is_temporary, files_in_checkpoints(workdir)))

        while process.poll() is None and not saving():
            pass
        process.kill()
        process.communicate()
        interrupted_saves += any(map(is_temporary, files_in_checkpoints(workdir)))
    assert interrupted_saves == 2
    finish(start(folder, workdir))
    assert model_bytes(workdir) == model_bytes(uninterrupted)
    assert reproducible_metrics(workdir) == reproducible_metrics(uninterrupted)


@pytest.mark.slow
def test_two_processes_train_as_one_and_stop_together(folder):
    """Two processes with two devices each equal one with four. SIGTERM to one stops both."""
    with socket.socket() as unused:
        unused.bind(("localhost", 0))
        port = unused.getsockname()[1]
    # With the same decay, the runs of two processes have the same compiled train step.
    common = {"mesh.fsdp": 2, "schedule.decay_steps": 12}
    short_run = {**common, "train.steps": 12, "train.checkpoint_every": 5}
    long_run = {**common, "train.steps": 100_000, "train.checkpoint_every": 0}

    def start_two(workdir, changes):
        return [
            start(
                folder,
                workdir,
                devices=2,
                variables={
                    "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                    "JAX_NUM_PROCESSES": "2",
                    "JAX_PROCESS_ID": str(index),
                },
                **changes,
            )
            for index in range(2)
        ]

    stopped, two, one = (folder / name for name in ("two_stopped", "two", "one"))
    workers = start_two(stopped, long_run)
    wait_for(workers[1], lambda: read_metrics(stopped))
    workers[1].send_signal(signal.SIGTERM)
    first_output, second_output = (finish(worker) for worker in workers)
    assert "Stopped at step" in first_output
    assert "Stopped at step" not in second_output  # only the first process prints
    step = int(first_output.split("Stopped at step ")[1].split()[0])
    assert steps_on_disk(stopped) == [step]  # saved because of the signal alone

    for worker in start_two(two, short_run):
        finish(worker)
    assert sorted(steps_on_disk(two)) == [10, 12]
    finish(start(folder, one, devices=4, **short_run))
    for record, expected in zip(read_metrics(two), read_metrics(one), strict=True):
        keys = record.keys() - {"tokens_per_second"}
        assert keys == expected.keys() - {"tokens_per_second"}
        assert {key: record[key] for key in keys} == pytest.approx(
            {key: expected[key] for key in keys}, rel=1e-4
        )
    assert (two / "hf" / "model.safetensors").exists()


def test_two_runs_cannot_share_a_workdir(folder):
    workdir = folder / "shared"
    process = start(folder, workdir, **{"train.steps": 100_000})
    try:
        wait_for(process, lambda: (workdir / "metrics.jsonl").exists())
        with pytest.raises(UsageError, match="another run is writing"):
            pretrain(small_config(folder, **{**STEPS, "train.steps": 100_000}), workdir)
    finally:
        process.kill()
        process.communicate()
