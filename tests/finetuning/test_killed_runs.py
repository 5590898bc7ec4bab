"""Runs that are killed, at chosen and at random moments: the same bits and the same files."""

import contextlib
import json
import os
import pathlib
import random
import subprocess
import time

import pytest

from roberta_jax.finetune import finetune
from roberta_jax.finetuning import job
from roberta_jax.training import run
from roberta_jax.training.checkpoints import Checkpoints
from roberta_jax.training.job import FINISHED
from roberta_jax.training.metrics import MetricsWriter, read_metrics
from tests.support import finetuning, processes, small_tasks
from tests.support.toy_runs import Killed

# Task, and values of its config.
CASES = {
    "squad": ("squad", {}),
    "lora": ("pairs", {"adapt.lora_rank": 2}),
    "single": ("single", {"model.hidden_dropout_prob": 0.1}),
}


def config_of(folder, name, **changes):
    task, values = json.loads((folder / f"{name}.json").read_text())
    steps = {"train.epochs": None, "train.steps": 6, "train.log_every": 2, "data.num_lengths": 1}
    often = {"train.eval_every": 2, "train.checkpoint_every": 1}
    values = steps | often | values | changes
    return finetuning.small_run(task, folder / "model", folder / "cache", **values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, and the files of the tasks."""
    folder = tmp_path_factory.mktemp("killed")
    finetuning.write_model(folder / "model")
    for name, (files, changes) in CASES.items():
        (folder / f"{name} files").mkdir()
        task, values = small_tasks.TASKS[files](folder / f"{name} files")
        (folder / f"{name}.json").write_text(json.dumps((task, values | changes)))
    return folder


def contents(workdir):
    """Name -> bytes of all that a run leaves for its user."""
    kept = ("hf/", "adapter/", "predictions/", "results", "report", "confusion", "task", "config")
    names = {path: path.relative_to(workdir).as_posix() for path in workdir.rglob("*")}
    files = {name: path.read_bytes() for path, name in names.items() if path.is_file()}
    # The card's example has the path of the workdir.
    files = {name: data.replace(bytes(workdir), b"WORKDIR") for name, data in files.items()}
    assert not [name for name in files if name.endswith(".tmp")]
    return {name: data for name, data in files.items() if name.startswith(kept)}


def records(workdir):
    varying = ("tokens_per_second", "mfu")
    return [{k: v for k, v in each.items() if k not in varying} for each in read_metrics(workdir)]


def assert_equal_runs(workdir, straight):
    assert contents(workdir) == contents(straight)
    assert records(workdir) == records(straight)


# The parts of a run that write something, or evaluate; where each run is killed, in turn.
MOMENTS = (
    "after save",
    "after _evaluate",
    "before write",
    "before save",
    "after write",
    # From here on the training is finished.
    "before write_outputs",
    "after write_outputs",
    "after write_task",
    "after save_adapter",
    "before save_pretrained",
    "after save_pretrained",
    "after _add_card",
    "after record_export",
    "before the last write",
)


@pytest.fixture
def kill_at(monkeypatch):
    """A function from a moment, at which the next run raises `Killed` when it comes to it."""
    deadline, reached = [None], []

    def at(moment):
        if moment == deadline[0]:
            reached.append(moment)
            raise Killed

    def killing(name, function):
        def call(*args, **kwargs):
            part = name
            if name == "write" and FINISHED in args[2]:
                part = "the last write"
            at(f"before {part}")
            result = function(*args, **kwargs)
            at(f"after {part}")
            return result

        return call

    def save_and_wait(checkpoints, *args, save=Checkpoints.save, **kwargs):
        save(checkpoints, *args, **kwargs)
        checkpoints.wait()

    monkeypatch.setattr(Checkpoints, "save", killing("save", save_and_wait))
    monkeypatch.setattr(MetricsWriter, "write", killing("write", MetricsWriter.write))
    for name in ("_evaluate", "_add_card"):
        method = killing(name, getattr(job.Finetuning, name))
        monkeypatch.setattr(job.Finetuning, name, method)
    for name in ("write_outputs", "write_task", "save_adapter", "save_pretrained"):
        monkeypatch.setattr(job, name, killing(name, getattr(job, name)))
    monkeypatch.setattr(run, "record_export", killing("record_export", run.record_export))

    def kill_at(moment):
        deadline[0] = moment
        return reached

    return kill_at


@pytest.mark.slow
@pytest.mark.parametrize("name", ["squad", "lora"])
def test_kills_between_the_parts_of_a_run_change_no_bit(folder, tmp_path, kill_at, name):
    config = config_of(folder, name)
    finetune(config, tmp_path / "straight")
    moments = [each for each in MOMENTS if name == "lora" or "adapter" not in each]
    for moment in moments:
        reached = kill_at(moment)
        with pytest.raises(Killed):
            finetune(config, tmp_path / "run")
    assert reached == moments
    kill_at(None)
    assert finetune(config, tmp_path / "run").finished
    assert_equal_runs(tmp_path / "run", tmp_path / "straight")


# Runs in processes of their own, which are killed.


def train(folder, name, workdir):
    """Fine-tunes as the command does."""
    from roberta_jax import cli

    with cli.usage_errors():
        finetune(config_of(pathlib.Path(folder), name, **{"train.steps": 12}), workdir)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_kills_at_random_moments_change_no_bit(folder, tmp_path, name):
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    rng, workdir, kills = random.Random(seed), tmp_path / "killed", 0
    processes.run(__name__, "train", folder, name, tmp_path / "straight")
    for attempt in range(12):
        output = tmp_path / f"{attempt}.txt"
        with output.open("w") as file:
            process = subprocess.Popen(
                processes.command(__name__, "train", folder, name, workdir),
                env=processes.environment(PYTHONUNBUFFERED="1"),
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        # A kill before the run has started tests nothing; after 5 kills it may end.
        while process.poll() is None and "Step " not in output.read_text():
            time.sleep(0.05)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(None if kills >= 5 else rng.uniform(0, 8))
        if process.poll() is None:
            process.kill()
            process.wait()
            kills += 1
            continue
        assert process.returncode == 0, output.read_text()[-3000:]
        break
    assert_equal_runs(workdir, tmp_path / "straight")
