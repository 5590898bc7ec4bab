"""The worker processes of a sweep."""

import subprocess
import sys

import pytest

from experiments.running import worker
from experiments.study.loading import load_study
from roberta_jax.errors import UsageError
from roberta_jax.pretraining.text_spec import read_text_spec
from tests.support import processes, toy_study


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
    monkeypatch.setattr("roberta_jax.pretraining.text.prepare", prepared.append)
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
