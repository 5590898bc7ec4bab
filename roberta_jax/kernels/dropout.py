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
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

_GOLDEN_RATIO = np.uint32(0x9E3779B9)  # 2**32 / golden ratio: spreads consecutive integers
_SEED_SIZE = 4


def seed_from_key(key: jax.Array) -> jax.Array:
    """The seed of one application of dropout, uint32 [4], from a JAX key of any kind."""
    return jax.random.bits(key, (_SEED_SIZE,), jnp.uint32)


def reference_keep_mask(seed: jax.Array, shape: tuple[int, ...], rate: float) -> jax.Array:
    """Defines the hash: `keep_mask` with one coordinate array of the full shape for each axis."""
    *rows, column = (index.astype(jnp.uint32) for index in jnp.indices(shape))
    low = jnp.full(shape, seed[0])
    high = jnp.full(shape, seed[1])
    for row in rows:
        low = _mix(low + row * _GOLDEN_RATIO)
        high = _mix(high ^ (low + seed[2]))
    bits = _mix((column * _GOLDEN_RATIO ^ seed[3]) + low)
    return _combine(bits, high) >= _threshold(rate)


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
    row_shape = (*rows, 1)
    low = jnp.broadcast_to(seed[0], row_shape)
    high = jnp.broadcast_to(seed[1], row_shape)
    for axis in range(len(rows)):
        index = jax.lax.broadcasted_iota(jnp.uint32, row_shape, axis)
        low = _mix(low + index * _GOLDEN_RATIO)
        high = _mix(high ^ (low + seed[2]))
    # The seed is mixed into the [columns] array, which is small. This also makes the array depend
    # on the iteration of a loop over layers; XLA would otherwise hoist it out of the loop and store
    # it broadcast to `shape`.
    column = jax.lax.iota(jnp.uint32, columns) * _GOLDEN_RATIO ^ seed[3]
    return _combine(_mix(column + low), high) >= _threshold(rate)


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of uint32: flipping an input bit flips each output bit with probability 1/2."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _combine(bits: jax.Array, high: jax.Array) -> jax.Array:
    """Mixes the row's second word into an element's bits."""
    bits = (bits ^ high) * np.uint32(0x2C1B3C6D)
    return bits ^ (bits >> 16)


def _threshold(rate: float) -> np.uint32:
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
            first_rows = jnp.arange(parts, dtype=jnp.uint32) * np.uint32(x.shape[1])
            seed, seed_is_batched = jax.vmap(_from_row, (None, 0))(seed, first_rows), True
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


def _from_row(seed: jax.Array, row: jax.Array) -> jax.Array:
    """The seed with which `keep_mask` gives the rows of its first axis from this row on.

    The hash adds the seed's first word to a multiple of the row's number.
    """
    return seed.at[0].add(row * _GOLDEN_RATIO)
