"""Dropout whose random bits are a hash of each element's coordinates.

An integer hash of a seed (one for each dropout layer and step) and of the element's coordinates
decides whether the element is kept. This has four consequences.

* The mask is computed where it is used. It is never stored: the backward pass computes the same
  mask again from the seed.
* Each device computes the mask of the elements that it holds, without communication, and the mask
  is the same on any mesh.
* The dropout rate is exact to 2**-32.
* Every element has its own random bits. None are shared along the batch, the heads or the length.

Under `jax.vmap` with one seed, the parts of a batch drop the elements that the whole batch drops:
the rows of a part are numbered after those of the parts before it. So a training step can compute
each data shard by itself, and its dropout is the same for any number of shards.

The hash works on pairs of 32-bit words. Each row (all coordinates but the last) mixes its
coordinates and the seed into two words; each element mixes its column into them. The mixing
constants are those of well-tested 32-bit finalisers (bijections with good avalanche).

The attention probabilities have most of a model's random bits: heads times length for each token of
a layer. Two elements share the 32 bits of one hash there, each with a half of its own
(`attention_keep_mask`). A kernel then computes half as many hashes. The rate is a multiple of
2**-16, and the kept elements are divided by the share that is kept at that rate.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_GOLDEN_RATIO = np.uint32(0x9E3779B9)  # 2**32 / golden ratio: spreads consecutive integers
_SEED_SIZE = 4

# Elements of a row of attention probabilities that share a hash are this far apart.
PAIR_DISTANCE = 64


def seed_from_key(key: jax.Array) -> jax.Array:
    """The seed of one application of dropout, uint32 [4], from a JAX key of any kind."""
    return jax.random.bits(key, (_SEED_SIZE,), jnp.uint32)


def reference_keep_mask(seed: jax.Array, shape: tuple[int, ...], rate: float) -> jax.Array:
    """`keep_mask` by its definition."""
    return _reference_hash(seed, *jnp.indices(shape)) >= threshold(rate)


def reference_attention_keep_mask(
    seed: jax.Array, shape: tuple[int, int, int, int], rate: float
) -> jax.Array:
    """`attention_keep_mask` of the shape [B, H, queries, keys] by its definition."""
    *rows, key = jnp.indices(shape)
    block, place = key // (2 * PAIR_DISTANCE), key % PAIR_DISTANCE
    bits = _reference_hash(seed, *rows, block * PAIR_DISTANCE + place)
    half = jnp.where(key % (2 * PAIR_DISTANCE) < PAIR_DISTANCE, bits >> 16, bits % 2**16)
    return half >= _dropped_of_65536(rate)


def _reference_hash(seed: jax.Array, *coordinates: jax.Array) -> jax.Array:
    """Defines the hash, with one array of the full shape for each coordinate."""
    *rows, column = (index.astype(jnp.uint32) for index in coordinates)
    low = jnp.full(column.shape, seed[0])
    high = jnp.full(column.shape, seed[1])
    for row in rows:
        low = _mix(low + row * _GOLDEN_RATIO)
        high = _mix(high ^ (low + seed[2]))
    return _combine(_mix((column * _GOLDEN_RATIO ^ seed[3]) + low), high)


def reference_dropout(x: jax.Array, seed: jax.Array, rate: float) -> jax.Array:
    """`dropout` by its definition, differentiated by JAX."""
    return jnp.where(reference_keep_mask(seed, x.shape, rate), x / (1 - rate), 0)


def keep_mask(seed: jax.Array, shape: tuple[int, ...], rate: float) -> jax.Array:
    """Which elements of an array of this shape are kept.

    Args:
      seed: uint32 [4] from `seed_from_key`.
      shape: shape of the array. Its last axis has at most 2**32 elements; the array may have more.
      rate: fraction of elements to drop, in [0, 1).

    Returns:
      bool array of `shape`, True with probability 1 - rate.
    """
    *rows, columns = shape
    low, high = _row_words(seed, (*rows, 1))
    # The seed is mixed into the [columns] array, which is small. This also makes the array depend
    # on the iteration of a loop over layers; XLA would otherwise hoist it out of the loop and store
    # it broadcast to `shape`.
    column = column_word(jax.lax.iota(jnp.uint32, columns), seed[3])
    return element_hash(column, low, high) >= threshold(rate)


def _row_words(seed: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """The two words of each row; the last axis of the shape is that of the columns, of size 1."""
    low = jnp.broadcast_to(seed[0], shape)
    high = jnp.broadcast_to(seed[1], shape)
    for axis in range(len(shape) - 1):
        low, high = mix_coordinate(
            low, high, jax.lax.broadcasted_iota(jnp.uint32, shape, axis), seed[2]
        )
    return low, high


def mix_coordinate(
    low: jax.Array, high: jax.Array, index: jax.Array, seed_word: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mixes one more coordinate of its rows, uint32, and the seed's third word into the words."""
    low = _mix(low + index * _GOLDEN_RATIO)
    return low, _mix(high ^ (low + seed_word))


class AttentionBits(NamedTuple):
    """What decides which attention probabilities are kept, on any device that has some heads.

    Attributes:
      low_BH, high_BH: uint32 [B, H], the words of a row of the batch and a head.
      seed: uint32 [4].
    """

    low_BH: jax.Array
    high_BH: jax.Array
    seed: jax.Array


def attention_bits(seed: jax.Array, q_BQHK: jax.Array) -> AttentionBits:
    """The words of each row of the batch and each head of these queries; see `AttentionBits`.

    Under `jax.vmap` with one seed, the rows of the batch are numbered through its parts.
    """
    return AttentionBits(*leading_words(seed, q_BQHK, (0, 2)), seed)


def leading_words(
    seed: jax.Array, x: jax.Array, axes: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """The two words after some of an array's axes, the first of them 0; uint32 of their sizes.

    A kernel mixes the other coordinates into them where it computes an element.
    """
    return _leading_words(axes)(jax.lax.stop_gradient(x), seed)


@functools.cache
def _leading_words(axes: tuple[int, ...]) -> Callable[[jax.Array, jax.Array], Any]:
    def words(x, seed):
        shape = tuple(x.shape[axis] for axis in axes)
        return tuple(word[..., 0] for word in _row_words(seed, (*shape, 1)))

    numbered = jax.custom_batching.custom_vmap(words)

    @numbered.def_vmap
    def words_of_parts(parts, is_batched, x, seed):
        x_is_batched, seed_is_batched = is_batched
        if not seed_is_batched:  # then the array is
            seed = _seeds_of_parts(parts, x.shape[1], seed)
        # The plain function: a second vmap around this one would number the rows again.
        return jax.vmap(words, (0 if x_is_batched else None, 0))(x, seed), (True, True)

    return numbered


def attention_keep_mask(bits: AttentionBits, queries: int, keys: int, rate: float) -> jax.Array:
    """Which attention probabilities are kept, bool [B, H, queries, keys].

    Keys that are `PAIR_DISTANCE` apart, in the same block of twice that many, share a hash: the
    first one compares its upper 16 bits with the threshold, the second one its lower 16.
    """
    low, high = (word[..., None, None] for word in (bits.low_BH, bits.high_BH))
    row = jax.lax.broadcasted_iota(jnp.uint32, (1, 1, queries, 1), 2)
    low, high = mix_coordinate(low, high, row, bits.seed[2])
    key = jax.lax.iota(jnp.uint32, keys)
    # The seed in both arrays keeps XLA from hoisting them out of a loop; see `keep_mask`.
    column, shift = jax.lax.optimization_barrier(
        (column_word(_pair_of(key), bits.seed[3]), key // PAIR_DISTANCE % 2 * 16)
    )
    return element_hash(column, low, high) << shift >= attention_threshold(rate)


def _pair_of(key: jax.Array) -> jax.Array:
    return key // (2 * PAIR_DISTANCE) * PAIR_DISTANCE + key % PAIR_DISTANCE


def column_word(index: jax.Array, seed_word: jax.Array) -> jax.Array:
    """The word of a column, or of a pair of keys, from its number, uint32, and the seed's last."""
    return index * _GOLDEN_RATIO ^ seed_word


def element_hash(column: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """An element's bits, uint32, from the word of its column and the two of its row."""
    return _combine(_mix(column + low), high)


def attention_threshold(rate: float) -> np.uint32:
    """An element is dropped if its 16 bits, as the upper half of a word, are below this."""
    return np.uint32(_dropped_of_65536(rate) << 16)


def attention_scale(rate: float) -> float:
    """What kept elements are multiplied by: 1 / the share that is kept."""
    return 1 / (1 - _dropped_of_65536(rate) / 2**16)


def _dropped_of_65536(rate: float) -> int:
    return min(round(rate * 2**16), 2**16 - 1)


def attention_dropout(x_BHQS: jax.Array, bits: AttentionBits, rate: float) -> jax.Array:
    """Drops a fraction `rate` of float32 attention probabilities, and scales the others."""
    keep = attention_keep_mask(bits, *x_BHQS.shape[2:], rate)
    return x_BHQS * (keep.astype(x_BHQS.dtype) * attention_scale(rate))


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of uint32: flipping an input bit flips each output bit with probability 1/2."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _combine(bits: jax.Array, high: jax.Array) -> jax.Array:
    """Mixes the row's second word into an element's bits."""
    bits = (bits ^ high) * np.uint32(0x2C1B3C6D)
    return bits ^ (bits >> 16)


def threshold(rate: float) -> np.uint32:
    """Elements whose bits are below this are dropped."""
    return np.uint32(min(round(rate * 2**32), 2**32 - 1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def dropout(x: jax.Array, seed: jax.Array, rate: float) -> jax.Array:
    """Zeroes a fraction `rate` of x's elements and divides the others by 1 - rate.

    Args:
      x: any shape and floating dtype.
      seed: uint32 [4] from `seed_from_key`; decides which elements are dropped.
      rate: in [0, 1).

    Returns:
      An array of x's shape and dtype.
    """
    return _numbered(rate)(x, seed)


def _dropout_forward(x, seed, rate):
    return dropout(x, seed, rate), seed


def _dropout_backward(rate, seed, grad):
    return dropout(grad, seed, rate), None


dropout.defvjp(_dropout_forward, _dropout_backward)


@functools.cache
def _numbered(rate: float) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`_apply` with this rate, whose rows are numbered through all parts of a vmapped array."""

    @jax.custom_batching.custom_vmap
    def apply(x, seed):
        return _apply(x, seed, rate)

    @apply.def_vmap
    def apply_to_parts(parts, is_batched, x, seed):
        x_is_batched, seed_is_batched = is_batched
        if x_is_batched and not seed_is_batched and x.ndim > 2:
            seed, seed_is_batched = _seeds_of_parts(parts, x.shape[1], seed), True
        axes = tuple(0 if each else None for each in (x_is_batched, seed_is_batched))
        # `_apply` itself: a second vmap around this one would number the rows again.
        return jax.vmap(lambda x, seed: _apply(x, seed, rate), axes)(x, seed), True

    return apply


def _apply(x: jax.Array, seed: jax.Array, rate: float) -> jax.Array:
    # In float32, because 1 / (1 - rate) has few digits in bfloat16: with rate 0.1 the mean of the
    # result would be 0.9984 times that of x. The conversions are fused with the multiplication.
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    # Multiplied rather than selected with `where`: XLA would store an array of zeros for that.
    scale = keep_mask(seed, x.shape, rate).astype(dtype) * (1 / (1 - rate))
    return (x.astype(dtype) * scale).astype(x.dtype)


def _seeds_of_parts(parts: int, rows: int, seed: jax.Array) -> jax.Array:
    """The seed of each part of a batch whose rows are numbered through, uint32 [parts, 4]."""
    first_rows = jnp.arange(parts, dtype=jnp.uint32) * np.uint32(rows)
    return jax.vmap(_from_row, (None, 0))(seed, first_rows)


def _from_row(seed: jax.Array, row: jax.Array) -> jax.Array:
    """The seed with which `keep_mask` gives the rows of its first axis from this row on.

    The hash adds the seed's first word to a multiple of the row's number.
    """
    return jnp.asarray(seed).at[0].add(row * _GOLDEN_RATIO)
