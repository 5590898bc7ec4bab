"""Losses against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roberta_jax.modeling import losses


def naive(logits, labels):
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)[..., 0]


def draw(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_cross_entropy_and_its_gradient():
    logits = 5 * draw(0, 4, 6, 37)
    labels = jax.random.randint(jax.random.key(1), (4, 6), 0, 37)
    weights = draw(2, 4, 6)
    value = jax.value_and_grad(lambda x: jnp.sum(losses.cross_entropy(x, labels) * weights))
    wanted = jax.value_and_grad(lambda x: jnp.sum(naive(x, labels) * weights))
    for ours, theirs in zip(value(logits), wanted(logits), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_cross_entropy_does_not_overflow():
    logits = jnp.array([[1e4, 0.0, -1e4]])
    assert losses.cross_entropy(logits, jnp.array([0]))[0] == 0
    assert losses.cross_entropy(logits, jnp.array([2]))[0] == 2e4


def test_bfloat16_logits_are_summed_in_float32():
    logits = draw(0, 8, 5000).astype(jnp.bfloat16)
    labels = jnp.arange(8)
    wanted = naive(logits.astype(jnp.float32), labels)
    np.testing.assert_allclose(losses.cross_entropy(logits, labels), wanted, rtol=1e-5)
    grad = jax.grad(lambda x: losses.cross_entropy(x, labels).sum())(logits)
    assert grad.dtype == jnp.bfloat16


def test_masked_lm_sums_and_counts():
    logits = draw(0, 2, 3, 11)
    labels = jnp.array([[1, 2, 0], [5, 0, 0]])
    weights = jnp.array([[1, 1, 0], [1, 0, 0]])
    total, count = losses.masked_lm_loss(logits, labels, weights)
    nll = naive(logits, labels)
    np.testing.assert_allclose(total, nll[0, 0] + nll[0, 1] + nll[1, 0], rtol=1e-5)
    assert count == 3
    grad = jax.grad(lambda x: losses.masked_lm_loss(x, labels, weights)[0])(logits)
    assert not np.any(grad[0, 2])
    assert not np.any(grad[1, 1:])
    hits = losses.masked_lm_hits(logits, jnp.argmax(logits, -1), weights)
    assert hits == 3
    assert losses.masked_lm_hits(logits, jnp.argmin(logits, -1), weights) == 0


@pytest.mark.parametrize(
    ("vocabulary", "chunk"),
    [(100, 4096), (1000, 256), (1024, 256), (769, 256), (900, 400)],
)
def test_projected_cross_entropy(monkeypatch, vocabulary, chunk):
    """One chunk, several, several that fit exactly, and a last one that repeats most of a chunk."""
    monkeypatch.setattr(losses, "CHUNK", chunk)
    x, table, bias = draw(0, 50, 24), draw(1, vocabulary, 24), draw(2, vocabulary)
    weights = draw(3, 50)
    # Labels at both ends of every chunk, and in what the last one repeats.
    labels = jnp.linspace(0, vocabulary - 1, 50).astype(jnp.int32)

    def ours(x, table, bias):
        return jnp.sum(losses.projected_cross_entropy(x, table, bias, labels) * weights)

    def wanted(x, table, bias):
        return jnp.sum(naive(x @ table.T + bias, labels) * weights)

    with jax.default_matmul_precision("highest"):
        for a, b in zip(
            jax.tree.leaves(jax.jit(jax.value_and_grad(ours, (0, 1, 2)))(x, table, bias)),
            jax.tree.leaves(jax.jit(jax.value_and_grad(wanted, (0, 1, 2)))(x, table, bias)),
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


def test_projected_cross_entropy_in_bfloat16():
    x, table, bias = draw(0, 64, 32).astype(jnp.bfloat16), 0.3 * draw(1, 5000, 32), jnp.zeros(5000)
    labels = jnp.arange(64) * 70
    loss, pull = jax.vjp(
        lambda x, table, bias: losses.projected_cross_entropy(x, table, bias, labels),
        x,
        table,
        bias,
    )
    assert loss.dtype == jnp.float32
    wanted = naive(x.astype(jnp.float32) @ table.T, labels)
    np.testing.assert_allclose(loss, wanted, atol=0.03)
    assert [grad.dtype for grad in pull(loss)] == [jnp.bfloat16, jnp.float32, jnp.float32]


def test_whole_logits_are_never_held():
    """At RoBERTa's vocabulary the temporary memory is a fraction of the [N, V] logits'."""
    targets, width, vocabulary = 256, 32, 50265
    shapes = [(targets, width), (vocabulary, width), (vocabulary,)]
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    labels = jnp.zeros(targets, jnp.int32)

    def loss(x, table, bias):
        return losses.projected_cross_entropy(x, table, bias, labels).sum()

    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arguments).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * targets * vocabulary / 3
