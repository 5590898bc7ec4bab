"""Dropout whose bits are a hash of where an element stands, not a stream of random numbers.

An element is dropped or kept by an integer hash of two things: a few random words (one set for
each dropout site, layer and step) and the element's coordinates. Four properties follow.

* The bits are computed inside the loop that uses them: nothing is stored, and the backward pass
  computes the same bits again from the same words.
* Each device computes the bits of the elements it holds, with no communication, and they are the
  same bits on any mesh.
* The rate is exact to 2**-32.
* Every element has bits of its own: nothing is shared along the batch, the heads or the length.

The hash works on pairs of 32-bit words. Each row (all coordinates but the last) mixes its
coordinates and the random words into two words; each element mixes its column into them. The
mixing constants are those of well-tested 32-bit finalisers (bijections with good avalanche).
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

_GOLDEN = np.uint32(0x9E3779B9)  # 2**32 / golden ratio: spreads consecutive integers
_NUM_WORDS = 4


def _mix(x: jax.Array) -> jax.Array:
    """A bijection of uint32 under which flipping any bit flips each output bit half the time."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def random_words(key: jax.Array) -> jax.Array:
    """The random words of one dropout site, uint32 [4], from a JAX key of any kind."""
    return jax.random.bits(key, (_NUM_WORDS,), jnp.uint32)


def keep_mask(words: jax.Array, shape: tuple[int, ...], rate: float) -> jax.Array:
    """Which elements of an array of this shape survive.

    Args:
      words: uint32 [4] from `random_words`.
      shape: of the array, its last axis at most 2**32 long; the array itself may be longer.
      rate: share of elements to drop, in [0, 1).

    Returns:
      bool array of `shape`, True with probability 1 - rate.
    """
    *rows, columns = shape
    row_shape = (*rows, 1)
    low = jnp.broadcast_to(words[0], row_shape)
    high = jnp.broadcast_to(words[1], row_shape)
    for axis in range(len(rows)):
        index = jax.lax.broadcasted_iota(jnp.uint32, row_shape, axis)
        low = _mix(low + index * _GOLDEN)
        high = _mix(high ^ (low + words[2]))
    # The random word is mixed into the columns while there are few of them. (It also makes them
    # differ in each pass of a loop over layers, else XLA keeps them all, broadcast to `shape`.)
    column = jax.lax.iota(jnp.uint32, columns) * _GOLDEN ^ words[3]
    bits = _mix(column + low)
    bits = (bits ^ high) * np.uint32(0x2C1B3C6D)
    bits = bits ^ (bits >> 16)
    return bits >= np.uint32(min(round(rate * 2**32), 2**32 - 1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def dropout(x: jax.Array, words: jax.Array, rate: float) -> jax.Array:
    """Zeroes a share `rate` of x's elements and divides the others by 1 - rate."""
    # A product rather than a choice between x and 0: XLA would keep an array of zeros for that.
    return x * (keep_mask(words, x.shape, rate).astype(x.dtype) * (1 / (1 - rate)))


def _dropout_forward(x, words, rate):
    return dropout(x, words, rate), words


def _dropout_backward(rate, words, grad):
    return dropout(grad, words, rate), None


dropout.defvjp(_dropout_forward, _dropout_backward)


class Dropout(nn.Module):
    """Dropout as a module: takes its key from the RNG stream "dropout".

    Attributes:
      rate: share of elements to drop; 0 leaves the input as it is and needs no key.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        if deterministic or self.rate == 0:
            return x
        return dropout(x, random_words(self.make_rng("dropout")), self.rate)
