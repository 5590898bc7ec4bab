"""Runs of the toy model: new, continued, finished, interrupted, and on other data."""

import contextlib
import dataclasses
import itertools
import json
import math
import shutil

import jax
import numpy as np
import pytest

from roberta_jax.errors import UsageError
from roberta_jax.training import preemption, run
from roberta_jax.training.divergence import Diverged
from roberta_jax.training.metrics import read_metrics
from tests.support import toy
from tests.support.toy_runs import (
    BATCH,
    CONFIG,
    STEPS,
    Killed,
    assert_same_export,
    exported,
    reproducible,
    start,
)


def test_a_new_run_trains_evaluates_and_exports(tmp_path, spec, job_factory, capsys):
    calls = []
    result = start(tmp_path / "run", spec, job_factory(calls))
    assert calls == ["make_job", "evaluate", "evaluate", "export"]
    assert (result.start, result.step, result.finished) == (0, STEPS, True)
    assert result.metrics.keys() == {"eval_loss", "epochs"}
    assert read_metrics(tmp_path / "run")[-1].items() >= result.metrics.items()
    assert run.finished_metrics(tmp_path / "run", STEPS) == result.metrics
    assert run.finished_metrics(tmp_path / "run", STEPS + 1) is None
    printed = capsys.readouterr().out
    assert "at step 0\n" in printed
    assert f"held-out loss {result.metrics['eval_loss']:.3f}" in printed
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == CONFIG


@pytest.mark.parametrize("value", ["Stop", "", None])
def test_an_unknown_way_to_treat_damage_is_refused_at_once(tmp_path, spec, job_factory, value):
    with pytest.raises(UsageError, match=r"on_damage=.* is not one of stop, older\."):
        run.run(tmp_path / "run", spec, job_factory, config=CONFIG, may_change=(), on_damage=value)
    assert not (tmp_path / "run").exists()


def test_a_finished_run_does_not_call_make_job(tmp_path, spec, job_factory):
    first = start(tmp_path / "run", spec, job_factory())
    calls = []
    again = start(tmp_path / "run", spec, job_factory(calls))
    assert not calls
    assert (again.start, again.step, again.metrics) == (STEPS, STEPS, first.metrics)


def test_a_final_evaluation_that_is_not_finite_is_an_error(tmp_path, spec, job_factory):
    """The model is not exported, and the run has not finished."""
    results = iter([1.0, math.nan])
    make_job = job_factory(evaluate=lambda *_: {"eval_loss": next(results)})
    with pytest.raises(Diverged, match=rf"step {STEPS} the evaluation is not finite"):
        start(tmp_path / "run", spec, make_job)
    assert not (tmp_path / "run" / run.EXPORT).exists()
    assert run.finished_metrics(tmp_path / "run", STEPS) is None


def test_a_deleted_export_is_written_again_without_an_evaluation(tmp_path, spec, job_factory):
    first = start(tmp_path / "run", spec, job_factory())
    before = exported(tmp_path / "run")
    for file in (tmp_path / "run" / run.EXPORT).iterdir():
        file.unlink()
    (tmp_path / "run" / run.EXPORT).rmdir()
    calls = []
    again = start(tmp_path / "run", spec, job_factory(calls))
    assert calls == ["make_job", "export"]
    assert again.metrics == first.metrics
    jax.tree.map(np.testing.assert_array_equal, before, exported(tmp_path / "run"))


def test_an_interrupted_run_equals_an_uninterrupted_one(tmp_path, spec, job_factory):
    start(tmp_path / "uninterrupted", spec, job_factory())

    def batches_that_fail(step):
        for number, batch in enumerate(toy.batches(spec.mesh, BATCH)(step), start=step):
            if number == 4:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "run", spec, job_factory(batches=batches_that_fail))
    result = start(tmp_path / "run", spec, job_factory())
    assert (result.start, result.finished) == (4, True)
    expected = exported(tmp_path / "uninterrupted")
    jax.tree.map(np.testing.assert_array_equal, expected, exported(tmp_path / "run"))


def test_pretrained_parameters_are_read_for_a_new_run_only(tmp_path, spec, job_factory):
    ones = jax.tree.map(
        lambda x: np.ones(x.value.shape, np.float32),
        toy.init_params(),
        is_leaf=lambda x: hasattr(x, "value"),
    )
    reads = []

    def pretrained():
        reads.append(1)
        return ones

    make_job = job_factory(pretrained_params=pretrained)
    start(tmp_path / "run", dataclasses.replace(spec, steps=2), make_job)
    assert len(reads) == 1
    start(tmp_path / "run", spec, make_job)
    assert len(reads) == 1  # the second call continues from a checkpoint
    kernel = exported(tmp_path / "run")["kernel"]
    assert np.abs(kernel - 1).max() < 0.1


def test_checkpoints_of_other_data_are_refused(tmp_path, spec, job_factory):
    start(tmp_path / "run", dataclasses.replace(spec, steps=2), job_factory())
    other_data = job_factory(identity={"text": "xyz"})
    with pytest.raises(UsageError, match="trained on other data: the text changed"):
        start(tmp_path / "run", spec, other_data)


def test_fewer_steps_than_the_run_has_made_are_refused(tmp_path, spec, job_factory):
    start(tmp_path / "run", spec, job_factory())
    with pytest.raises(UsageError, match=r"already at step 6, beyond --config\.train\.steps=3"):
        start(tmp_path / "run", dataclasses.replace(spec, steps=3), job_factory())


def test_without_evaluation(tmp_path, spec, job_factory):
    result = start(tmp_path / "run", spec, job_factory(evaluate=None))
    assert result.metrics == {"epochs": 1.5}


# Stops and kills at every moment.


def test_a_kill_at_any_moment_changes_no_record(tmp_path, often, job_factory, killed_at):
    start(tmp_path / "straight", often, job_factory())
    expected = reproducible(tmp_path / "straight")
    for number in itertools.count(1):
        workdir = tmp_path / str(number)
        try:
            start(workdir, often, killed_at(number, job_factory()))
            break  # the run has fewer events than this
        except Killed:
            pass
        result = start(workdir, often, killed_at(None, job_factory()))
        assert result.finished
        assert reproducible(workdir) == expected, number
        assert_same_export(workdir, tmp_path / "straight")
    assert number > 25


def test_repeated_kills_change_no_record(tmp_path, often, job_factory, killed_at):
    """Each run gets one event further than the one before, as with a scheduler's time limit."""
    start(tmp_path / "straight", often, job_factory())
    for first in (3, 7, 11):
        workdir = tmp_path / f"from_{first}"
        for number in itertools.count(first):
            try:
                start(workdir, often, killed_at(number, job_factory()))
                break
            except Killed:
                pass
        assert reproducible(workdir) == reproducible(tmp_path / "straight"), first
        assert_same_export(workdir, tmp_path / "straight")


@pytest.mark.parametrize("every", [1, 2, 3])
def test_stops_at_every_step_change_no_record(tmp_path, often, job_factory, monkeypatch, every):
    """Also stops during an evaluation, which the next run makes up for."""
    start(tmp_path / "straight", often, job_factory())

    @contextlib.contextmanager
    def stop_requests(*_):
        calls = itertools.count(1)
        yield preemption.StopRequests(lambda: next(calls) >= every)

    monkeypatch.setattr(preemption, "stop_requests", stop_requests)
    polling = job_factory()

    def make_job(folder):
        job = polling(folder)
        return dataclasses.replace(
            job,
            evaluate=lambda params, should_stop: (
                None if should_stop() else job.evaluate(params, should_stop)
            ),
        )

    steps = []
    for _ in range(40):
        result = start(tmp_path / "run", often, make_job)
        steps.append(result.step)
        if result.finished or (every == 1 and result.step == STEPS):
            break
    assert steps == sorted(steps)
    if every == 1:  # no evaluation can end, not even the last one
        monkeypatch.undo()
        start(tmp_path / "run", often, make_job)
    assert reproducible(tmp_path / "run") == reproducible(tmp_path / "straight")
    assert_same_export(tmp_path / "run", tmp_path / "straight")


# Damage of a workdir that is to be resumed.


def damages(path):
    """Yields (name, a function that applies a damage to the file)."""
    data = path.read_bytes()

    def replace(content):
        def apply(path):
            path.unlink()
            if content is not None:
                path.write_bytes(content)

        return apply

    def folder(path):
        path.unlink()
        path.mkdir()

    middle = len(data) // 2
    yield "missing", replace(None)
    yield "a folder", folder
    yield "other text", replace(b"Something else.\n")
    if data:
        yield "empty", replace(b"")
        yield "half", replace(data[:middle])
        yield "zeros", replace(data[:middle] + bytes(len(data) - middle))
        for at in (0, middle, len(data) - 1):
            damaged = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
            yield f"a bit of byte {at}", replace(damaged)


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """Makes, once, a run that was stopped at step 4 and the same run without a stop."""
    return tmp_path_factory.mktemp("unfinished")


@pytest.mark.slow
@pytest.mark.parametrize("where", ["config.json", "metrics.jsonl", "tensorboard", "checkpoints"])
def test_a_damaged_workdir_resumes_with_the_same_bits_or_is_refused(
    unfinished, tmp_path, spec, job_factory, capfd, caplog, monkeypatch, where
):
    stopped, straight = unfinished / "stopped", unfinished / "straight"
    if not stopped.exists():
        start(straight, spec, job_factory())
        polls = iter([False, False, False, True])
        fake = preemption.StopRequests(lambda: next(polls))
        with monkeypatch.context() as patch:
            patch.setattr(preemption, "stop_requests", lambda *_: contextlib.nullcontext(fake))
            assert start(stopped, spec, job_factory()).step == 4
    files = [
        path
        for path in sorted(stopped.rglob("*"))
        if path.is_file() and path.relative_to(stopped).parts[0] == where
    ]
    if where == "checkpoints":  # bits and lengths: see test_checkpoints
        files = [path for path in files if path.relative_to(stopped).parts[1] == "4"]
    refused = resumed = 0
    for file in files:
        for name, damage in damages(file):
            if where == "checkpoints" and name not in ("missing", "a folder", "other text"):
                continue
            workdir = tmp_path / "run"
            shutil.copytree(stopped, workdir)
            damage(workdir / file.relative_to(stopped))
            caplog.clear()
            message = None
            try:
                start(workdir, spec, job_factory())
            except UsageError as error:
                message = str(error)
            if message is not None:
                assert len(message) < 1500, (file, name)
                refused += 1
            else:
                assert_same_export(workdir, straight)
                records, expected = reproducible(workdir), reproducible(straight)
                assert records[-2:] == expected[-2:], (file, name)
                if len(records) < len(expected):
                    assert where == "metrics.jsonl"
                    assert "the others are lost. The model is not affected" in caplog.text
                elif where != "metrics.jsonl":
                    assert records == expected, (file, name)
                resumed += 1
            shutil.rmtree(workdir)
    assert refused + resumed >= 8
    assert "Traceback" not in capfd.readouterr().err
