"""Attention in plain operations against the reference, values and gradients.

The fused kernels are tested in `test_fused_attention`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roberta_jax.kernels import attention
from roberta_jax.kernels.masks import MASKED_SCORE

PLAIN = [name for name in attention.IMPLEMENTATIONS if not attention.is_fused(name)]
IMPLEMENTATIONS = [name for name in PLAIN if name != "reference"]
B, Q, S, H, K = 2, 7, 9, 3, 4


def random_inputs(dtype=jnp.float32):
    """q, k, v, a gradient of the output, and a bias under which one query has no key at all."""
    rng = np.random.default_rng(0)
    shapes = ((B, Q, H, K), (B, S, H, K), (B, S, H, K), (B, Q, H, K))
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
    mask = rng.random((B, 1, Q, S)) < 0.6
    mask[1, 0, 3] = False
    return arrays, np.where(mask, 0, MASKED_SCORE).astype(np.float32)


def values_and_gradients(implementation, q, k, v, grad, bias, rate):
    seed = np.array([1, 2, 3, 4], np.uint32) if rate else None

    @jax.jit
    def run(q, k, v):
        def apply(q, k, v):
            return attention.dot_product_attention(q, k, v, bias, seed, rate, implementation)

        context, pull = jax.vjp(apply, q, k, v)
        return context, *pull(grad)

    with jax.default_matmul_precision("highest"):
        return [np.asarray(x) for x in run(q, k, v)]


def plain_attention(q, k, v, bias):
    """Written out for one query and head at a time, in NumPy and float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    context = np.zeros((B, Q, H, K))
    for b, i, h in np.ndindex(B, Q, H):
        scores = k[b, :, h] @ q[b, i, h] / K**0.5 + np.asarray(bias, np.float64)[b, 0, i]
        weights = np.exp(scores - scores.max())
        context[b, i, h] = weights / weights.sum() @ v[b, :, h]
    return context


def test_reference_is_the_formula():
    (q, k, v, grad), bias = random_inputs()
    context, *_ = values_and_gradients("reference", q, k, v, grad, bias, 0.0)
    np.testing.assert_allclose(context, plain_attention(q, k, v, bias), rtol=0, atol=1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("masked", [False, True])
def test_values_and_gradients_match_the_reference(implementation, rate, masked):
    arrays, bias = random_inputs()
    bias = bias if masked else None
    results = values_and_gradients(implementation, *arrays, bias, rate)
    expected = values_and_gradients("reference", *arrays, bias, rate)
    for result, reference in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("implementation", PLAIN)
def test_bfloat16_matches_the_float32_reference(implementation):
    arrays, bias = random_inputs(jnp.bfloat16)
    results = values_and_gradients(implementation, *arrays, bias, 0.3)
    arrays = [x.astype(np.float32) for x in arrays]
    expected = values_and_gradients("reference", *arrays, bias, 0.3)
    for result, reference in zip(results, expected, strict=True):
        assert result.dtype == jnp.bfloat16
        error = np.abs(result.astype(np.float32) - reference).max()
        assert error < 0.02 * np.abs(reference).max()


@pytest.mark.parametrize("width", [8, 16, 32, 64, 80])
def test_bfloat16_queries_are_scaled_without_rounding(width):
    """1 / sqrt(K) is a number of bfloat16 for some widths only."""
    q, k = np.random.default_rng(0).standard_normal((2, 1, 8, 1, width)).astype(jnp.bfloat16)
    scores = q[0, :, 0].astype(np.float64) @ k[0, :, 0].astype(np.float64).T / width**0.5
    weights = np.exp(scores)
    probabilities = attention.attention_probabilities(q, k)[0, 0]
    np.testing.assert_allclose(probabilities, weights / weights.sum(-1, keepdims=True), rtol=2e-5)


def test_reference_has_a_gradient_of_the_bias():
    (q, k, v, _), bias = random_inputs()

    def total(bias):
        return attention.reference_attention(q, k, v, bias, None, 0.0).sum()

    assert np.abs(jax.jit(jax.grad(total))(bias)).max() > 1e-3


@pytest.mark.parametrize("implementation", PLAIN)
def test_large_scores_do_not_overflow(implementation):
    q = k = np.full((1, 2, 1, 4), 100, np.float32)
    v = np.arange(8, dtype=np.float32).reshape(1, 2, 1, 4)
    context, *_ = values_and_gradients(implementation, q, k, v, v, None, 0.0)
    mean = np.broadcast_to(v.mean(1), (1, 2, 1, 4))
    np.testing.assert_allclose(context, mean, rtol=0, atol=1e-5)


def test_xla_stores_no_probabilities():
    q = k = v = np.ones((1, 64, 2, 4), np.float32)
    _, pull = jax.vjp(lambda *qkv: attention.dot_product_attention(*qkv), q, k, v)
    assert all(leaf.size <= q.size for leaf in jax.tree.leaves(pull))


def test_relative_bias_is_the_product_with_each_distances_vector():
    (q, k, _, _), _ = random_inputs()
    vectors = np.random.default_rng(1).standard_normal((Q, S, K)).astype(np.float32)
    from_queries = np.zeros((B, H, Q, S))
    from_keys = np.zeros((B, H, Q, S))
    for b, h, i, j in np.ndindex(B, H, Q, S):
        from_queries[b, h, i, j] = q[b, i, h] @ vectors[i, j] / K**0.5
        from_keys[b, h, i, j] = k[b, j, h] @ vectors[i, j] / K**0.5
    bias = attention.relative_bias(q, None, vectors)
    np.testing.assert_allclose(bias, from_queries, rtol=0, atol=1e-5)
    bias = attention.relative_bias(q, k, vectors)
    np.testing.assert_allclose(bias, from_queries + from_keys, rtol=0, atol=1e-5)
