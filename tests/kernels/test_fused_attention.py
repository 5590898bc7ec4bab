"""The fused attention, interpreted on a CPU, against the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roberta_jax.kernels import attention, dropout, fused_attention
from roberta_jax.kernels.dispatch import interpreted
from roberta_jax.kernels.masks import Segments
from tests.support import described_gpu

KINDS = list(fused_attention.KINDS)
# (batch, queries, keys, heads, head width): one block; several blocks of heads, and other lengths;
# several blocks of queries; fewer tokens than a block; heads that fill a block.
SHAPES = {
    "whole": (2, 128, 128, 2, 64),
    "ragged": (2, 200, 130, 4, 64),
    "long": (1, 640, 640, 1, 16),
    "short": (2, 7, 9, 3, 16),
    "wide": (1, 16, 48, 2, 128),
}
CASES = [
    ("whole", "segments", 0.1),
    ("ragged", "segments", 0.3),
    ("ragged", "none", 0.0),
    ("long", "padding", 0.1),
    ("short", "segments", 0.0),
    ("wide", "none", 0.1),
]


def inputs_of(shape, dtype=np.float32):
    batch, queries, keys, heads, width = shape
    rng = np.random.default_rng(0)
    q, grad = rng.standard_normal((2, batch, queries, heads, width)).astype(dtype)
    k, v = rng.standard_normal((2, batch, keys, heads, width)).astype(dtype)
    return q, k, v, grad


def mask_of(name, shape):
    """Padding is segment 0. The first query of the last row has no key at all."""
    batch, queries, keys, *_ = shape
    rng = np.random.default_rng(1)
    key = rng.integers(0, 3, (batch, keys)).astype(np.int32)
    query = rng.integers(0, 3, (batch, queries)).astype(np.int32)
    query[-1, 0] = 0
    return {"none": None, "padding": Segments(None, key), "segments": Segments(query, key)}[name]


def values_and_gradients(implementation, q, k, v, grad, mask, rate):
    seed = np.array([1, 2, 3, 4], np.uint32) if rate else None

    @jax.jit
    def run(q, k, v, grad, mask):
        def apply(q, k, v):
            return attention.dot_product_attention(q, k, v, mask, seed, rate, implementation)

        context, pull = jax.vjp(apply, q, k, v)
        return context, *pull(grad)

    with jax.default_matmul_precision("highest"), interpreted():
        return [np.asarray(x, np.float32) for x in run(q, k, v, grad, mask)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("shape", "mask", "rate"), CASES)
def test_values_and_gradients_match_the_reference(kind, shape, mask, rate):
    arrays, mask = inputs_of(SHAPES[shape]), mask_of(mask, SHAPES[shape])
    results = values_and_gradients(kind, *arrays, mask, rate)
    expected = values_and_gradients("reference", *arrays, mask, rate)
    for result, reference in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_matches_the_float32_reference(kind):
    shape = SHAPES["whole"]
    arrays, mask = inputs_of(shape, jnp.bfloat16), mask_of("segments", shape)
    results = values_and_gradients(kind, *arrays, mask, 0.3)
    arrays = [x.astype(np.float32) for x in arrays]
    expected = values_and_gradients("reference", *arrays, mask, 0.3)
    for result, reference in zip(results, expected, strict=True):
        assert np.abs(result - reference).max() < 0.02 * np.abs(reference).max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_the_same_elements_are_dropped(kind, rate):
    """With one-hot values the output is the probabilities."""
    keys = 128
    q, k, _, grad = inputs_of((2, 300, keys, 2, keys))
    v = np.broadcast_to(np.eye(keys, dtype=np.float32)[None, :, None], k.shape)
    context, *_ = values_and_gradients(kind, q, k, v, grad, None, rate)
    bits = dropout.attention_bits(np.array([1, 2, 3, 4], np.uint32), q)
    keep = dropout.attention_keep_mask(bits, 300, keys, rate)
    np.testing.assert_array_equal(np.moveaxis(context, 1, 2) != 0, keep)


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_a_batch_drop_what_the_whole_batch_drops(kind):
    q, k, v, grad = inputs_of((4, 128, 128, 2, 64))
    expected = values_and_gradients(kind, q, k, v, grad, None, 0.3)
    seed = np.array([1, 2, 3, 4], np.uint32)

    def of_part(q, k, v, grad):
        def apply(q, k, v):
            return attention.dot_product_attention(q, k, v, None, seed, 0.3, kind)

        context, pull = jax.vjp(apply, q, k, v)
        return context, *pull(grad)

    parts = [x.reshape(2, 2, *x.shape[1:]) for x in (q, k, v, grad)]
    with jax.default_matmul_precision("highest"), interpreted():
        results = jax.jit(jax.vmap(of_part))(*parts)
    for result, whole in zip(results, expected, strict=True):
        np.testing.assert_allclose(result.reshape(whole.shape), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_no_scores_are_stored(kind):
    q, k, v, _ = inputs_of(SHAPES["whole"])
    with interpreted():
        _, pull = jax.vjp(
            lambda *x: attention.dot_product_attention(*x, implementation=kind), q, k, v
        )
    assert all(leaf.size <= q.size for leaf in jax.tree.leaves(pull))


@pytest.mark.parametrize(
    ("kind", "shape", "dtype", "bias", "reason"),
    [
        ("pallas_tpu", (1, 8, 8, 2, 16), np.float32, np.zeros((1, 1, 8, 8)), "a bias or a causal"),
        ("pallas_tpu", (1, 8, 8, 2, 16), np.float16, None, "the dtype is float16"),
        ("pallas_tpu", (1, 8, 4096, 2, 16), np.float32, None, "4096 keys, more than 2048"),
        ("pallas_tpu", (1, 8, 8, 3, 64), np.float32, None, "3 heads of 64 on a device do not"),
    ],
)
def test_what_cannot_be_computed_is_refused_or_left_to_xla(kind, shape, dtype, bias, reason):
    q, k, v, _ = inputs_of(shape, dtype)
    with pytest.raises(ValueError, match=reason) as error:
        attention.dot_product_attention(q, k, v, bias, implementation=kind)
    assert "attention=auto" in str(error.value)
    assert attention.dot_product_attention(q, k, v, bias).shape == q.shape


@pytest.mark.parametrize("kind", KINDS)
def test_it_lowers_for_its_platform_without_one(kind):
    shape = jax.ShapeDtypeStruct((2, 512, 12, 64), jnp.bfloat16)
    seed = np.array([1, 2, 3, 4], np.uint32)

    def total(q, k, v, segments):
        mask = Segments(segments, segments)
        context = attention.dot_product_attention(q, k, v, mask, seed, 0.1, kind)
        return context.astype(jnp.float32).sum()

    segments = jax.ShapeDtypeStruct((2, 512), jnp.int32)
    gradient, shapes = jax.grad(total, (0, 1, 2)), (shape, shape, shape, segments)
    if kind == "pallas_gpu":
        assert "triton" in described_gpu.lowered(gradient, *shapes)
    else:
        lowered = jax.jit(gradient).trace(*shapes).lower(lowering_platforms=("tpu",))
        assert "tpu_custom_call" in lowered.as_text()
