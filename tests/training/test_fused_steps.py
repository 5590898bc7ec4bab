"""Training steps with the fused kernels, interpreted on CPUs, against those without."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roberta_jax.kernels.dispatch import interpreted
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.heads import RobertaForMaskedLM
from roberta_jax.training.optimizer import adamw
from roberta_jax.training.partitioning import create_mesh, to_global
from roberta_jax.training.state import create_state
from roberta_jax.training.steps import make_train_step
from tests.support import processes
from tests.support.small_config import small_config

CONFIG = small_config(
    vocab_size=301,
    hidden_size=128,
    num_attention_heads=8,
    intermediate_size=64,
    hidden_dropout_prob=0.1,
    attention_probs_dropout_prob=0.1,
)
ROWS, LENGTH, SLOTS, ACCUMULATION = 32, 32, 4, 2
PLAIN = {"attention": "xla", "layer_norm": "xla"}
FUSED = {
    "TPU": {"attention": "pallas_tpu", "layer_norm": "pallas_tpu"},
}
MESHES = {"2x2x2": (2, 2, 2)}


def schedule(step):
    del step
    return jnp.float32(1e-3)


def batch_of(step):
    """Rows of several segments and padding, with very different numbers of targets."""
    rng = np.random.default_rng(step)
    segments = np.minimum(np.arange(LENGTH) // rng.integers(5, 12, (ROWS, 1)) + 1, 3)
    segments[np.arange(LENGTH) >= rng.integers(20, LENGTH + 1, (ROWS, 1))] = 0
    ids = np.where(segments > 0, rng.integers(4, CONFIG.vocab_size, (ROWS, LENGTH)), 1)
    slots = np.arange(SLOTS) < rng.integers(0, SLOTS + 1, (ROWS, 1))
    return {
        "input_ids": ids.astype(np.int32),
        "segment_ids": segments.astype(np.int32),
        "masked_positions": rng.integers(0, 20, (ROWS, SLOTS)).astype(np.int32),
        "masked_labels": rng.integers(4, CONFIG.vocab_size, (ROWS, SLOTS)).astype(np.int32),
        "masked_weights": slots.astype(np.float32),
    }


def train(mesh, kernels, steps, remat="dots"):
    """(parameters, the losses of the steps)."""
    model = RobertaForMaskedLM(CONFIG, Execution(remat=remat, **kernels))

    def init_params():
        return model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]

    tx = adamw(schedule)
    state = create_state(init_params, tx, mesh)
    step = make_train_step(model, tx, schedule, mesh, seed=0, accumulation=ACCUMULATION)
    losses = []
    with interpreted():
        for number in range(steps):
            batch = to_global(batch_of(number), mesh, ROWS, np.arange(ROWS))
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
    return state.params, losses


def largest_difference(tree, expected):
    return max(
        float(np.abs(np.asarray(a) - np.asarray(b)).max())
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True)
    )


def on_eight_devices(platform, *meshes):
    """Trains for a few steps on one device and on meshes of eight; prints results as JSON."""
    jax.config.update("jax_default_matmul_precision", "highest")
    one = create_mesh(devices=jax.devices()[:1])
    expected, expected_losses = train(one, PLAIN, 2)
    results = {}
    for name in meshes:
        params, losses = train(create_mesh(*MESHES[name]), FUSED[platform], 2)
        results[name] = {
            "losses": losses,
            "expected_losses": expected_losses,
            "error": largest_difference(params, expected),
        }
    print(json.dumps(results))


@pytest.mark.parametrize("platform", FUSED)
def test_steps_on_meshes_equal_those_without_kernels(platform):
    """With dropout, segments, padding and microbatches."""
    output = processes.run(__name__, "on_eight_devices", platform, *MESHES, devices=8)
    for name, result in json.loads(output.splitlines()[-1]).items():
        assert result["losses"] == pytest.approx(result["expected_losses"], rel=1e-5), name
        assert result["error"] < 2e-5, name  # the updates were 1e-3
