"""The losses of the heads against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np

from roberta_jax.kernels.cross_entropy import reference_cross_entropy
from roberta_jax.modeling import losses


def test_masked_lm_sums_and_counts():
    logits = jax.random.normal(jax.random.key(0), (2, 3, 11))
    labels = jnp.array([[1, 2, 0], [5, 0, 0]])
    weights = jnp.array([[1, 1, 0], [1, 0, 0]])
    total, count = losses.masked_lm_loss(logits, labels, weights)
    nll = reference_cross_entropy(logits, labels)
    np.testing.assert_allclose(total, nll[0, 0] + nll[0, 1] + nll[1, 0], rtol=1e-5)
    assert count == 3
    grad = jax.grad(lambda x: losses.masked_lm_loss(x, labels, weights)[0])(logits)
    assert not np.any(grad[0, 2])
    assert not np.any(grad[1, 1:])
    hits = losses.masked_lm_hits(logits, jnp.argmax(logits, -1), weights)
    assert hits == 3
    assert losses.masked_lm_hits(logits, jnp.argmin(logits, -1), weights) == 0


def test_labels_are_in_range_or_minus_100():
    logits = jax.random.normal(jax.random.key(0), (3, 5))
    total, count = losses.label_loss(logits, jnp.array([4, -100, 0]))
    assert count == 2
    assert np.isfinite(total)
    for wrong in (-1, -5, 5):
        assert np.isnan(losses.label_loss(logits, jnp.array([4, wrong, 0]))[0])


def test_answer_positions_are_clipped():
    logits = jax.random.normal(jax.random.key(0), (3, 5))
    expected, _ = losses.label_loss(logits, jnp.array([0, 4, -100]))
    total, count = losses.span_loss(logits, jnp.array([-3, 4, 5]))
    assert (total, count, losses.span_count(jnp.array([-3, 4, 5]), 5)) == (expected, 2, 2)
