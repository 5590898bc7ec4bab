"""The kernels of `attention_gpu`: what one program computes.

A block of keys is a whole block of the dropout's pairs; see `dropout.attention_keep_mask`. Both
keys of a pair lie in one thread wherever `attention_gpu` says how a tile is split, so the compiler
sees that their hashes are one expression, and computes it once.

A tile of scores is [Q, S], or [S, Q] where `key_axis` is 0.

Array names carry their shape: Q queries and S keys of a block, K head width, rounded up to a power
of two. A name that ends in `ref` is a block in memory, or a whole array where a kernel loops.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from roberta_jax.kernels.dropout import (
    PAIR_DISTANCE,
    attention_scale,
    attention_threshold,
    column_word,
    element_hash,
)
from roberta_jax.kernels.masks import Segments

_LOG2_E = math.log2(math.e)
# In place of the product with a masked key. A power of two, so that its product with any number is
# exact: the exponentials of a query without keys are then exactly 1, fused multiply-add or not.
_MASKED_PRODUCT = -(2.0**99)
# The logarithm of a sum is below this if all keys of the query are masked.
_NO_KEYS = -1e20
_PAST_THE_LAST_KEY = -1  # its segment


class Words(NamedTuple):
    """What the dropout's hash takes.

    Attributes:
      low_BHQ, high_BHQ: uint32 [B, H, Q], the words of each query.
      seed: uint32 [4].
    """

    low_BHQ: jax.Array
    high_BHQ: jax.Array
    seed: jax.Array


class Sizes(NamedTuple):
    """The sizes of the arrays, and how many queries and keys a kernel computes at once."""

    queries: int
    keys: int
    width: int
    query_block: int
    key_block: int

    @property
    def scale(self) -> float:
        return self.width**-0.5

    @property
    def exponent_scale(self) -> float:
        """What the product of a query and a key is multiplied by for `exp2`."""
        return self.scale * _LOG2_E


def forward_kernel(q_ref, k_ref, v_ref, segments, words, context_ref, log_sum_ref, *, sizes, rate):
    first = pl.program_id(0) * sizes.query_block
    q_QK = _load(q_ref, first, sizes.queries, width=sizes.width)
    segment_Q = _segments_of_queries(segments, first, sizes)
    words_Q, seed_word = _words_of_queries(words, first, sizes), _seed_word(words)

    def step(block, carry):
        max_Q, sum_Q, context_QK = carry
        start = block * sizes.key_block
        k_SK, v_SK = (
            _load(ref, start, sizes.keys, sizes.key_block, sizes.width) for ref in (k_ref, v_ref)
        )
        # Before the product, so that its instructions can run while the tensor cores compute that.
        hash_QS = _hash(words_Q, seed_word, block, sizes, 1)
        segment_S = _segments_of_keys(segments, start, sizes)
        products_QS = _products(q_QK, k_SK, 1)
        if segment_S is not None:
            masked = _MASKED_PRODUCT
            if sizes.keys % sizes.key_block:
                is_past_S = segment_S == _PAST_THE_LAST_KEY
                masked = jnp.where(is_past_S, -jnp.inf, _MASKED_PRODUCT)[None, :]
            products_QS = _masked(products_QS, segment_Q, segment_S, masked, 1)
        new_max_Q = jnp.maximum(max_Q, jnp.max(products_QS, axis=1) * sizes.exponent_scale)
        weights_QS = jnp.exp2(products_QS * sizes.exponent_scale - new_max_Q[:, None])
        shrink_Q = jnp.exp2(max_Q - new_max_Q)
        sum_Q = sum_Q * shrink_Q + jnp.sum(weights_QS, axis=1)
        if hash_QS is not None:
            weights_QS *= _keep_scale(hash_QS, rate, 1)
        context_QK = context_QK * shrink_Q[:, None] + _dot(weights_QS.astype(v_SK.dtype), v_SK)
        return new_max_Q, sum_Q, context_QK

    max_Q, sum_Q, context_QK = jax.lax.fori_loop(
        0,
        pl.cdiv(sizes.keys, sizes.key_block),
        step,
        (
            jnp.full(sizes.query_block, -jnp.inf, jnp.float32),
            jnp.zeros(sizes.query_block, jnp.float32),
            jnp.zeros(q_QK.shape, jnp.float32),
        ),
    )
    _store(context_ref, context_QK / sum_Q[:, None], first, sizes.queries, sizes.width)
    _store(log_sum_ref, max_Q / _LOG2_E + jnp.log(sum_Q), first, sizes.queries)


class _Queries(NamedTuple):
    """What the backward pass takes of a block of queries.

    `inner_Q` are the inner products of the context with its gradient.
    """

    q_QK: jax.Array
    grad_QK: jax.Array
    log_sum_Q: jax.Array
    inner_Q: jax.Array
    segment_Q: jax.Array | None
    words_Q: tuple[jax.Array, jax.Array] | None


def query_kernel(
    q_ref,
    k_ref,
    v_ref,
    segments,
    words,
    context_ref,
    log_sum_ref,
    grad_ref,
    grad_q_ref,
    inner_ref,
    *,
    sizes,
    rate,
):
    first = pl.program_id(0) * sizes.query_block
    q_QK, context_QK, grad_QK = (
        _load(ref, first, sizes.queries, width=sizes.width)
        for ref in (q_ref, context_ref, grad_ref)
    )
    inner_Q = jnp.sum(context_QK.astype(jnp.float32) * grad_QK.astype(jnp.float32), axis=1)
    queries = _Queries(
        q_QK,
        grad_QK,
        _load(log_sum_ref, first, sizes.queries),
        inner_Q,
        _segments_of_queries(segments, first, sizes),
        _words_of_queries(words, first, sizes),
    )
    seed_word = _seed_word(words)

    def step(block, grad_q_QK):
        start = block * sizes.key_block
        k_SK, v_SK = (
            _load(ref, start, sizes.keys, sizes.key_block, sizes.width) for ref in (k_ref, v_ref)
        )
        segment_S = _segments_of_keys(segments, start, sizes)
        hash_QS = _hash(queries.words_Q, seed_word, block, sizes, 1)
        _, grad_QS = _backward_tile(queries, k_SK, v_SK, segment_S, hash_QS, sizes, rate, 1)
        return grad_q_QK + _dot(grad_QS, k_SK)

    grad_q_QK = jax.lax.fori_loop(
        0, pl.cdiv(sizes.keys, sizes.key_block), step, jnp.zeros(q_QK.shape, jnp.float32)
    )
    _store(grad_q_ref, grad_q_QK * sizes.scale, first, sizes.queries, sizes.width)
    _store(inner_ref, inner_Q, first, sizes.queries)


def key_kernel(
    q_ref,
    k_ref,
    v_ref,
    segments,
    words,
    inner_ref,
    log_sum_ref,
    grad_ref,
    grad_k_ref,
    grad_v_ref,
    *,
    sizes,
    rate,
):
    block = pl.program_id(0)
    first = block * sizes.key_block
    k_SK, v_SK = (_load(ref, first, sizes.keys, width=sizes.width) for ref in (k_ref, v_ref))
    segment_S = _segments_of_keys(segments, first, sizes, is_block=True)
    seed_word = _seed_word(words)

    def step(query_block, carry):
        grad_k_SK, grad_v_SK = carry
        start = query_block * sizes.query_block
        of_queries = (start, sizes.queries, sizes.query_block)
        # Past the last query all is 0, and so is what it adds to the gradients.
        queries = _Queries(
            _load(q_ref, *of_queries, sizes.width),
            _load(grad_ref, *of_queries, sizes.width),
            _load(log_sum_ref, *of_queries),
            _load(inner_ref, *of_queries),
            _segments_of_queries(segments, start, sizes, sizes.query_block),
            _words_of_queries(words, start, sizes, sizes.query_block),
        )
        hash_SQ = _hash(queries.words_Q, seed_word, block, sizes, 0)
        dropped_SQ, grad_SQ = _backward_tile(
            queries, k_SK, v_SK, segment_S, hash_SQ, sizes, rate, 0
        )
        grad_v_SK += _dot(dropped_SQ, queries.grad_QK)
        grad_k_SK += _dot(grad_SQ, queries.q_QK)
        return grad_k_SK, grad_v_SK

    zeros_SK = jnp.zeros(k_SK.shape, jnp.float32)
    grad_k_SK, grad_v_SK = jax.lax.fori_loop(
        0, pl.cdiv(sizes.queries, sizes.query_block), step, (zeros_SK, zeros_SK)
    )
    _store(grad_k_ref, grad_k_SK * sizes.scale, first, sizes.keys, sizes.width)
    _store(grad_v_ref, grad_v_SK, first, sizes.keys, sizes.width)


def _backward_tile(
    queries: _Queries,
    k_SK: jax.Array,
    v_SK: jax.Array,
    segment_S: jax.Array | None,
    hash_tile: jax.Array | None,
    sizes: Sizes,
    rate: float,
    key_axis: int,
) -> tuple[jax.Array, jax.Array]:
    """The probabilities after dropout and the scores' gradient over the scale, as operands.

    Both are [Q, S], or [S, Q] with `key_axis` 0.
    """
    products = _products(queries.q_QK, k_SK, key_axis)
    log2_sum_Q = queries.log_sum_Q * _LOG2_E
    masked = -jnp.inf
    if queries.segment_Q is not None:
        # All keys of a query without keys have the same probability, as in the forward pass.
        has_keys_Q = queries.log_sum_Q > _NO_KEYS
        log2_sum_Q = jnp.where(has_keys_Q, log2_sum_Q, math.log2(sizes.keys))
        masked = _along(1 - key_axis, jnp.where(has_keys_Q, -jnp.inf, 0.0))
    if segment_S is not None:
        products = _masked(products, queries.segment_Q, segment_S, masked, key_axis)
    exponents = products * sizes.exponent_scale - _along(1 - key_axis, log2_sum_Q)
    probabilities = jnp.exp2(exponents)
    grad_probabilities = _products(queries.grad_QK, v_SK, key_axis)
    dropped = probabilities
    if hash_tile is not None:
        keep_scale = _keep_scale(hash_tile, rate, key_axis)
        dropped = probabilities * keep_scale
        grad_probabilities *= keep_scale
    grad_scores = probabilities * (grad_probabilities - _along(1 - key_axis, queries.inner_Q))
    return dropped.astype(v_SK.dtype), grad_scores.astype(k_SK.dtype)


def _along(axis: int, x: jax.Array) -> jax.Array:
    """A vector as a matrix of one row or column, with its elements along an axis."""
    return x[:, None] if axis == 0 else x[None, :]


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.dot(a, b, preferred_element_type=jnp.float32)


def _products(x_QK: jax.Array, y_SK: jax.Array, key_axis: int) -> jax.Array:
    """The inner products of all queries and keys, float32 [Q, S], or [S, Q] with `key_axis` 0."""
    a, b = (x_QK, y_SK) if key_axis == 1 else (y_SK, x_QK)
    return _dot(a, b.T)


def _masked(
    products: jax.Array,
    segment_Q: jax.Array | None,
    segment_S: jax.Array,
    masked: jax.Array | float,
    key_axis: int,
) -> jax.Array:
    """The products, and `masked` where a query may not attend to a key."""
    if segment_Q is None:
        # A sum: the tensor cores add it to the product.
        return products + jnp.where(_along(key_axis, segment_S) > 0, 0.0, masked)
    segment_S = jnp.where(segment_S > 0, segment_S, _PAST_THE_LAST_KEY)  # no query's
    is_same = _along(1 - key_axis, segment_Q) == _along(key_axis, segment_S)
    return jnp.where(is_same, products, masked)


def _segments_of_queries(
    segments: Segments | None, start: jax.Array, sizes: Sizes, size: int | None = None
) -> jax.Array | None:
    if segments is None or segments.query_BQ is None:
        return None
    return _load(segments.query_BQ, start, sizes.queries, size)


def _segments_of_keys(
    segments: Segments | None, start: jax.Array, sizes: Sizes, is_block: bool = False
) -> jax.Array | None:
    """The segments of a block of keys, or None if all its keys are allowed."""
    past = _PAST_THE_LAST_KEY
    if segments is not None:
        size = None if is_block else sizes.key_block
        return _load(segments.key_BS, start, sizes.keys, size, fill=past)
    if sizes.keys % sizes.key_block == 0:
        return None
    return jnp.where(start + jax.lax.iota(jnp.int32, sizes.key_block) < sizes.keys, 1, past)


def _words_of_queries(
    words: Words | None, start: jax.Array, sizes: Sizes, size: int | None = None
) -> tuple[jax.Array, jax.Array] | None:
    if words is None:
        return None
    return tuple(_load(x, start, sizes.queries, size) for x in (words.low_BHQ, words.high_BHQ))


def _seed_word(words: Words | None) -> jax.Array | None:
    return None if words is None else words.seed[3]


def _hash(
    words_Q: tuple[jax.Array, jax.Array] | None,
    seed_word: jax.Array | None,
    block: jax.Array,
    sizes: Sizes,
    key_axis: int,
) -> jax.Array | None:
    """The hashes of a block of keys, uint32 [Q, S], or [S, Q] with `key_axis` 0."""
    if words_Q is None:
        return None
    key = jax.lax.iota(jnp.uint32, sizes.key_block)
    # A block of keys is shorter than a block of pairs only if it is the only one.
    pair = block.astype(jnp.uint32) * PAIR_DISTANCE + key % PAIR_DISTANCE
    low, high = (_along(1 - key_axis, word) for word in words_Q)
    return element_hash(_along(key_axis, column_word(pair, seed_word)), low, high)


def _keep_scale(hash_tile: jax.Array, rate: float, key_axis: int) -> jax.Array:
    """What the probabilities are multiplied by: 0 where they are dropped, float32."""
    key = jax.lax.iota(jnp.uint32, hash_tile.shape[key_axis])
    bits = hash_tile << _along(key_axis, key // PAIR_DISTANCE * 16)
    return jnp.where(bits >= attention_threshold(rate), attention_scale(rate), 0.0)


def _load(
    ref,
    start: jax.Array,
    length: int,
    size: int | None = None,
    width: int | None = None,
    fill: int = 0,
) -> jax.Array:
    """Loads rows of an array, and `fill` past its last row and column.

    Args:
      ref: the whole array, or with size None the block that the program got.
      start: number of the first row.
      length: number of rows of the whole array.
      size: how many rows to load.
      width: number of columns of the array, or None if it has one axis.
      fill: what the block holds past the array.
    """
    if size is None:
        size = ref.shape[0]
    else:
        columns = () if width is None else (slice(None),)
        ref = ref.at[(pl.ds(start, size), *columns)]
    inside = _inside(start, (size, *ref.shape[1:]), length, width)
    return plgpu.load(ref) if inside is None else plgpu.load(ref, mask=inside, other=fill)


def _store(ref, values: jax.Array, start: jax.Array, length: int, width: int | None = None):
    """Stores the program's block: what lies inside an array of these rows and columns."""
    inside = _inside(start, values.shape, length, width)
    plgpu.store(ref, values.astype(ref.dtype), mask=inside)


def _inside(
    start: jax.Array, shape: tuple[int, ...], length: int, width: int | None
) -> jax.Array | None:
    """Which elements of a block lie inside an array, bool of `shape`; None if all do."""
    inside = None
    if length % shape[0]:
        rows = start + jax.lax.iota(jnp.int32, shape[0]) < length
        inside = jax.lax.broadcast_in_dim(rows, shape, (0,))
    if width is not None and width != shape[1]:
        columns = jax.lax.broadcast_in_dim(jax.lax.iota(jnp.int32, shape[1]) < width, shape, (1,))
        inside = columns if inside is None else inside & columns
    return inside
