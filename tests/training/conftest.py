"""Runs of the toy model that are killed at every moment."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest

from roberta_jax.training import loop, run
from roberta_jax.training.checkpoints import Checkpoints
from roberta_jax.training.metrics import MetricsWriter
from roberta_jax.training.partitioning import RULES, create_mesh
from roberta_jax.training.schedules import polynomial_schedule
from roberta_jax.training.steps import make_train_step
from tests.support import toy
from tests.support.toy_runs import BATCH, STEPS, Killed


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
    return make_train_step(toy.Toy(), spec.optimizer, spec.schedule, spec.mesh, seed=0)


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


@pytest.fixture
def often(spec):
    """A cadence at which a record, an evaluation and a checkpoint rarely fall on one step."""
    return dataclasses.replace(spec, cadence=loop.Cadence(log=3, evaluate=2, checkpoint=4))


@pytest.fixture
def killed_at(monkeypatch):
    """Returns a function that makes the n-th event of the next run raise `Killed`.

    Events are: a batch is read, an evaluation begins or ends, a record is written, a checkpoint is
    about to be saved or is on disk, checkpoints are deleted, and `finish` or the export begins or
    ends.
    """
    events, deadline = itertools.count(1), [None]

    def event():
        if next(events) == deadline[0]:
            raise Killed

    def with_events(function, before=True, after=True):
        def call(*args, **kwargs):
            if before:
                event()
            result = function(*args, **kwargs)
            if after:
                event()
            return result

        return call

    def save_and_wait(checkpoints, *args, save=Checkpoints.save, **kwargs):
        save(checkpoints, *args, **kwargs)
        checkpoints.wait()

    monkeypatch.setattr(Checkpoints, "save", with_events(save_and_wait))
    monkeypatch.setattr(MetricsWriter, "write", with_events(MetricsWriter.write))
    monkeypatch.setattr(Checkpoints, "delete", with_events(Checkpoints.delete))

    def kill_at(number, make_job):
        nonlocal events
        events, deadline[0] = itertools.count(1), number

        def batches(job, step):
            for batch in job.batches(step):
                event()
                yield batch

        def make(folder):
            job = make_job(folder)
            return dataclasses.replace(
                job,
                batches=functools.partial(batches, job),
                evaluate=with_events(job.evaluate),
                export=with_events(job.export),
                finish=with_events(job.finish) if job.finish else None,
            )

        return make

    return kill_at
