"""Runs of the toy model: new, continued, finished, interrupted, and on other data."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from roberta_jax.errors import UsageError
from roberta_jax.training import loop, run
from roberta_jax.training.metrics import read_metrics
from roberta_jax.training.partitioning import RULES, create_mesh
from roberta_jax.training.schedules import polynomial_schedule
from tests.support import toy

BATCH, STEPS = 8, 6
CONFIG = {"train": {"steps": STEPS}, "seed": 0}


@pytest.fixture(scope="module")
def spec():
    schedule = polynomial_schedule(1e-2, warmup_steps=2, decay_steps=STEPS)
    return run.TrainingSpec(
        seed=0,
        steps=STEPS,
        batch_size=BATCH,
        rows_per_microbatch=BATCH,
        accumulation=1,
        cadence=loop.Cadence(log=2, evaluate=3, checkpoint=2),
        keep_checkpoints=2,
        deterministic=False,
        optimizer=toy.adamw(schedule),
        schedule=schedule,
        warmup_steps=2,
        mesh=create_mesh(),
        rules=RULES,
    )


@pytest.fixture(scope="module")
def train_step(spec):
    return loop.make_train_step(toy.Toy(), spec.optimizer, spec.schedule, spec.mesh, seed=0)


@pytest.fixture
def job_factory(spec, train_step):
    """Returns a function from job fields with their values to a `make_job` for `run.run`.

    The names of the job's functions are appended to the list `calls` when they are called.
    """

    def job_factory(calls=None, **changes):
        calls = [] if calls is None else calls

        def make_job(folder):
            calls.append("make_job")

            def export(params):
                calls.append("export")
                (folder / run.EXPORT).mkdir(exist_ok=True)
                np.savez(folder / run.EXPORT / "params.npz", **jax.device_get(params))
                (folder / run.EXPORT / "config.json").write_text("{}")

            def evaluate(params, should_stop):
                calls.append("evaluate")
                return {"eval_loss": float(np.abs(params["kernel"]).sum())}

            job = run.Job(
                train_step=train_step,
                init_params=toy.init_params,
                pretrained_params=None,
                batches=toy.batches(spec.mesh, BATCH),
                identity={"text": "abc"},
                evaluate=evaluate,
                final_metrics=lambda: {"epochs": 1.5},
                export=export,
                describe=lambda state: f"at step {int(state.step)}",
                summarize=lambda metrics: f"loss {metrics['eval_loss']:.3f}",
                tokens_per_step=BATCH,
                flops_per_step=1.0,
            )
            return dataclasses.replace(job, **changes)

        return make_job

    return job_factory


def start(workdir, spec, make_job, config=CONFIG):
    return run.run(workdir, spec, make_job, config=config, may_change=("train.steps",))


def exported(workdir):
    with np.load(workdir / run.EXPORT / "params.npz") as params:
        return dict(params)


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
    with pytest.raises(loop.Diverged, match=rf"step {STEPS} the evaluation is not finite"):
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
