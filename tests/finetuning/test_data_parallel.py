"""Fine-tuning on several devices and by several processes: the run of one device."""

import json
import os
import pathlib
import traceback

import numpy as np
import pytest

from roberta_jax.finetune import finetune
from roberta_jax.training import distributed
from roberta_jax.training.metrics import read_metrics
from tests.support import finetuning, processes, small_tasks

NAMES = ("single", "choice", "squad")
# Rounding of sums in another order, in a few steps at the rate of `small_run`.
CLOSE = {"rtol": 2e-4, "atol": 2e-5}


def config_of(folder, name):
    task, changes = json.loads((folder / f"{name}.json").read_text())
    # Batches that do not divide the examples, and rows that only fill up the last one.
    steps = {"train.epochs": None, "train.steps": 4, "train.log_every": 1, "train.eval_every": 2}
    return finetuning.small_run(task, folder / "model", folder / "cache", **steps, **changes)


def train(folder, workdir, *names):
    """What each process runs."""
    try:
        distributed.join_processes("auto")
        for name in names:
            finetune(config_of(pathlib.Path(folder), name), pathlib.Path(workdir) / name)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, the files of the tasks, and their runs on one device, in "one"."""
    folder = tmp_path_factory.mktemp("parallel")
    finetuning.write_model(folder / "model")
    for name in NAMES:
        (folder / f"{name} files").mkdir()
        task = small_tasks.TASKS[name](folder / f"{name} files")
        (folder / f"{name}.json").write_text(json.dumps(task))
        finetune(config_of(folder, name), folder / "one" / name)
    return folder


def assert_same_run(one, other):
    """Two workdirs hold the same records, predictions and files."""
    records = [
        [{k: v for k, v in each.items() if k not in ("tokens_per_second", "mfu")} for each in run]
        for run in map(read_metrics, (one, other))
    ]
    assert len(records[0]) == len(records[1])
    for first, second in zip(*records, strict=True):
        assert first.keys() == second.keys()
        for key, value in first.items():
            np.testing.assert_allclose(second[key], value, err_msg=key, **CLOSE)
    results = [json.loads((run / "results.json").read_text()) for run in (one, other)]
    for split, values in results[0]["splits"].items():
        same = results[1]["splits"][split]
        assert (same["examples"], same["labelled"]) == (values["examples"], values["labelled"])
        np.testing.assert_allclose(same["loss"], values["loss"], **CLOSE)
    predictions = [
        [json.loads(line) for line in (run / "predictions/validation.jsonl").open()]
        for run in (one, other)
    ]
    ids = [[each["id"] for each in lines] for lines in predictions]
    assert ids[0] == ids[1]
    assert len(set(ids[0])) == len(ids[0]) == results[0]["splits"]["validation"]["examples"]
    assert files_of(one) == files_of(other)


def files_of(workdir):
    """The files of a run, without the parts that checkpoints and events are divided into."""
    names = {str(path.relative_to(workdir)) for path in workdir.rglob("*") if path.is_file()}
    return {name for name in names if not name.startswith(("tensorboard", "checkpoints", "best"))}


@pytest.mark.slow
def test_eight_devices_train_as_one(folder):
    processes.run(__name__, "train", folder, folder / "eight", *NAMES, devices=8)
    for name in NAMES:
        assert_same_run(folder / "one" / name, folder / "eight" / name)


@pytest.mark.slow
def test_two_processes_train_as_one(folder):
    """Only the first one writes."""
    processes.run_together(__name__, "train", folder, folder / "two", *NAMES, count=2)
    for name in NAMES:
        assert_same_run(folder / "one" / name, folder / "two" / name)
        events = list((folder / "two" / name / "tensorboard").iterdir())
        assert len(events) == 1
