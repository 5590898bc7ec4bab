"""Dropout: its rate, its independence, and the same bits forwards, backwards and on every mesh."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from roberta_jax.kernels.dropout import Dropout, dropout, keep_mask, random_words

RATE = 0.1


def mask_of(seed, shape, rate=RATE):
    return np.asarray(jax.jit(keep_mask, static_argnums=(1, 2))(words_of(seed), shape, rate))


def words_of(seed):
    return random_words(jax.random.key(seed))


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9])
def test_rate(rate):
    """Within five standard deviations of the rate over 32 million elements, and so within 1e-4."""
    masks = [mask_of(seed, (4, 12, 256, 512), rate) for seed in range(5)]
    share = 1 - np.mean([mask.mean() for mask in masks])
    spread = (rate * (1 - rate) / (5 * masks[0].size)) ** 0.5
    assert abs(share - rate) < 5 * spread
    if rate == RATE:
        many = np.mean([1 - mask_of(seed, (4, 12, 512, 512)).mean() for seed in range(16)])
        assert abs(many - RATE) < 1e-4


def test_no_pattern_along_any_axis():
    """The share dropped in each slice varies as independent draws do: a chi-square per axis."""
    dropped = ~mask_of(3, (16, 12, 128, 256))
    for axis in range(dropped.ndim):
        others = tuple(i for i in range(dropped.ndim) if i != axis)
        counts = dropped.sum(axis=others)
        size = dropped.size // dropped.shape[axis]
        chi = np.sum((counts - size * RATE) ** 2) / (size * RATE * (1 - RATE))
        degrees = dropped.shape[axis]
        assert abs(chi - degrees) < 5 * (2 * degrees) ** 0.5, (axis, chi)


def correlation(a, b):
    """Of two equally long arrays of 0 and 1, in standard deviations of independent draws."""
    a, b = a - RATE, b - RATE
    return float(np.mean(a * b) / (RATE * (1 - RATE)) * a.size**0.5)


def test_neighbours_are_independent():
    dropped = (~mask_of(4, (8, 12, 128, 256))).astype(np.float64)
    shifts = [s for s in itertools.product((0, 1), repeat=4) if any(s)]
    shifts += [(0, 0, 0, 2), (0, 0, 0, 16), (0, 0, 0, 128), (0, 0, 64, 0), (4, 0, 0, 0)]
    shifts += [(0, 0, 1, -1), (0, 0, -1, 2)]
    for shift in shifts:
        assert abs(correlation(dropped, np.roll(dropped, shift, range(4)))) < 5, shift


def test_different_words_are_independent():
    """Sites, layers and steps have keys of their own; keys differing in one bit share nothing."""
    masks = [(~mask_of(seed, (8, 128, 512))).astype(np.float64) for seed in range(8)]
    words = np.asarray(words_of(0))
    for word, bit in itertools.product(range(4), (0, 7, 31)):
        flipped = words.copy()
        flipped[word] ^= np.uint32(1) << np.uint32(bit)
        masks.append((~np.asarray(keep_mask(flipped, (8, 128, 512), RATE))).astype(np.float64))
    for a, b in itertools.combinations(masks, 2):
        assert abs(correlation(a, b)) < 5.5


def test_rows_do_not_repeat():
    """No two rows, of several sites at once, drop the same elements."""
    rows = np.concatenate([mask_of(seed, (8, 12, 128, 256)).reshape(-1, 256) for seed in range(3)])
    packed = np.packbits(rows, axis=1)
    assert len(np.unique(packed, axis=0)) == len(packed)


def test_scales_what_it_keeps():
    x = jax.random.normal(jax.random.key(0), (64, 300))
    y = np.asarray(dropout(x, words_of(1), 0.25))
    mask = mask_of(1, x.shape, 0.25)
    np.testing.assert_allclose(y, np.where(mask, x / 0.75, 0), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradient_drops_the_same(dtype):
    x = jnp.ones((32, 200), dtype)
    y, pull = jax.vjp(lambda x: dropout(x, words_of(2), RATE), x)
    (grad,) = pull(jnp.ones_like(y))
    assert grad.dtype == dtype
    assert y.dtype == dtype
    np.testing.assert_array_equal(grad, y)
    assert set(np.unique(np.asarray(y, np.float32))) == {0, np.float32(jnp.asarray(1 / 0.9, dtype))}


def test_one_bit_of_storage_is_not_kept():
    """The backward pass needs the words alone."""
    _, pull = jax.vjp(lambda x: dropout(x, words_of(0), RATE), jnp.ones((64, 128)))
    assert all(leaf.size <= 4 for leaf in jax.tree.leaves(pull))


def test_any_kind_of_key():
    for kind in ("threefry2x32", "rbg"):
        assert random_words(jax.random.key(0, impl=kind)).shape == (4,)


def test_module():
    x = jnp.ones((4, 1000))
    module = Dropout(0.5)
    np.testing.assert_array_equal(module.apply({}, x, True), x)
    np.testing.assert_array_equal(Dropout(0.0).apply({}, x, False), x)
    first, again, other = (
        module.apply({}, x, False, rngs={"dropout": jax.random.key(seed)}) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
