"""Dropout: its rate, the independence of its bits, and the same bits forwards and backwards."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roberta_jax.kernels.dropout import (
    PAIR_DISTANCE,
    attention_bits,
    attention_dropout,
    attention_keep_mask,
    attention_scale,
    dropout,
    keep_mask,
    reference_attention_keep_mask,
    reference_dropout,
    reference_keep_mask,
    seed_from_key,
)

pytestmark = pytest.mark.accelerator

RATE = 0.1


def make_seed(number):
    return seed_from_key(jax.random.key(number))


def make_mask(number, shape, rate=RATE):
    return np.asarray(jitted_keep_mask(make_seed(number), shape, rate))


jitted_keep_mask = jax.jit(keep_mask, static_argnums=(1, 2))


def test_bits_never_change():
    """A run resumed with a newer version must draw the same dropout."""
    mask = np.asarray(keep_mask(np.arange(1, 5, dtype=np.uint32), (2, 3, 64), 0.3))
    rows = [row.tobytes().hex() for row in np.packbits(mask, axis=-1).reshape(6, 8)]
    assert rows == [
        "4eff3ff7b64e5f59",
        "f8effea7f9b7fdd7",
        "7addf9f7dff7fb45",
        "b79dd5e1e5ff5dfe",
        "ffdf9dfe65cf7ff6",
        "2a52a7eabbe7ddff",
    ]


@pytest.mark.parametrize("shape", [(50,), (3, 40), (2, 3, 4, 33)])
@pytest.mark.parametrize("rate", [0.0, RATE, 0.999])
def test_mask_is_that_of_the_reference(shape, rate):
    expected = jax.jit(reference_keep_mask, static_argnums=(1, 2))(make_seed(5), shape, rate)
    np.testing.assert_array_equal(make_mask(5, shape, rate), expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_values_and_gradients_match_the_reference(dtype):
    x, grad = np.random.default_rng(0).standard_normal((2, 16, 3, 50)).astype(dtype)
    seed = make_seed(1)

    def value_and_grad(function):
        @jax.jit
        def run(x, grad):
            value, pull = jax.vjp(lambda x: function(x, seed, RATE), x)
            return value, *pull(grad)

        return run(x, grad)

    for ours, theirs in zip(
        value_and_grad(dropout), value_and_grad(reference_dropout), strict=True
    ):
        assert ours.dtype == dtype
        tolerance = 1e-6 if dtype == jnp.float32 else 1e-2  # the factor 1 / 0.9 is rounded
        np.testing.assert_allclose(
            ours.astype(jnp.float32), theirs.astype(jnp.float32), rtol=tolerance
        )


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9])
def test_rate(rate):
    """Within five standard deviations of the rate over 32 million elements, and so within 1e-4."""
    masks = [make_mask(seed, (4, 12, 256, 512), rate) for seed in range(5)]
    share = 1 - np.mean([mask.mean() for mask in masks])
    spread = (rate * (1 - rate) / (5 * masks[0].size)) ** 0.5
    assert abs(share - rate) < 5 * spread
    if rate == RATE:
        masks = (make_mask(seed, (4, 12, 512, 512)) for seed in range(16))
        assert abs(np.mean([1 - mask.mean() for mask in masks]) - RATE) < 1e-4


def assert_no_pattern(dropped):
    """The share dropped in each slice varies as independent draws do: a chi-square per axis."""
    for axis in range(dropped.ndim):
        others = tuple(i for i in range(dropped.ndim) if i != axis)
        counts = dropped.sum(axis=others)
        size = dropped.size // dropped.shape[axis]
        chi = np.sum((counts - size * RATE) ** 2) / (size * RATE * (1 - RATE))
        degrees = dropped.shape[axis]
        assert abs(chi - degrees) < 5 * (2 * degrees) ** 0.5, (axis, chi)


def test_no_pattern_along_any_axis():
    dropped = ~make_mask(3, (16, 12, 128, 256))
    assert_no_pattern(dropped)


def correlation(a, b):
    """Correlation of two arrays of 0 and 1, in standard deviations of independent draws."""
    a, b = a - RATE, b - RATE
    return float(np.mean(a * b) / (RATE * (1 - RATE)) * a.size**0.5)


def test_neighbours_are_independent():
    dropped = (~make_mask(4, (8, 12, 128, 256))).astype(np.float64)
    shifts = [s for s in itertools.product((0, 1), repeat=4) if any(s)]
    shifts += [(0, 0, 0, 2), (0, 0, 0, 16), (0, 0, 0, 128), (0, 0, 64, 0), (4, 0, 0, 0)]
    shifts += [(0, 0, 1, -1), (0, 0, -1, 2)]
    for shift in shifts:
        assert abs(correlation(dropped, np.roll(dropped, shift, range(4)))) < 5, shift


def test_different_seeds_are_independent():
    """Each dropout layer, block and step has its own seed. Seeds may differ in a single bit."""
    masks = [(~make_mask(number, (8, 128, 512))).astype(np.float64) for number in range(8)]
    seed = np.asarray(make_seed(0))
    for word, bit in itertools.product(range(4), (0, 7, 31)):
        flipped = seed.copy()
        flipped[word] ^= np.uint32(1) << np.uint32(bit)
        mask = np.asarray(jitted_keep_mask(flipped, (8, 128, 512), RATE))
        masks.append((~mask).astype(np.float64))
    for a, b in itertools.combinations(masks, 2):
        assert abs(correlation(a, b)) < 5.5


def test_rows_do_not_repeat():
    """No two rows, among several seeds, drop the same elements."""
    masks = [make_mask(number, (8, 12, 128, 256)) for number in range(3)]
    rows = np.concatenate([mask.reshape(-1, 256) for mask in masks])
    packed = np.packbits(rows, axis=1)
    assert len(np.unique(packed, axis=0)) == len(packed)


def test_kept_elements_are_scaled():
    x = jax.random.normal(jax.random.key(0), (64, 300))
    y = np.asarray(dropout(x, make_seed(1), 0.25))
    mask = make_mask(1, x.shape, 0.25)
    np.testing.assert_allclose(y, np.where(mask, x / 0.75, 0), rtol=1e-6)


def test_the_mean_is_kept_in_bfloat16():
    """1 / 0.9 rounded to bfloat16 would make every mean 0.9984 times as large."""
    x = jax.random.uniform(jax.random.key(0), (256, 4096), minval=1, maxval=2).astype(jnp.bfloat16)
    y = np.asarray(dropout(x, make_seed(1), RATE), np.float64)
    mask = make_mask(1, x.shape)
    exact = np.where(mask, np.asarray(x, np.float64) / (1 - RATE), 0)
    assert np.mean(y) / np.mean(exact) == pytest.approx(1, abs=1e-4)
    np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16).astype(np.float64))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradient_drops_the_same_elements(dtype):
    x = jnp.ones((32, 200), dtype)
    y, pull = jax.vjp(lambda x: dropout(x, make_seed(2), RATE), x)
    (grad,) = pull(jnp.ones_like(y))
    assert grad.dtype == dtype
    assert y.dtype == dtype
    np.testing.assert_array_equal(grad, y)
    assert set(np.unique(np.asarray(y, np.float32))) == {0, np.float32(jnp.asarray(1 / 0.9, dtype))}


def test_backward_pass_stores_only_the_seed():
    _, pull = jax.vjp(lambda x: dropout(x, make_seed(0), RATE), jnp.ones((64, 128)))
    assert all(leaf.size <= 4 for leaf in jax.tree.leaves(pull))


def test_any_kind_of_key():
    for kind in ("threefry2x32", "rbg"):
        assert seed_from_key(jax.random.key(0, impl=kind)).shape == (4,)


@pytest.mark.parametrize("parts", [1, 2, 6])
def test_the_parts_of_a_batch_drop_what_the_whole_batch_drops(parts):
    """Also in the gradient."""
    x, grad = np.random.default_rng(0).standard_normal((2, 12, 3, 50)).astype(np.float32)
    seed = make_seed(7)

    def value_and_grad(x, grad):
        value, pull = jax.vjp(lambda x: dropout(x, seed, 0.3), x)
        return value, *pull(grad)

    expected = value_and_grad(x, grad)
    split = [a.reshape(parts, -1, *a.shape[1:]) for a in (x, grad)]
    for ours, whole in zip(jax.jit(jax.vmap(value_and_grad))(*split), expected, strict=True):
        np.testing.assert_array_equal(ours.reshape(whole.shape), whole)


def test_seeds_of_its_own_give_each_part_its_own_bits():
    x = jnp.ones((2, 4, 3, 50))
    seeds = jnp.stack([make_seed(0), make_seed(1)])
    both = jax.vmap(lambda x, seed: dropout(x, seed, 0.3))(x, seeds)
    for part, seed in zip(both, seeds, strict=True):
        np.testing.assert_array_equal(part, dropout(x[0], seed, 0.3))


def attention_mask(number, shape, rate=RATE):
    """The mask of attention probabilities [B, H, Q, S]."""
    return np.asarray(jitted_attention_keep_mask(make_seed(number), shape, rate))


@functools.partial(jax.jit, static_argnums=(1, 2))
def jitted_attention_keep_mask(seed, shape, rate):
    batch, heads, queries, keys = shape
    bits = attention_bits(seed, jnp.zeros((batch, 1, heads, 1)))
    return attention_keep_mask(bits, queries, keys, rate)


def test_bits_of_attention_never_change():
    """A run resumed with a newer version must draw the same dropout."""
    seed = np.arange(1, 5, dtype=np.uint32)
    bits = attention_bits(seed, np.zeros((2, 1, 2, 1), np.float32))
    mask = np.asarray(attention_keep_mask(bits, 2, 160, 0.3))
    rows = [row.tobytes().hex() for row in np.packbits(mask, axis=-1).reshape(8, 20)]
    assert rows == [
        "ddfc9ffbf7a73ffc6e67b66f27efb7735ebf64df",
        "abdfdfd47f29f9cc54f1aeef97a37a91b5d3b667",
        "9dd3ffddfb3d6fff64bffdb1baa5b17ed5eb968c",
        "7cd93f5fff2fafe8a35daff33efb7fdf177387f4",
        "fab1bf37f3b7f7dc9ff7ff3ccff7f8b77a7fafdf",
        "cedefeb7baff7ff7e5f77eefd7e7563fb3edffee",
        "6fefb1cfde5cdd7b1e63ddd3fafb7b5d6b17275d",
        "b67f2fffaebf42fabf3f36fcf9b7dde79b5ef7ff",
    ]


@pytest.mark.parametrize("shape", [(2, 3, 4, 33), (1, 2, 3, 300)])
@pytest.mark.parametrize("rate", [0.0, RATE, 0.999])
def test_mask_of_attention_is_that_of_the_reference(shape, rate):
    reference = jax.jit(reference_attention_keep_mask, static_argnums=(1, 2))
    np.testing.assert_array_equal(
        attention_mask(5, shape, rate), reference(make_seed(5), shape, rate)
    )


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9])
def test_rate_of_attention(rate):
    """Within five standard deviations of the rounded rate, which is within 1e-5 of the rate."""
    masks = [attention_mask(seed, (4, 12, 256, 512), rate) for seed in range(5)]
    share = np.mean([mask.mean() for mask in masks])
    spread = (rate * (1 - rate) / (5 * masks[0].size)) ** 0.5
    assert abs(share - 1 / attention_scale(rate)) < 5 * spread
    assert abs(1 / attention_scale(rate) - (1 - rate)) < 1e-5


def test_no_pattern_in_attention_along_any_axis():
    dropped = ~attention_mask(3, (16, 12, 128, 256))
    assert_no_pattern(dropped)


def test_neighbours_and_pairs_in_attention_are_independent():
    """Keys 64 apart share a hash. So do the products of several elements, two by two."""
    dropped = (~attention_mask(4, (8, 12, 128, 256))).astype(np.float64)
    shifts = [s for s in itertools.product((0, 1), repeat=4) if any(s)]
    shifts += [(0, 0, 0, 64), (0, 0, 0, 63), (0, 0, 0, 128), (0, 0, 1, 64), (0, 1, 0, 64)]
    shifts += [(1, 0, 0, 64), (0, 0, 0, 2), (0, 0, 64, 0), (4, 0, 0, 0), (0, 0, 1, -1)]
    for shift in shifts:
        assert abs(correlation(dropped, np.roll(dropped, shift, range(4)))) < 5, shift
    parts = dropped.reshape(8, 12, 128, 2, 2, PAIR_DISTANCE)
    both = (parts[..., 0, :] - RATE) * (parts[..., 1, :] - RATE) / (RATE * (1 - RATE))
    for shift in ((0, 0, 0, 0, 1), (0, 0, 0, 1, 0), (0, 0, 1, 0, 0), (0, 1, 0, 0, 0)):
        moved = np.roll(both, shift, range(5))
        assert abs(np.mean(both * moved) * both.size**0.5) < 5, shift


def test_attention_of_different_steps_is_independent():
    masks = [(~attention_mask(number, (4, 2, 128, 512))).astype(np.float64) for number in range(8)]
    for a, b in itertools.combinations(masks, 2):
        assert abs(correlation(a, b)) < 5.5


def test_kept_probabilities_are_divided_by_the_share_that_is_kept():
    x = np.random.default_rng(0).random((2, 3, 8, 200)).astype(np.float32)
    bits = attention_bits(make_seed(1), jnp.zeros((2, 1, 3, 1)))
    y = attention_dropout(x, bits, RATE)
    kept = 1 - round(RATE * 2**16) / 2**16
    expected = np.where(attention_mask(1, x.shape), x / kept, 0)
    np.testing.assert_allclose(y, expected, rtol=1e-6)
