"""Fused attention for NVIDIA GPUs, by Pallas' Triton backend (FlashAttention-2, Dao 2023).

Scores stay in registers. The forward kernel computes a block of queries of one head: it loops over
blocks of keys, with a running maximum and sum. The backward pass computes the probabilities again,
in two kernels: the first one loops over keys for the gradient of a block of queries, the second one
over queries for the gradients of a block of keys and values.

A query whose keys are all masked attends to all keys alike. Where the segments have none of the
queries, so that the row of the batch is padding alone, such a query has no gradient.

Array names carry their shape: B batch, Q queries, S keys, H heads, K head width.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from roberta_jax.kernels import attention_gpu_kernels as kernels
from roberta_jax.kernels.attention_gpu_kernels import Sizes, Words
from roberta_jax.kernels.dropout import PAIR_DISTANCE, AttentionBits, mix_coordinate
from roberta_jax.kernels.masks import Segments

# Tiles, for GPUs of compute capability 9.0 and heads of 64 in bfloat16. A program of the first two
# kernels holds a block of `QUERIES` and loops over blocks of `KEYS`. One of the third kernel holds
# `KEYS` and loops over blocks of `QUERIES_PER_STEP`.
QUERIES = 128
KEYS = 2 * PAIR_DISTANCE
QUERIES_PER_STEP = 32
# The rows of a tile are queries in the first two kernels.
ROWS_PER_WARP = 16
# The rows of a tile are keys in the third kernel. Four warps have two times 64 rows, so that the
# keys of a pair share a thread. Wide heads need the registers of twice as many warps.
WARPS_OF_KEYS = 4
WIDTH_OF_WARPS = 64
# How many blocks are in flight in a loop. Heads of more than `NARROW_BYTES` have one, and smaller
# blocks of queries, for want of shared memory.
STAGES = 2
NARROW_BYTES = 128

MAX_WIDTH = 128
MIN_COMPUTE_CAPABILITY = 8.0
DTYPES = ("bfloat16", "float16", "float32")

_MIN_WIDTH = 16  # of the operands of a tensor core


def why_not(q_BQHK: jax.Array, k_BSHK: jax.Array) -> str | None:
    """What the kernels cannot compute, or None; see `fused_attention`."""
    width, dtype = q_BQHK.shape[-1], q_BQHK.dtype.name
    if width > MAX_WIDTH:
        return f"the heads are {width} wide, and the kernels take at most {MAX_WIDTH}"
    if dtype not in DTYPES:
        return f"the kernels take {', '.join(DTYPES)}, not {dtype}"
    try:
        device = jax.local_devices(backend="gpu")[0]
    except RuntimeError:  # none here: the kernels are interpreted, or lowered for another machine
        return None
    try:
        capability = float(device.compute_capability)
    except ValueError:
        return f"the kernels are for NVIDIA GPUs, not {device.device_kind}"
    if capability < MIN_COMPUTE_CAPABILITY:
        return (
            f"the kernels need compute capability {MIN_COMPUTE_CAPABILITY} or higher, and "
            f"{device.device_kind} has {capability}"
        )
    if _times_narrow(q_BQHK) > 2 and not 9 <= capability < 12:
        return (
            f"heads of {width} in {dtype} need more shared memory than {device.device_kind} has; "
            "compute in bfloat16"
        )
    return None


class _Specs(NamedTuple):
    """Which part of an array a program gets, for arrays of queries or for arrays of keys."""

    rows: pl.BlockSpec  # of [B, length, H, K]
    tokens: pl.BlockSpec  # of [B, length]
    numbers: pl.BlockSpec  # of [B, H, length]

    def of_words(self, words: Words | None) -> Words | None:
        if words is None:
            return None
        return Words(self.numbers, self.numbers, pl.BlockSpec(words.seed.shape, lambda *_: (0,)))


def _specs(length: int, width: int, block: int | None) -> _Specs:
    """Specs in a grid of (blocks, heads, rows of the batch); without a block all tokens."""
    size = block or length
    width = _padded_width(width)

    def number(i):
        return i if block else 0

    return _Specs(
        pl.BlockSpec((None, size, None, width), lambda i, h, b: (b, number(i), h, 0)),
        pl.BlockSpec((None, size), lambda i, h, b: (b, number(i))),
        pl.BlockSpec((None, None, size), lambda i, h, b: (b, h, number(i))),
    )


def _input_specs(
    segments: Segments | None, words: Words | None, queries: _Specs, keys: _Specs
) -> tuple:
    """The specs of what all kernels take first: queries, keys, values, segments and words."""
    if segments is not None:
        query_tokens = None if segments.query_BQ is None else queries.tokens
        segments = Segments(query_tokens, keys.tokens)
    return queries.rows, keys.rows, keys.rows, segments, queries.of_words(words)


def _padded_width(width: int) -> int:
    return max(_MIN_WIDTH, pl.next_power_of_2(width))


def _times_narrow(x: jax.Array) -> int:
    """How many times the shared memory of a head of `NARROW_BYTES` a head takes."""
    return pl.cdiv(_padded_width(x.shape[-1]) * x.dtype.itemsize, NARROW_BYTES)


def _sizes_by_query(q_BQHK: jax.Array, k_BSHK: jax.Array) -> Sizes:
    """Sizes in the kernels whose programs hold queries."""
    _, queries, _, width = q_BQHK.shape
    keys = k_BSHK.shape[1]
    query_block = QUERIES // _times_narrow(q_BQHK)
    if queries <= QUERIES // 2:
        query_block = min(query_block, QUERIES // 2)
    return Sizes(queries, keys, width, query_block, _key_block(keys))


def _sizes_by_key(q_BQHK: jax.Array, k_BSHK: jax.Array) -> Sizes:
    """Sizes in the kernel whose programs hold keys."""
    _, queries, _, width = q_BQHK.shape
    keys = k_BSHK.shape[1]
    return Sizes(queries, keys, width, QUERIES_PER_STEP, _key_block(keys))


def _key_block(keys: int) -> int:
    return KEYS if keys > PAIR_DISTANCE else PAIR_DISTANCE


def _compiler_params(x: jax.Array, warps: int) -> plgpu.CompilerParams:
    return plgpu.CompilerParams(num_warps=warps, num_stages=1 if _times_narrow(x) > 1 else STAGES)


def _words(bits: AttentionBits | None, num_queries: int) -> Words | None:
    # Not in the kernels: there, threads that share queries would compute the same words.
    if bits is None:
        return None
    row = jax.lax.iota(jnp.uint32, num_queries)
    words = mix_coordinate(bits.low_BH[..., None], bits.high_BH[..., None], row, bits.seed[2])
    return Words(*words, bits.seed)


def forward(
    q_BQHK: jax.Array,
    k_BSHK: jax.Array,
    v_BSHK: jax.Array,
    segments: Segments | None,
    bits: AttentionBits | None,
    rate: float,
    interpret: bool,
) -> tuple[jax.Array, jax.Array]:
    """The context and the logarithms of the sums; see `fused_attention`."""
    batch, num_queries, heads, width = q_BQHK.shape
    sizes = _sizes_by_query(q_BQHK, k_BSHK)
    words = _words(bits, num_queries)
    queries = _specs(num_queries, width, sizes.query_block)
    keys = _specs(sizes.keys, width, None)
    return pl.pallas_call(
        functools.partial(kernels.forward_kernel, sizes=sizes, rate=rate),
        grid=(pl.cdiv(num_queries, sizes.query_block), heads, batch),
        in_specs=[
            *_input_specs(segments, words, queries, keys),
        ],
        out_specs=[queries.rows, queries.numbers],
        out_shape=[
            jax.ShapeDtypeStruct(q_BQHK.shape, v_BSHK.dtype),
            jax.ShapeDtypeStruct((batch, heads, num_queries), jnp.float32),
        ],
        compiler_params=_compiler_params(q_BQHK, sizes.query_block // ROWS_PER_WARP),
        interpret=interpret,
        name="attention_forward",
    )(q_BQHK, k_BSHK, v_BSHK, segments, words)


def backward(
    q_BQHK: jax.Array,
    k_BSHK: jax.Array,
    v_BSHK: jax.Array,
    segments: Segments | None,
    bits: AttentionBits | None,
    rate: float,
    context_BQHK: jax.Array,
    log_sum_BHQ: jax.Array,
    grad_BQHK: jax.Array,
    interpret: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of the queries, keys and values; see `fused_attention`."""
    batch, num_queries, heads, width = q_BQHK.shape
    words = _words(bits, num_queries)

    sizes = _sizes_by_query(q_BQHK, k_BSHK)
    queries = _specs(num_queries, width, sizes.query_block)
    keys = _specs(sizes.keys, width, None)
    grad_q, inner_BHQ = pl.pallas_call(
        functools.partial(kernels.query_kernel, sizes=sizes, rate=rate),
        grid=(pl.cdiv(num_queries, sizes.query_block), heads, batch),
        in_specs=[
            *_input_specs(segments, words, queries, keys),
            queries.rows,
            queries.numbers,
            queries.rows,
        ],
        out_specs=[queries.rows, queries.numbers],
        out_shape=[
            jax.ShapeDtypeStruct(q_BQHK.shape, q_BQHK.dtype),
            jax.ShapeDtypeStruct(log_sum_BHQ.shape, jnp.float32),
        ],
        compiler_params=_compiler_params(q_BQHK, sizes.query_block // ROWS_PER_WARP),
        interpret=interpret,
        name="attention_grad_of_queries",
    )(q_BQHK, k_BSHK, v_BSHK, segments, words, context_BQHK, log_sum_BHQ, grad_BQHK)

    sizes = _sizes_by_key(q_BQHK, k_BSHK)
    queries = _specs(num_queries, width, None)
    keys = _specs(sizes.keys, width, sizes.key_block)
    grad_k, grad_v = pl.pallas_call(
        functools.partial(kernels.key_kernel, sizes=sizes, rate=rate),
        grid=(pl.cdiv(sizes.keys, sizes.key_block), heads, batch),
        in_specs=[
            *_input_specs(segments, words, queries, keys),
            queries.numbers,
            queries.numbers,
            queries.rows,
        ],
        out_specs=[keys.rows, keys.rows],
        out_shape=[
            jax.ShapeDtypeStruct(k_BSHK.shape, k_BSHK.dtype),
            jax.ShapeDtypeStruct(v_BSHK.shape, v_BSHK.dtype),
        ],
        compiler_params=_compiler_params(q_BQHK, WARPS_OF_KEYS * pl.cdiv(width, WIDTH_OF_WARPS)),
        interpret=interpret,
        name="attention_grad_of_keys",
    )(q_BQHK, k_BSHK, v_BSHK, segments, words, inner_BHQ, log_sum_BHQ, grad_BQHK)
    return grad_q, grad_k, grad_v
