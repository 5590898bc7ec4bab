"""Selection in a run of two processes with sharded parameters."""

import contextlib
import itertools
import json
import os
import pathlib
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

from roberta_jax.training import distributed, loop, preemption, run
from roberta_jax.training.checkpoints import checkpoint_steps
from roberta_jax.training.partitioning import RULES, create_mesh
from roberta_jax.training.schedules import polynomial_schedule
from tests.support import processes, toy
from tests.support.toy_runs import BATCH, CONFIG, STEPS, reproducible

SCORES = [0.1, 0.5, 0.7, 0.2, 0.3, 0.4]


def main(folder):
    """What each of two processes runs."""
    try:
        distributed.join_processes()
        train_and_resume(pathlib.Path(folder))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def train_and_resume(folder):
    """Writes to INDEX.json how the runs ended."""
    schedule = polynomial_schedule(1e-2, warmup_steps=2, decay_steps=STEPS)
    spec = run.TrainingSpec(
        seed=0,
        steps=STEPS,
        batch_size=BATCH,
        rows_per_microbatch=BATCH // 4,
        accumulation=1,
        cadence=loop.Cadence(log=1, evaluate=1, checkpoint=2),
        keep_checkpoints=2,
        deterministic=False,
        optimizer=toy.adamw(schedule),
        schedule=schedule,
        warmup_steps=2,
        mesh=create_mesh(data=1, fsdp=-1),
        rules=RULES,
        patience=2,
    )
    train_step = spec.train_step(toy.Toy())
    index, norm = jax.process_index(), jax.jit(lambda kernel: jnp.sum(kernel**2))
    norms = []  # of the parameters after each step

    def make_job(workdir):
        def export(params):
            gathered = multihost_utils.process_allgather(params, tiled=True)
            if index == 0:
                (workdir / run.EXPORT).mkdir(exist_ok=True)
                np.savez(workdir / run.EXPORT / "params.npz", **gathered)
                (workdir / run.EXPORT / "config.json").write_text("{}")

        def evaluate(params, should_stop):
            value = float(norm(params["kernel"]))
            if value not in norms:
                norms.append(value)
            # The values of process 1 differ, as if it computed the metric with other libraries:
            # by them step 2 would be the best.
            score = SCORES[norms.index(value)]
            return {"score": 0.9 if index and score == 0.5 else score}

        return run.Job(
            train_step=train_step,
            init_params=toy.init_params,
            pretrained_params=None,
            batches=toy.batches(spec.mesh, BATCH),
            identity={"text": "abc"},
            evaluate=evaluate,
            final_metrics=dict,
            export=export,
            describe=lambda state: f"at step {int(state.step)}",
            summarize=lambda metrics: f"score {metrics['score']}",
            tokens_per_step=BATCH,
            flops_per_step=1.0,
            select="score",
        )

    def start(name):
        result = run.run(folder / name, spec, make_job, config=CONFIG, may_change=())
        return [result.start, result.step, result.finished, result.metrics]

    results = {"straight": start("straight")}
    calls = itertools.count(1)
    stop_requests = preemption.stop_requests
    fake = preemption.StopRequests(lambda: next(calls) >= 4)  # before the evaluation of step 4
    preemption.stop_requests = lambda *_: contextlib.nullcontext(fake)
    results["stopped"] = start("run")
    preemption.stop_requests = stop_requests
    results["resumed"] = start("run")
    results["again"] = start("run")
    (folder / f"{index}.json").write_text(json.dumps(results))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    processes.run_together(__name__, "main", str(folder), count=2, devices=2)
    return folder


def test_all_processes_select_the_same_parameters(folder):
    metrics = {"score": 0.7, "best_step": 3, "stopped_early": 1.0}
    for index in range(2):
        results = json.loads((folder / f"{index}.json").read_text())
        assert results["straight"] == [0, 5, True, metrics]
        assert results["stopped"] == [0, 4, False, {}]
        assert results["resumed"] == [4, 5, True, metrics]
        assert results["again"] == [5, 5, True, metrics]


def test_an_interrupted_run_exports_the_same_parameters(folder):
    straight, resumed = (
        dict(np.load(folder / name / run.EXPORT / "params.npz")) for name in ("straight", "run")
    )
    jax.tree.map(np.testing.assert_array_equal, straight, resumed)
    assert reproducible(folder / "run") == reproducible(folder / "straight")
    assert checkpoint_steps(folder / "run" / "best") == [3]
