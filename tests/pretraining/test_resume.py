"""A run that is interrupted, in whatever way, ends in the same bits as one that is not."""

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

# Enough steps for a kill to hit any part of it, and dropout, so that random state counts.
STEPS = {"train.steps": 60, "train.checkpoint_every": 3, "train.eval_every": 7}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    texts.write_corpus(folder / "corpus.jsonl")
    return folder


def config_of(place, cache="cache", **changes):
    return texts.small_config(place / "corpus.jsonl", place / cache, **changes)


def model_bytes(folder):
    return (pathlib.Path(folder) / "hf" / "model.safetensors").read_bytes()


def deterministic_part(folder):
    """The records without what depends on the clock, and without means over fewer steps."""
    timed = ("tokens_per_second", "mfu", "loss")
    return [
        {key: value for key, value in record.items() if key not in timed}
        for record in read_metrics(folder)
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


@pytest.mark.parametrize("changes", [{}, PAIRS], ids=["full_sentences", "pairs"])
def test_interrupted_in_process_equals_straight(place, monkeypatch, changes):
    place /= "pairs" if changes else "full"
    config = config_of(place.parent, **changes, **{"train.per_device_batch_size": 4})
    straight = pretrain(config, place / "straight")
    polls = iter([4, 3, 9, 2, 10_000])

    def stop_requests():
        import contextlib

        left = next(polls)

        def should_stop():
            nonlocal left
            left -= 1
            return left < 0

        return contextlib.nullcontext(should_stop)

    monkeypatch.setattr(preemption, "stop_requests", stop_requests)
    stops = []
    while True:
        result = pretrain(config, place / "pieces")
        if result.finished:
            break
        stops.append(result.step)
    assert len(stops) >= 3
    assert stops[0] == 5  # where an evaluation was due, which the next call makes up for
    assert stops == sorted(stops)
    assert result.metrics == straight.metrics
    assert model_bytes(place / "pieces") == model_bytes(place / "straight")
    pieces, whole = (
        [record for record in read_metrics(place / run) if "eval_loss" in record]
        for run in ("pieces", "straight")
    )
    assert pieces == whole
    if changes:
        heads = [place / run / "hf" / "nsp_head.safetensors" for run in ("pieces", "straight")]
        assert heads[0].read_bytes() == heads[1].read_bytes()


# In processes of their own.


def arguments(place, workdir, cache, changes):
    data = config_of(place, cache).data
    overrides = {
        "data.files": data.files,
        "data.cache_dir": data.cache_dir,
        **STEPS,
        **changes,
    }
    return [str(workdir), *(f"{key}={value}" for key, value in overrides.items())]


def train(workdir, *overrides):
    """What the processes run: the small config with the overrides, as the command would."""
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


def start(place, workdir, cache="cache", devices=1, variables=None, **changes):
    return subprocess.Popen(
        processes.command(__name__, "train", *arguments(place, workdir, cache, changes)),
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


def steps_on_disk(workdir):
    folder = workdir / "checkpoints"
    names = [p.name for p in folder.iterdir()] if folder.exists() else []
    return [int(name) for name in names if name.isdigit()]


def test_sigterm_saves_and_exits_with_status_0(place):
    workdir = place / "term"
    process = start(place, workdir, **{"train.steps": 100_000})
    wait_for(process, lambda: (workdir / "metrics.jsonl").exists() and read_metrics(workdir))
    process.send_signal(signal.SIGTERM)
    out = finish(process)
    assert "Stopped at step" in out
    assert "same command continues" in out
    step = int(out.split("Stopped at step ")[1].split()[0])
    assert max(steps_on_disk(workdir)) == step > 0


@pytest.fixture(scope="module")
def straight(place):
    finish(start(place, place / "uninterrupted"))
    return place / "uninterrupted"


@pytest.mark.slow
def test_killed_at_random_moments(place, straight):
    """SIGKILL, several times a run: while preparing, starting, training, saving, exporting."""
    chance = random.Random(0)
    started = time.monotonic()
    finish(start(place, place / "timing", cache="cache_timing"))
    whole = time.monotonic() - started
    workdir, killed_at = place / "killed", []
    # Short lives first, for the preparation; then long enough ones to get anywhere.
    lives = [0.15, 0.3, 0.45, *(chance.uniform(0.5, 1.0) for _ in range(4))]
    for life in lives:
        process = start(place, workdir, cache="cache_killed")
        try:
            process.wait(timeout=life * whole)
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
        killed_at.append(max(steps_on_disk(workdir), default=0))
    finish(start(place, workdir, cache="cache_killed"))
    assert model_bytes(workdir) == model_bytes(straight), killed_at
    assert deterministic_part(workdir) == deterministic_part(straight)
    assert killed_at == sorted(killed_at)


@pytest.mark.slow
def test_killed_during_saves(place, straight):
    """SIGKILL as soon as a save has begun: its temporary folder is there, its step is not.

    A busy machine may let the save end before the signal comes, so some tries may be in vain.
    """
    workdir, caught, tries = place / "killed_saving", 0, 0
    while caught < 2 and tries < 9:
        tries += 1
        process = start(place, workdir)
        before = set(steps_on_disk(workdir))

        def saving(before=before):
            folder = workdir / "checkpoints"
            names = [p.name for p in folder.iterdir()] if folder.exists() else []
            fresh = set(steps_on_disk(workdir)) - before
            return bool(fresh) and any("tmp" in name for name in names)

        while process.poll() is None and not saving():
            pass
        process.kill()
        process.communicate()
        caught += any("tmp" in p.name for p in (workdir / "checkpoints").iterdir())
    assert caught == 2
    finish(start(place, workdir))
    assert model_bytes(workdir) == model_bytes(straight)
    assert deterministic_part(workdir) == deterministic_part(straight)


@pytest.mark.slow
def test_two_processes_train_as_one_and_stop_together(place):
    """Two processes with two devices each against one with four; SIGTERM to one stops both."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    mesh = {"mesh.fsdp": 2, "train.checkpoint_every": 20}

    def both(workdir, **changes):
        return [
            start(
                place,
                workdir,
                devices=2,
                variables={
                    "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
                    "JAX_NUM_PROCESSES": "2",
                    "JAX_PROCESS_ID": str(index),
                },
                **mesh,
                **changes,
            )
            for index in range(2)
        ]

    workers = both(place / "two_stopped", **{"train.steps": 100_000})
    wait_for(workers[1], lambda: steps_on_disk(place / "two_stopped"))
    workers[1].send_signal(signal.SIGTERM)
    first, second = (finish(worker) for worker in workers)
    assert "Stopped at step" in first
    assert "Stopped at step" not in second  # one of them speaks
    assert max(steps_on_disk(place / "two_stopped")) % 20

    for worker in both(place / "two", **{"train.steps": 12}):
        finish(worker)
    finish(start(place, place / "one", devices=4, **mesh, **{"train.steps": 12}))
    for ours, theirs in zip(read_metrics(place / "two"), read_metrics(place / "one"), strict=True):
        keys = ours.keys() - {"tokens_per_second"}
        assert keys == theirs.keys() - {"tokens_per_second"}
        assert {key: ours[key] for key in keys} == pytest.approx(
            {key: theirs[key] for key in keys}, rel=1e-4
        )
    assert (place / "two" / "hf" / "model.safetensors").exists()


def test_two_runs_do_not_share_a_workdir(place):
    workdir = place / "shared"
    process = start(place, workdir, **{"train.steps": 100_000})
    try:
        wait_for(process, lambda: (workdir / "metrics.jsonl").exists())
        with pytest.raises(UsageError, match="another run is writing"):
            pretrain(config_of(place, **{**STEPS, "train.steps": 100_000}), workdir)
    finally:
        process.kill()
        process.communicate()
