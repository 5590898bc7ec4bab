"""The training step of a small RoBERTa on meshes of eight virtual devices, against one device."""

import functools
import json
import math
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roberta_jax.modeling.heads import RobertaForMaskedLM
from roberta_jax.training import steps
from roberta_jax.training.checkpoints import Checkpoints
from roberta_jax.training.optimizer import adamw
from roberta_jax.training.partitioning import RULES, create_mesh, rules_with, to_global
from roberta_jax.training.state import abstract_state, create_state
from roberta_jax.training.steps import make_train_step
from tests.support import processes
from tests.support.collectives import collectives
from tests.support.small_config import small_config

CONFIG = small_config(
    vocab_size=301,  # no part of the mesh divides it
    hidden_size=32,
    num_attention_heads=8,
    intermediate_size=64,
    hidden_dropout_prob=0.1,
    attention_probs_dropout_prob=0.1,
)
MODEL = RobertaForMaskedLM(CONFIG)
ROWS, LENGTH, SLOTS, ACCUMULATION, STEPS = 32, 16, 4, 2, 3

# Name -> (data, fsdp, tensor, slices, shard_optimizer_state).
QUICK = {"8x1x1": (8, 1, 1, None, False), "two slices of 4": (-1, 1, 2, 2, False)}
SLOW = {
    "1x8x1": (1, 8, 1, None, False),
    "2x2x2": (2, 2, 2, None, False),
    "4x1x2": (4, 1, 2, None, False),
    "1x1x8": (1, 1, 8, None, False),
}
SLOWER = {
    "8x1x1, state split": (8, 1, 1, None, True),
    "2x2x2, state split": (2, 2, 2, None, True),
}
GROUPS = (QUICK, SLOW, SLOWER)  # the meshes of a group share a process
RESTORED = ("two slices of 4", "2x2x2", "2x2x2, state split")
MESHES = QUICK | SLOW | SLOWER


def schedule(step):
    del step
    return jnp.float32(1e-3)


def init_params():
    return MODEL.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


def batch_of(step):
    """Rows with very different numbers of targets."""
    rng = np.random.default_rng(step)
    ids = rng.integers(4, CONFIG.vocab_size, (ROWS, LENGTH))
    slots = np.arange(SLOTS) < rng.integers(0, SLOTS + 1, (ROWS, 1))
    return {
        "input_ids": ids.astype(np.int32),
        "attention_mask": np.ones((ROWS, LENGTH), np.int32),
        "masked_positions": rng.integers(0, LENGTH, (ROWS, SLOTS)).astype(np.int32),
        "masked_labels": rng.integers(4, CONFIG.vocab_size, (ROWS, SLOTS)).astype(np.int32),
        "masked_weights": slots.astype(np.float32),
    }


def train(mesh, rules, resume=False):
    """(state, metrics of each step, the step, the batch); `resume` saves and restores before."""
    tx = adamw(schedule)
    state = create_state(init_params, tx, mesh, rules=rules)
    step = make_train_step(
        MODEL, tx, schedule, mesh, seed=0, accumulation=ACCUMULATION, rules=rules
    )
    metrics = []
    for number in range(STEPS):
        batch = to_global(batch_of(number), mesh, ROWS, np.arange(ROWS))
        if resume and number == 1:
            with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as checkpoints:
                checkpoints.save(number, state)
                checkpoints.wait()
                like = abstract_state(init_params, tx, mesh, rules)
                state, _ = checkpoints.restore(like)
        state, values = step(state, batch)
        metrics.append({name: float(value) for name, value in values.items()})
    return state, metrics, step, batch


def on_eight_devices(*names):
    """Trains on these meshes; prints what the tests below check, as JSON."""
    jax.config.update("jax_default_matmul_precision", "highest")
    expected, expected_metrics, *_ = train(create_mesh(devices=jax.devices()[:1]), rules_with(()))
    results = {}
    for name in names:
        *sizes, slices, shard_optimizer_state = MESHES[name]
        mesh = create_mesh(*sizes, slices=slices)
        rules = rules_with((), shard_optimizer_state=shard_optimizer_state)
        state, metrics, step, batch = train(mesh, rules, resume=name in RESTORED)
        lowered = step.lower(state, batch)
        compiled = lowered.compile()
        results[name] = {
            "metrics": metrics,
            "expected_metrics": expected_metrics,
            "error": largest_difference(state.params, expected.params),
            "compilations": step.compilations(),
            "shape": dict(mesh.shape),
            "params": shard_fractions(state.params),
            "moments": shard_fractions((state.opt_state[0].mu, state.opt_state[0].nu)),
            "constraints": [x for x in lowered.as_text().splitlines() if "sharding_constr" in x],
            "collectives": [vars(each) for each in collectives(compiled.as_text())],
            "temporary": compiled.memory_analysis().temp_size_in_bytes,
        }
    print(json.dumps(results))


def largest_difference(tree, expected):
    return max(
        float(np.abs(np.asarray(a) - np.asarray(b)).max())
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True)
    )


def shard_fractions(tree):
    """The part of each array that a device holds, by its path; the size, too."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): [
            leaf.addressable_shards[0].data.size / leaf.size,
            leaf.size,
        ]
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@functools.cache
def results_on(names):
    return json.loads(
        processes.run(__name__, "on_eight_devices", *names, devices=8).splitlines()[-1]
    )


@pytest.fixture
def result(name):
    """What `on_eight_devices` prints for a mesh."""
    return results_on(tuple(next(group for group in GROUPS if name in group)))[name]


mesh_names = pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW | SLOWER)]
)


@mesh_names
def test_steps_equal_those_of_one_device(result):
    """With dropout and microbatches, whose bits do not depend on the mesh."""
    for metrics, expected in zip(result["metrics"], result["expected_metrics"], strict=True):
        assert metrics == pytest.approx(expected, rel=1e-5)
    assert result["error"] < 2e-5  # the updates were 1e-3


@mesh_names
def test_the_step_is_compiled_once_also_for_a_restored_state(result):
    assert result["compilations"] == 1


@mesh_names
def test_no_matrix_is_replicated_that_the_mesh_can_split(result, name):
    """Matrices and tables are split over fsdp and tensor; only vectors may be replicated."""
    *_, shard_optimizer_state = MESHES[name]
    parts = result["shape"]["fsdp"] * result["shape"]["tensor"]
    for path, (fraction, size) in result["params"].items():
        if size > 1000:
            assert fraction == 1 / parts, path
    if shard_optimizer_state:
        parts *= result["shape"]["data"]
    large = [f for f, size in result["moments"].values() if size > 1000]
    assert len(large) > 10
    assert set(large) == {1 / parts}
    # The moments of a mesh without the option are split as their parameters are.
    held = sum(fraction * size for fraction, size in result["moments"].values())
    assert held < 1.1 * sum(size for _, size in result["moments"].values()) / parts + 2000


@mesh_names
def test_activations_are_constrained_in_the_program(result):
    shape = result["shape"]
    lines = "\n".join(result["constraints"])
    rows = ROWS // ACCUMULATION // shape["data"]
    shards = f"{shape['data']}x" if shape["data"] > 1 else ""
    assert f"tensor<{shards}{rows}x{LENGTH}x{CONFIG.hidden_size}xf32>" in lines
    if shape["tensor"] > 1:  # the logits: one part of the vocabulary each
        part = math.ceil(CONFIG.vocab_size / shape["tensor"] / 128) * 128
        logits = f"tensor<{shards}{shape['tensor']}x{rows * SLOTS}x{part}xf32>"
        assert any(logits in line and '"tensor"' in line for line in lines.splitlines()), lines


@pytest.mark.parametrize("name", ["8x1x1"])
def test_data_parallel_gradients_are_added_up_once_in_float32(result):
    assert {each["kind"] for each in result["collectives"]} == {"all-reduce"}
    assert not any(each["in_loop"] for each in result["collectives"])
    assert {each["dtype"] for each in result["collectives"]} == {"f32"}
    parameters = sum(size for _, size in result["params"].values())
    exchanged = sum(each["size"] for each in result["collectives"])
    assert 4 * parameters <= exchanged < 4.1 * parameters


@pytest.mark.slow
def test_temporary_memory_falls_where_the_parameters_are_split():
    """The largest part of it in so small a model is the accumulated gradient."""
    split, whole = results_on(tuple(SLOW))["1x8x1"], results_on(tuple(QUICK))["8x1x1"]
    assert split["temporary"] < whole["temporary"]


def test_processes_wait_for_each_other_before_a_program_runs_first(monkeypatch):
    """The first collectives do not wait for a process that still compiles."""
    events = []

    def function(state, batch):
        events.append("traced")
        jax.debug.callback(lambda: events.append("ran"))
        return state + batch["x"].sum()

    step = steps._Step(lambda state: jax.jit(function), create_mesh(), RULES)
    step._is_shared = True  # as on a mesh of several processes
    monkeypatch.setattr(steps.agreement, "exchange", lambda *_: events.append("waited"))
    for length in (2, 2, 3):
        assert step(jnp.zeros(()), {"x": jnp.ones(length)}) == length
        jax.effects_barrier()
    first = ["traced", "waited", "ran"]
    assert events == [*first, "ran", *first]
    assert step.compilations() == 2
