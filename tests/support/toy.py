"""A tiny model for tests of training: a tanh network with RoBERTa's logical axis names."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from roberta_jax.training.optimizer import adamw
from roberta_jax.training.partitioning import create_mesh, local_batch_rows, to_global
from roberta_jax.training.schedules import polynomial_schedule
from roberta_jax.training.state import create_state
from roberta_jax.training.steps import make_train_step

WIDTH, TARGETS = 8, 5


class Toy(nn.Module):
    """Two objectives whose counts differ from row to row.

    So a mean of means over microbatches or devices gives another loss than the global mean.
    """

    dropout: float = 0.0

    @nn.compact
    def __call__(self, x_BLD, deterministic=True):
        def weight(name, shape, axes):
            initializer = nn.with_logical_partitioning(nn.initializers.normal(0.3), axes)
            return self.param(name, initializer, shape)

        kernel = weight("kernel", (WIDTH, 2 * WIDTH), ("embed", "mlp"))
        bias = weight("bias", (2 * WIDTH,), ("mlp",))
        out = weight("out", (2 * WIDTH, WIDTH), ("mlp", "embed"))
        scale = weight("scale", (WIDTH,), ("norm",))
        h_BLM = nn.with_logical_constraint(
            jnp.tanh(x_BLD @ kernel + bias), ("batch", "length", "mlp")
        )
        h_BLM = nn.Dropout(self.dropout)(h_BLM, deterministic=deterministic)
        return (h_BLM @ out) * scale

    def loss(self, *, x, y, weights, deterministic=True):
        output = self(x, deterministic)
        squares = jnp.sum(jnp.square(output - y), -1) * weights
        return {"squares": jnp.sum(squares), "size": jnp.sum(jnp.abs(output)) * 0.1}

    @nn.nowrap
    def count(self, *, x, y, weights):
        return {"squares": jnp.sum(weights), "size": jnp.float32(x.shape[0])}


def init_params():
    return Toy().init(jax.random.key(0), jnp.zeros((1, 1, WIDTH)))["params"]


def host_batch(step, rows):
    """Returns the given rows of the batch of a step; each row is a function of (step, row)."""
    x, y, w = [], [], []
    for row in rows:
        rng = np.random.default_rng([step, int(row)])
        x.append(rng.normal(size=(TARGETS, WIDTH)))
        y.append(rng.normal(size=(TARGETS, WIDTH)))
        w.append(rng.random(TARGETS) < 0.1 + 0.1 * (row % 8))
    arrays = {"x": x, "y": y, "weights": w}
    return {name: np.asarray(value, np.float32) for name, value in arrays.items()}


def batches(mesh, batch_size):
    """Returns the function from a step to an iterator of batches that `fit` takes."""
    rows = local_batch_rows(mesh, batch_size)

    def from_step(step):
        while True:
            yield to_global(host_batch(step, rows), mesh, batch_size, rows)
            step += 1

    return from_step


def setting(*, dropout=0.0, accumulation=1, mesh=None, steps=10, rate=1e-2):
    """Returns (mesh, state of step 0, train_step) of the toy model.

    Tests with the same arguments share one compiled step; each gets a state of its own.
    """
    mesh = mesh or create_mesh()
    state, step = _initial_state_and_step(dropout, accumulation, mesh, steps, rate)
    return mesh, jax.tree.map(jnp.copy, state), step


@functools.cache
def _initial_state_and_step(dropout, accumulation, mesh, steps, rate):
    schedule = polynomial_schedule(rate, warmup_steps=2, decay_steps=steps)
    tx = adamw(schedule)
    step = make_train_step(Toy(dropout), tx, schedule, mesh, seed=0, accumulation=accumulation)
    return create_state(init_params, tx, mesh), step
