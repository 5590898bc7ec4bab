"""Training steps with the fused kernels, interpreted on CPUs, against those without."""

import itertools
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
STEPS = 200  # of the comparison of losses
PLAIN = {"attention": "xla", "layer_norm": "xla"}
REFERENCE = {"attention": "reference", "layer_norm": "xla"}
FUSED = {
    "TPU": {"attention": "pallas_tpu", "layer_norm": "pallas_tpu"},
    "GPU": {"attention": "pallas_gpu", "layer_norm": "xla"},
}
MESHES = {"2x2x2": (2, 2, 2), "8x1x1": (8, 1, 1), "1x8x1": (1, 8, 1), "1x1x8": (1, 1, 8)}


def schedule(step):
    del step
    return jnp.float32(1e-3)


def batch_of(step, rows=ROWS):
    """Rows of several segments and padding, with very different numbers of targets.

    A target is the token that stands there, which can be learned.
    """
    rng = np.random.default_rng(step)
    segments = np.minimum(np.arange(LENGTH) // rng.integers(5, 12, (rows, 1)) + 1, 3)
    segments[np.arange(LENGTH) >= rng.integers(20, LENGTH + 1, (rows, 1))] = 0
    ids = np.where(segments > 0, rng.integers(4, CONFIG.vocab_size, (rows, LENGTH)), 1)
    slots = np.arange(SLOTS) < rng.integers(0, SLOTS + 1, (rows, 1))
    positions = rng.integers(0, 20, (rows, SLOTS))
    return {
        "input_ids": ids.astype(np.int32),
        "segment_ids": segments.astype(np.int32),
        "masked_positions": positions.astype(np.int32),
        "masked_labels": np.take_along_axis(ids, positions, axis=1).astype(np.int32),
        "masked_weights": slots.astype(np.float32),
    }


def train(mesh, kernels, steps, rows=ROWS, remat="dots"):
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
            batch = to_global(batch_of(number, rows), mesh, rows, np.arange(rows))
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"]))
    return state.params, losses


def largest_difference(tree, expected):
    return max(
        float(np.abs(np.asarray(a) - np.asarray(b)).max())
        for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True)
    )


def on_eight_devices(platform, mesh):
    """Trains for a few steps on one device and on a mesh of eight; prints results as JSON."""
    jax.config.update("jax_default_matmul_precision", "highest")
    one = create_mesh(devices=jax.devices()[:1])
    expected, expected_losses = train(one, PLAIN, 2)
    params, losses = train(create_mesh(*MESHES[mesh]), FUSED[platform], 2)
    print(json.dumps([losses, expected_losses, largest_difference(params, expected)]))


@pytest.mark.parametrize(
    ("platform", "mesh"),
    [
        pytest.param(platform, mesh, marks=() if number == 0 else pytest.mark.slow)
        for number, (platform, mesh) in enumerate(itertools.product(FUSED, MESHES))
    ],
)
def test_steps_on_meshes_equal_those_without_kernels(platform, mesh):
    """With dropout, segments, padding and microbatches."""
    output = processes.run(__name__, "on_eight_devices", platform, mesh, devices=8)
    losses, expected_losses, error = json.loads(output.splitlines()[-1])
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    assert error < 2e-5  # the updates were 1e-3


@pytest.fixture(scope="module")
def losses_without_kernels():
    with jax.default_matmul_precision("highest"):
        return train(create_mesh(devices=jax.devices()[:1]), PLAIN, STEPS, rows=8)[1]


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("kernels", [*FUSED.values(), REFERENCE], ids=[*FUSED, "reference"])
def test_losses_of_a_run_equal_those_without_kernels(kernels, remat, losses_without_kernels):
    """Step by step to rounding, while the loss falls to a sixth."""
    with jax.default_matmul_precision("highest"):
        _, losses = train(create_mesh(devices=jax.devices()[:1]), kernels, STEPS, 8, remat)
    assert losses == pytest.approx(losses_without_kernels, rel=5e-6)
    assert losses[-1] < losses[0] / 5
