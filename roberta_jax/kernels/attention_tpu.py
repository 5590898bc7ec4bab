"""The fused attention for TPUs, by Pallas; see `fused_attention` for what is common to all kinds.

A program of the grid computes a block of queries of a few heads, with all keys at once, so that the
softmax needs no running maximum. Three choices follow from how a TPU works.

* A block is as wide as a vector register, 128 lanes: two heads of 64. So the kernels read the
  queries, keys and values as the projections write them, [B, L, H * K], with no transposition and
  no padded lanes. A product with one head's lanes of an array takes as long as one with all of
  them: the lanes of the other heads are set to zero.
* The scores are transposed, [S, Q]. What the softmax sums over is then spread over registers, not
  within one, and the numbers of each query are rows, which take no more memory than they have
  elements. The results that would be transposed, of the values and of the queries, are small.
* The factor of the elements that dropout keeps is applied to the results of products, not to each
  element.

Array names carry their shape: B batch, Q queries, S keys, H heads, K head width, G heads of a
block, W their lanes, G * K.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from roberta_jax.kernels import dropout
from roberta_jax.kernels.dropout import PAIR_DISTANCE, AttentionBits
from roberta_jax.kernels.masks import MASKED_SCORE, Segments

_LANES = 128
_MAX_KEYS = 2048
_MAX_SCORES = 512 * 512  # of a head in a program: 1 MiB in float32
_OUTSIDE = -1  # the segment of keys that only fill up a block
_NO_KEYS = 1e30  # in place of the logarithm of a sum, of a query all of whose keys are masked

_NN, _NT = (((1,), (0,)), ((), ())), (((1,), (1,)), ((), ()))


def why_not(q_BQHK: jax.Array, k_BSHK: jax.Array) -> str | None:
    """What of these queries and keys of one device the kernels cannot compute, or None."""
    heads, width = q_BQHK.shape[2:]
    if q_BQHK.dtype not in (jnp.float32, jnp.bfloat16):
        return f"the dtype is {q_BQHK.dtype}, not float32 or bfloat16"
    if k_BSHK.shape[1] > _MAX_KEYS:
        return f"there are {k_BSHK.shape[1]} keys, more than {_MAX_KEYS}"
    if not _heads_of_block(heads, width):
        return f"{heads} heads of {width} on a device do not fill blocks of {_LANES} lanes"
    return None


def _heads_of_block(heads: int, width: int) -> int:
    """How many heads a program computes; 0 if blocks of 128 lanes cannot hold whole heads."""
    if width % _LANES == 0:
        return 1
    if heads * width <= _LANES:
        return heads
    group = _LANES // width if _LANES % width == 0 else 0
    return group if group and heads % group == 0 else 0


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The sizes of a call, after padding to whole blocks.

    Attributes:
      batch, heads, group, width, queries, keys: B, H, G, K, Q and S.
      own_keys: those that do not only fill up a block.
      block: queries of a program.
      rate: of the dropout.
      is_masked, has_queries: whether there are segments of keys, and of queries.
    """

    batch: int
    heads: int
    group: int
    width: int
    queries: int
    keys: int
    own_keys: int
    block: int
    rate: float
    is_masked: bool
    has_queries: bool

    @property
    def scale(self) -> float:
        return self.width**-0.5

    @property
    def grid(self) -> tuple[int, int, int]:
        return self.batch, self.heads // self.group, self.queries // self.block


def forward(q_BQHK, k_BSHK, v_BSHK, segments, bits, rate, interpret):
    """(context [B, Q, H, K], the logarithm of the sum of the exponentials float32 [B, H, Q])."""
    plan, masks, scalars = _prepare(q_BQHK, k_BSHK, segments, bits, rate)
    specs, statistic = _specs(plan), _statistic_shape(plan)
    context, log_sum = _call(
        _forward_kernel,
        plan,
        interpret,
        scalars,
        [specs.queries, specs.keys, specs.keys, *specs.masks],
        (_flat(q_BQHK, plan.queries), _flat(k_BSHK, plan.keys), _flat(v_BSHK, plan.keys), *masks),
        [specs.queries, specs.statistic],
        [_flat_shape(plan, plan.queries, q_BQHK.dtype), statistic],
    )
    return _unflat(context, q_BQHK.shape), _per_head(log_sum, q_BQHK.shape)


def backward(
    q_BQHK, k_BSHK, v_BSHK, segments, bits, rate, context_BQHK, log_sum_BHQ, grad_BQHK, interpret
):
    """The gradients of the queries, keys and values, from those of the context."""
    plan, masks, scalars = _prepare(q_BQHK, k_BSHK, segments, bits, rate)
    specs, dtype = _specs(plan), q_BQHK.dtype
    log_sum = jnp.pad(log_sum_BHQ, ((0, 0), (0, 0), (0, plan.queries - log_sum_BHQ.shape[2])))
    log_sum = log_sum.reshape(_statistic_shape(plan).shape)
    q, context, grad = (_flat(x, plan.queries) for x in (q_BQHK, context_BQHK, grad_BQHK))
    grads = _call(
        _backward_kernel,
        plan,
        interpret,
        scalars,
        [
            *(specs.queries, specs.keys, specs.keys, *specs.masks),
            *(specs.queries, specs.statistic, specs.queries),
        ],
        (q, _flat(k_BSHK, plan.keys), _flat(v_BSHK, plan.keys), *masks, context, log_sum, grad),
        [specs.queries, specs.keys, specs.keys],
        [_flat_shape(plan, size, dtype) for size in (plan.queries, plan.keys, plan.keys)],
        scratch=[pltpu.VMEM((plan.keys, plan.group * plan.width), jnp.float32)] * 2,
    )
    return tuple(
        _unflat(x, like.shape) for x, like in zip(grads, (q_BQHK, k_BSHK, v_BSHK), strict=True)
    )


def _prepare(q_BQHK, k_BSHK, segments: Segments | None, bits: AttentionBits | None, rate: float):
    """(plan, arrays of segments, arrays of scalars) of a call."""
    batch, num_queries, heads, width = q_BQHK.shape
    num_keys = k_BSHK.shape[1]
    queries, keys = (-(-size // _LANES) * _LANES for size in (num_queries, num_keys))
    block = next(
        size
        for size in (512, 384, 256, 128)
        if queries % size == 0 and (size * keys <= _MAX_SCORES or size == 128)
    )
    masks = []
    if segments is None and keys > num_keys:
        segments = Segments(None, jnp.ones((batch, num_keys), jnp.int32))
    if segments is not None:
        key_BS = jnp.pad(segments.key_BS, ((0, 0), (0, keys - num_keys)), constant_values=_OUTSIDE)
        masks.append(key_BS[:, None])
        if segments.query_BQ is not None:
            padding = ((0, 0), (0, queries - num_queries))
            masks.append(jnp.pad(segments.query_BQ, padding)[:, None])
    plan = _Plan(
        batch=batch,
        heads=heads,
        group=_heads_of_block(heads, width),
        width=width,
        queries=queries,
        keys=keys,
        own_keys=num_keys,
        block=block,
        rate=rate,
        is_masked=segments is not None,
        has_queries=segments is not None and segments.query_BQ is not None,
    )
    return plan, masks, (() if bits is None else tuple(bits))


def _flat(x_BLHK, length):
    """[B, L, H * K], filled up with zeros to a length."""
    batch, own, heads, width = x_BLHK.shape
    x = x_BLHK.reshape(batch, own, heads * width)
    return x if own == length else jnp.pad(x, ((0, 0), (0, length - own), (0, 0)))


def _unflat(x, shape):
    return x[:, : shape[1]].reshape(shape)


def _flat_shape(plan, length, dtype):
    return jax.ShapeDtypeStruct((plan.batch, length, plan.heads * plan.width), dtype)


def _statistic_shape(plan):
    shape = (plan.batch, plan.heads // plan.group, plan.group, plan.queries)
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _per_head(statistic, shape):
    return statistic.reshape(shape[0], shape[2], -1)[..., : shape[1]]


@dataclasses.dataclass(frozen=True)
class _Specs:
    queries: pl.BlockSpec
    keys: pl.BlockSpec
    statistic: pl.BlockSpec
    masks: list[pl.BlockSpec]


def _specs(plan: _Plan) -> _Specs:
    """The blocks of a program (row of the batch, heads, queries) of the grid."""
    lanes = plan.group * plan.width
    key_mask = pl.BlockSpec((1, 1, plan.keys), lambda b, h, i, *_: (b, 0, 0))
    query_mask = pl.BlockSpec((1, 1, plan.block), lambda b, h, i, *_: (b, 0, i))
    return _Specs(
        queries=pl.BlockSpec((1, plan.block, lanes), lambda b, h, i, *_: (b, i, h)),
        keys=pl.BlockSpec((1, plan.keys, lanes), lambda b, h, i, *_: (b, 0, h)),
        statistic=pl.BlockSpec((1, 1, plan.group, plan.block), lambda b, h, i, *_: (b, h, 0, i)),
        masks=[key_mask][: plan.is_masked] + [query_mask][: plan.has_queries],
    )


def _call(kernel, plan, interpret, scalars, in_specs, arrays, out_specs, out_shape, scratch=()):
    return pl.pallas_call(
        functools.partial(kernel, plan=plan),
        out_shape=out_shape,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=plan.grid,
            in_specs=in_specs,
            out_specs=out_specs,
            scratch_shapes=scratch,
        ),
        compiler_params=pltpu.CompilerParams(
            # The gradients of the keys and values are added up over the blocks of queries.
            dimension_semantics=("parallel", "parallel", "arbitrary"),
        ),
        cost_estimate=_cost(plan, kernel, (*arrays, *out_shape)),
        interpret=interpret,
        name=f"attention{kernel.__name__.removesuffix('_kernel')}",
    )(*scalars, *arrays)


def _cost(plan: _Plan, kernel, arrays) -> pl.CostEstimate:
    """For XLA, which otherwise takes a kernel for free when it orders a program."""
    scores = plan.batch * plan.heads * plan.queries * plan.keys
    products = 2 if kernel is _forward_kernel else 5
    return pl.CostEstimate(
        flops=2 * products * scores * plan.width,
        transcendentals=scores,
        bytes_accessed=sum(x.size * x.dtype.itemsize for x in arrays),
    )


def _split(refs, plan):
    """(references to scalars, to the masks of keys and queries or None, to everything else)."""
    scalars = 3 if plan.rate else 0
    scalar_refs, (q, k, v), rest = refs[:scalars], refs[scalars : scalars + 3], refs[scalars + 3 :]
    key = rest[0] if plan.is_masked else None
    query = rest[1] if plan.has_queries else None
    return scalar_refs, (key, query), (q, k, v, *rest[plan.is_masked + plan.has_queries :])


def _forward_kernel(*refs, plan: _Plan):
    scalars, masks, (q, k, v, context, log_sum) = _split(refs, plan)
    q_QW, k_SW, v_SW = q[0], k[0], v[0]
    v_WS = v_SW.T
    masked = _masked(masks, plan)
    parts_KQ = []
    for head in range(plan.group):
        scores_SQ = masked(_scores(q_QW, k_SW, head, plan), MASKED_SCORE)
        max_1Q = jnp.max(scores_SQ, axis=0, keepdims=True)
        exp_SQ = jnp.exp(scores_SQ - max_1Q)
        sum_1Q = jnp.sum(exp_SQ, axis=0, keepdims=True)
        kept_SQ = exp_SQ
        if plan.rate:
            kept_SQ = jnp.where(_keep_mask(scalars, head, plan), exp_SQ, 0)
        part_KQ = _product(_rows_of(v_WS, head, plan), kept_SQ.astype(v_SW.dtype), _NN)
        parts_KQ.append(part_KQ * (_kept_scale(plan) / sum_1Q))
        has_keys = max_1Q > MASKED_SCORE / 2
        log_sum_1Q = jnp.where(has_keys, max_1Q + jnp.log(sum_1Q), _NO_KEYS)
        log_sum[0, 0, pl.ds(head, 1), :] = log_sum_1Q
    context[0] = _stacked(parts_KQ).T.astype(context.dtype)


def _backward_kernel(*refs, plan: _Plan):
    scalars, masks, rest = _split(refs, plan)
    q, k, v, context, log_sum, grad, grad_q, grad_k, grad_v, total_k, total_v = rest
    q_QW, k_SW, v_SW, grad_QW = q[0], k[0], v[0], grad[0]
    dtype = q_QW.dtype
    k_WS = k_SW.T
    # The softmax's gradient needs sum_s(probability * its gradient). That equals the product of the
    # output with its own gradient, which is far smaller.
    inner_WQ = (grad_QW.astype(jnp.float32) * context[0].astype(jnp.float32)).T
    masked = _masked(masks, plan)
    parts_KQ, grad_k_SW, grad_v_SW = [], 0.0, 0.0
    for head in range(plan.group):
        own_QW = _of_head(grad_QW, head, plan)
        # A query all of whose keys are masked attends to all of them equally.
        log_sum_1Q = log_sum[0, 0, pl.ds(head, 1), :]
        has_keys = log_sum_1Q < _NO_KEYS / 2
        log_sum_1Q = jnp.where(has_keys, log_sum_1Q, math.log(plan.own_keys))
        masked_1Q = jnp.where(has_keys, MASKED_SCORE, 0.0)
        p_SQ = jnp.exp(masked(_scores(q_QW, k_SW, head, plan), masked_1Q) - log_sum_1Q)
        grad_p_SQ = _product(v_SW, own_QW, _NT)
        inner_1Q = jnp.sum(_rows_of(inner_WQ, head, plan), axis=0, keepdims=True)
        kept_SQ = p_SQ
        if plan.rate:
            keep_SQ = _keep_mask(scalars, head, plan)
            kept_SQ, grad_p_SQ = (jnp.where(keep_SQ, x, 0) for x in (p_SQ, grad_p_SQ))
        # Divided by the factor of the kept elements, which the products are multiplied by.
        grad_s_SQ = (p_SQ * (grad_p_SQ - inner_1Q / _kept_scale(plan))).astype(dtype)
        parts_KQ.append(_product(_rows_of(k_WS, head, plan), grad_s_SQ, _NN))
        grad_k_SW += _product(grad_s_SQ, _of_head(q_QW, head, plan), _NN)
        grad_v_SW += _product(kept_SQ.astype(dtype), own_QW, _NN)
    kept_scale = _kept_scale(plan)
    scale = plan.scale * kept_scale
    grad_q[0] = (_stacked(parts_KQ).T * scale).astype(grad_q.dtype)
    block, blocks = pl.program_id(2), plan.grid[2]
    for total, part, factor, result in (
        (total_k, grad_k_SW, scale, grad_k),
        (total_v, grad_v_SW, kept_scale, grad_v),
    ):
        if blocks == 1:
            result[0] = (part * factor).astype(result.dtype)
            continue
        total[...] = part + jnp.where(block == 0, 0.0, total[...])

        @pl.when(block == blocks - 1)
        def _(total=total, factor=factor, result=result):
            result[0] = (total[...] * factor).astype(result.dtype)


def _product(a, b, dimensions):
    # In float32 on request only: by default a TPU would round the factors to bfloat16.
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        a, b, dimensions, precision=precision, preferred_element_type=jnp.float32
    )


def _of_head(x_LW, head, plan):
    """An array with zeros in the lanes of the other heads of the block."""
    if plan.group == 1:
        return x_LW
    lane = jax.lax.broadcasted_iota(jnp.int32, x_LW.shape, 1)
    is_own = (lane >= head * plan.width) & (lane < (head + 1) * plan.width)
    return jnp.where(is_own, x_LW, jnp.zeros((), x_LW.dtype))


def _rows_of(x_WL, head, plan):
    return x_WL[head * plan.width : (head + 1) * plan.width]


def _stacked(parts):
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=0)


def _scores(q_QW, k_SW, head, plan):
    """The scores of a head, float32 [S, Q]."""
    q_QW = _of_head(q_QW, head, plan)
    if math.frexp(plan.scale)[0] == 0.5 or q_QW.dtype == jnp.float32:  # then no digit is lost
        return _product(k_SW, q_QW * np.asarray(plan.scale, q_QW.dtype), _NT)
    return _product(k_SW, q_QW, _NT) * plan.scale


def _masked(masks, plan):
    """(scores [S, Q], a value [1, Q]) -> the scores, with this value where they are masked."""
    key_ref, query_ref = masks
    if key_ref is None:
        return lambda scores_SQ, masked_1Q: scores_SQ
    key_S1 = jnp.broadcast_to(key_ref[0], (8, plan.keys)).T[:, :1]
    allowed = key_S1 > 0
    if query_ref is not None:
        allowed &= key_S1 == query_ref[0]

    def masked(scores_SQ, masked_1Q):
        scores_SQ = jnp.where(allowed, scores_SQ, masked_1Q)
        if plan.keys > plan.own_keys:
            scores_SQ = jnp.where(key_S1 == _OUTSIDE, 2 * MASKED_SCORE, scores_SQ)
        return scores_SQ

    return masked


def _keep_mask(scalars, head, plan):
    """`dropout.attention_keep_mask` of a head and a block of queries, transposed, [S, Q]."""
    low_ref, high_ref, seed_ref = scalars
    row, heads = pl.program_id(0), pl.program_id(1) * plan.group + head
    query_1Q = jax.lax.broadcasted_iota(jnp.uint32, (1, plan.block), 1)
    query_1Q += (pl.program_id(2) * plan.block).astype(jnp.uint32)
    low_1Q, high_1Q = dropout.mix_coordinate(
        low_ref[row, heads], high_ref[row, heads], query_1Q, seed_ref[2]
    )
    pair = jax.lax.broadcasted_iota(jnp.uint32, (plan.keys // 2, 1), 0)
    first = dropout.element_hash(dropout.column_word(pair, seed_ref[3]), low_1Q, high_1Q)
    second = first << np.uint32(16)
    halves = [
        half[start : start + PAIR_DISTANCE]
        for start in range(0, plan.keys // 2, PAIR_DISTANCE)
        for half in (first, second)
    ]
    return jnp.concatenate(halves, axis=0) >= dropout.attention_threshold(plan.rate)


def _kept_scale(plan):
    return dropout.attention_scale(plan.rate) if plan.rate else 1.0
