"""Stateless random numbers: integer hashes, and permutations computed one element at a time.

Every random choice of the data pipeline is a hash of (seed, epoch, row, position in the row). A
batch therefore has the same bits whatever the order, step or host it is made in, and nothing has to
be saved to resume. NumPy's own generators would need one generator per row; these functions work on
whole arrays.

The values are part of the data format: a run resumed with a newer version must see the same
batches. The tests pin them; never change them.

There are two hashes, both built from multiply and xor-shift steps. `mix64` (the finaliser of
splitmix64, Steele et al. 2014) is for keys, of which there are few. `hash32` does the same on 32
bits with the constants of MurmurHash3's finaliser, which vectorizes well; it is for positions, of
which there are many.
"""

import math

import numpy as np

_MASK64 = 2**64 - 1
_GOLDEN64 = np.uint64(0x9E3779B97F4A7C15)
_GOLDEN32 = np.uint32(0x9E3779B9)
_FEISTEL_ROUNDS = 6
_SMALLEST_BASE = 8  # with smaller bases, six rounds do not reach all orders equally often
_PERMUTATION_STREAM = 0x7065726D  # makes row orders independent of other uses of the same seed


def mix64(values: np.ndarray) -> np.ndarray:
    """A bijection of the 64-bit integers in which every input bit reaches every output bit.

    Args:
      values: uint64, any shape with at least one axis.

    Returns:
      uint64 of the same shape.
    """
    x = values ^ (values >> np.uint64(30))
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def fold(*values) -> np.ndarray:
    """Hashes a tuple of integers, elementwise over arrays; the order of the tuple counts.

    Args:
      *values: Python integers or integer arrays that broadcast together; negative ones are taken
        modulo 2^64.

    Returns:
      uint64 of the broadcast shape, [1] if all values are plain integers.
    """
    key = np.zeros(1, np.uint64)
    for value in values:
        key = mix64(key + _GOLDEN64 + _as_uint64(value))
    return key


def hash32(keys: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """32 random bits for each counter of each key.

    The two halves of the key are added at different stages. With one half only, two rows whose keys
    differ by a multiple of the counters' stride would be shifted copies of each other.

    Args:
      keys: uint64 [B].
      counters: integers below 2^32, [N] or [B, N].

    Returns:
      uint32 [B, N].
    """
    low = keys.astype(np.uint32)[:, None]
    high = (keys >> np.uint64(32)).astype(np.uint32)[:, None]
    x = counters.astype(np.uint32, copy=False) * _GOLDEN32 + low
    scratch = x >> np.uint32(16)
    x ^= scratch
    x *= np.uint32(0x85EBCA6B)
    np.right_shift(x, np.uint32(13), out=scratch)
    x ^= scratch
    x += high
    x *= np.uint32(0xC2B2AE35)
    np.right_shift(x, np.uint32(16), out=scratch)
    x ^= scratch
    return x


def permute(index, n: int, seed: int, epoch) -> np.ndarray:
    """Maps `index` by a random permutation of range(n), without storing the permutation.

    This is a Feistel network over two digits (Black and Rogaway 2002). The index is written as two
    digits with bases of about sqrt(n), and each round adds a hash of one digit to the other. Each
    round can be undone by subtraction, so the network is a bijection for any hash. Results between
    n and the product of the bases go through the network again until they are below n ("cycle
    walking").

    Args:
      index: Integers in [0, n), any shape.
      n: Size of the permuted range, at least 1.
      seed: The seed of a family of permutations.
      epoch: The member of the family: an integer, or integers of index's shape.

    Returns:
      int64 of index's shape (at least one axis). For a fixed epoch, a bijection of range(n).

    Raises:
      ValueError: n is less than 1, or an index is outside [0, n).
    """
    return _permute(index, n, seed, epoch, is_inverse=False)


def unpermute(index, n: int, seed: int, epoch) -> np.ndarray:
    """The inverse of `permute`: `unpermute(permute(i, n, seed, epoch), n, seed, epoch)` is i."""
    return _permute(index, n, seed, epoch, is_inverse=True)


def _permute(index, n, seed, epoch, is_inverse):
    x, epoch = np.broadcast_arrays(np.atleast_1d(np.asarray(index, np.int64)), epoch)
    if n < 1 or (x.size and (x.min() < 0 or x.max() >= n)):
        raise ValueError(f"permute needs n >= 1 and every index in [0, n), here n = {n}")
    keys = np.broadcast_to(fold(_PERMUTATION_STREAM, seed, epoch), x.shape)
    offsets = np.arange(1, _FEISTEL_ROUNDS + 1, dtype=np.uint64) * _GOLDEN64
    round_keys = mix64(keys + offsets.reshape(-1, *[1] * x.ndim))
    high_base = max(math.isqrt(n - 1) + 1, _SMALLEST_BASE)
    bases = high_base, max(-(-n // high_base), _SMALLEST_BASE)
    x = _feistel(x.astype(np.uint64), round_keys, bases, is_inverse)
    while (outside := x >= np.uint64(n)).any():
        x[outside] = _feistel(x[outside], round_keys[:, outside], bases, is_inverse)
    return x.astype(np.int64)


def _feistel(
    x: np.ndarray, round_keys: np.ndarray, bases: tuple[int, int], is_inverse: bool
) -> np.ndarray:
    """Permutes range(bases[0] * bases[1]); x is uint64 [...], round_keys uint64 [rounds, ...]."""
    bases = np.array(bases, np.uint64)
    digits = list(np.divmod(x, bases[1]))
    rounds = list(enumerate(round_keys))
    for i, key in reversed(rounds) if is_inverse else rounds:
        changed, other = i % 2, 1 - i % 2
        noise = (digits[other] + key) * np.uint64(0xBF58476D1CE4E5B9)
        noise ^= noise >> np.uint64(32)
        noise *= np.uint64(0x94D049BB133111EB)
        noise >>= np.uint64(32)  # the upper bits of the product are the most random
        noise *= bases[changed]  # scales 32 bits to [0, base)
        noise >>= np.uint64(32)
        if is_inverse:
            noise = bases[changed] - noise  # the noise is below the base
        noise += digits[changed]
        digits[changed] = noise % bases[changed]
    return digits[0] * bases[1] + digits[1]


def _as_uint64(value) -> np.ndarray:
    """Two's complement for negatives; Python integers of any size are taken modulo 2^64."""
    if isinstance(value, (int, np.integer)):
        return np.array([int(value) & _MASK64], np.uint64)
    return np.asarray(value).astype(np.uint64)
