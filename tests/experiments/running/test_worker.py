"""The worker processes of a sweep."""

import dataclasses
import os
import pathlib
import subprocess
import sys
import types

import pytest

from experiments.running import worker
from experiments.study.loading import load_study
from roberta_jax.errors import UsageError
from roberta_jax.pretraining.text_spec import read_text_spec
from roberta_jax.training.workdir import WorkdirInUse
from tests.support import finetuning, processes, toy_study, toy_transfer


def test_a_worker_that_is_an_orphan_from_the_start_exits():
    # No process is its own parent.
    code = (
        "import os; from experiments.running import worker; worker.end_with(os.getpid()); print(1)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=processes.ROOT)
    assert (process.returncode, process.stdout) == (1, b"")


def test_the_check_lists_the_errors_of_all_points_with_their_seeds():
    points = load_study(f"{toy_study.PATH}:wrong").points()
    with pytest.raises(UsageError) as error:
        worker.check(points)
    first, *lines = str(error.value).splitlines()
    assert first == "nothing was started, because these points have errors:"
    assert [line.split(": ")[0] for line in lines if ", seed" in line] == [
        "no steps, seed 0 1",
        "no rate, seed 0 1",
    ]
    assert "train.steps=0" in str(error.value)
    assert "masking.rate" in str(error.value)


def test_each_text_is_prepared_once(monkeypatch):
    prepared = []

    def prepare(spec):
        prepared.append(spec)
        return types.SimpleNamespace(more=(), train=types.SimpleNamespace(num_tokens=1000))

    monkeypatch.setattr("roberta_jax.pretraining.text.prepare", prepare)
    points = load_study(toy_study.PATH).points()
    assert len(points) > 1
    worker.prepare(points)
    assert prepared == [read_text_spec(points[0].config())]


def test_texts_that_cannot_be_prepared_are_all_listed(monkeypatch):
    def prepare(spec):
        raise UsageError("the disk is full")

    monkeypatch.setattr("roberta_jax.pretraining.text.prepare", prepare)
    with pytest.raises(UsageError, match=r"have errors:\n.*: the disk is full"):
        worker.prepare(load_study(toy_study.PATH).points())


def test_static_masks_that_are_not_repeated_are_a_warning(monkeypatch, capsys):
    study = dataclasses.replace(
        load_study(toy_study.PATH),
        settings={"static": {"masking.dupe_factor": 10}, "dynamic": {}},
        paper={},
    )
    prepared = types.SimpleNamespace(more=(), train=types.SimpleNamespace(num_tokens=1))
    monkeypatch.setattr("roberta_jax.pretraining.text.prepare", lambda spec: prepared)
    seen = 12 * 8 * 16  # steps, rows, tokens
    for tokens, warning in (
        (seen // 10, "train the same model: their masks are the same in the first 10 epochs"),
        (seen // 15, "can differ only in the last 33% of the run"),
        (seen // 30, None),
    ):
        prepared.train.num_tokens = tokens + 1
        worker.prepare(study.points())
        errors = capsys.readouterr().err
        assert (warning in errors) if warning else not errors


def write_study(path, rate):
    text = pathlib.Path(toy_study.PATH).read_text()
    path.write_text(text.replace('"Small batch": {}', f'"Small batch": {{"masking.rate": {rate}}}'))


@pytest.mark.parametrize("task", ["prepare", "train"])
def test_a_study_that_was_edited_since_trains_no_other_point(task, tmp_path):
    path = tmp_path / "edited.py"
    write_study(path, 0.2)
    name = load_study(str(path)).points()[0].name
    write_study(path, 0.3)
    process = subprocess.run(
        [
            *(sys.executable, "-m", "experiments.running.worker", task, str(path)),
            *(f"--points={name}", f"--out={tmp_path / 'runs'}"),
        ],
        capture_output=True,
        text=True,
        env=processes.environment(),
    )
    assert process.returncode == 2
    assert f"error: the study has no point {name} any more: its file was changed" in process.stderr
    assert "Traceback" not in process.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["evaluate"], ["evaluate", "folder"]])
def test_a_wrong_task_is_an_error(arguments):
    process = subprocess.run(
        [sys.executable, "-m", "experiments.running.worker", *arguments],
        capture_output=True,
        text=True,
        env={key: value for key, value in os.environ.items() if key != worker.PARENT},
        cwd=processes.ROOT,
    )
    assert process.returncode == 1
    assert "To train a study, run experiments.sweep." in process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize("distributed", [False, True])
def test_a_point_that_another_process_trains(monkeypatch, tmp_path, distributed):
    """A sweep tries again later; several processes end with the message, as other runs do."""

    def in_use(config, workdir):
        raise WorkdirInUse("another run is writing to it")

    monkeypatch.setattr("roberta_jax.pretrain.pretrain", in_use)
    monkeypatch.setattr("roberta_jax.training.distributed.join_processes", lambda: True)
    point = load_study(toy_study.PATH).points()[0]
    with pytest.raises(WorkdirInUse if distributed else SystemExit) as error:
        worker.train(point, str(tmp_path), distributed)
    assert distributed or error.value.code == worker.BUSY


def test_the_check_of_fine_tuning_lists_the_errors_of_all_points():
    study = load_study(toy_transfer.PATH)  # names no model
    with pytest.raises(UsageError) as error:
        worker.check(study.points())
    first, *lines = str(error.value).splitlines()
    assert first == "nothing was started, because these points have errors:"
    assert [line.split(": ")[0] for line in lines] == [
        "RTE, pretrained, seed 0 1; RTE, random, seed 0 1"
    ]
    assert "no model to fine-tune" in lines[0]


def test_where_the_points_run_elsewhere_the_model_need_not_be_here():
    points = load_study(toy_transfer.PATH, ["init_from=not/here", "mesh.data=64"]).points()
    worker.check(points, this_machine=False)
    with pytest.raises(UsageError, match="not/here"):
        worker.check(points)
    study = load_study(toy_transfer.PATH, ["init_from=not/here", "train.batch_size=0"])
    with pytest.raises(UsageError, match="train.batch_size=0"):
        worker.check(study.points(), this_machine=False)


def test_examples_that_cannot_be_read_stop_a_sweep(tmp_path):
    finetuning.write_model(tmp_path / "model")
    finetuning.write_rte(tmp_path / "RTE")
    changes = [f"init_from={tmp_path / 'model'}", f"data.cache_dir={tmp_path / 'cache'}"]
    points = load_study(toy_transfer.PATH, changes, data=str(tmp_path)).points()
    worker.prepare(points)
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 3  # once for all points
    (tmp_path / "RTE" / "dev.tsv").write_text("index\tsentence1\n")
    with pytest.raises(UsageError, match=r"have errors:\nRTE, pretrained, seed 0: .*dev\.tsv"):
        worker.prepare(points)


def test_a_busy_workdir_of_fine_tuning_is_left_alone(monkeypatch, tmp_path):
    def finetune(config, workdir):
        assert config.task == "rte"
        raise WorkdirInUse(f"{workdir} is in use")

    monkeypatch.setattr("roberta_jax.finetune.finetune", finetune)
    with pytest.raises(SystemExit) as stop:
        worker.train(load_study(toy_transfer.PATH).points()[0], str(tmp_path))
    assert stop.value.code == worker.BUSY
