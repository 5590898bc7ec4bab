"""Attention whose scores never leave the chip, as a pair of kernels for each kind of accelerator.

What the kinds have in common is here: the gradient rule, the mesh, and what the kernels cannot do.
A module of kernels has three functions:

    why_not(q_BQHK, k_BSHK) -> what the kernels cannot compute, or None
    forward(q_BQHK, k_BSHK, v_BSHK, segments, bits, rate, interpret) -> (context_BQHK, log_sum_BHQ)
    backward(q_BQHK, k_BSHK, v_BSHK, segments, bits, rate, context_BQHK, log_sum_BHQ, grad_BQHK,
             interpret) -> (grad_q_BQHK, grad_k_BSHK, grad_v_BSHK)

`log_sum` is the logarithm of the sum of the exponentials of the scores, float32. Padding and
segments are `Segments`; other masks and biases are left to `xla_attention`. `bits` are
`dropout.AttentionBits`, or None with rate 0. They number the rows of the whole batch and all heads,
so each device drops what one device would.

Array names carry their shape: B batch, Q queries, S keys, H heads, K head width, D = H * K.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from roberta_jax.kernels.dispatch import (
    axes_of,
    dividing_axes,
    is_interpreted,
    kernels_of,
    mesh_to_split_over,
    parts_of,
    refusal,
)
from roberta_jax.kernels.dropout import AttentionBits
from roberta_jax.kernels.masks import Mask, Segments

# The `checkpoint_name` of the residuals, for rematerialisation policies.
RESIDUALS = "attention_residuals"

# See `dispatch.Kinds`.
KINDS = {
    "pallas_tpu": ("tpu", "roberta_jax.kernels.attention_tpu"),
    "pallas_gpu": ("gpu", "roberta_jax.kernels.attention_gpu"),
}


def why_not(kind: str, q_BQHK: jax.Array, k_BSHK: jax.Array, mask: Mask) -> str | None:
    """Why the kernels of a kind cannot compute this, or None if they can."""
    if mask is not None and not isinstance(mask, Segments):
        return "a bias or a causal mask is added to the scores"
    if axes_of("length"):
        return "the rule of the axis 'length' splits it over devices"
    heads = q_BQHK.shape[2]
    own = heads // parts_of(dividing_axes("heads", heads) or ())
    local = jax.ShapeDtypeStruct((*q_BQHK.shape[:2], own, q_BQHK.shape[3]), q_BQHK.dtype)
    return kernels_of(KINDS, kind).why_not(local, k_BSHK)


def fused_attention(
    q_BQHK: jax.Array,
    k_BSHK: jax.Array,
    v_BSHK: jax.Array,
    mask: Segments | None,
    bits: AttentionBits | None,
    rate: float,
    *,
    kind: str,
) -> jax.Array:
    """`attention.dot_product_attention` by the kernels of a kind, a key of `KINDS`.

    On a mesh, each device computes its rows of the batch and its heads.

    Raises:
      ValueError: the kernels cannot compute this.
    """
    reason = why_not(kind, q_BQHK, k_BSHK, mask)
    if reason:
        raise refusal("attention", kind, reason)
    heads = q_BQHK.shape[2]
    # As the projections wrote them: an accelerator pads or transposes stored arrays of heads of 64.
    arrays = (x.reshape(*x.shape[:2], -1) for x in (q_BQHK, k_BSHK, v_BSHK))
    how = _How(heads, rate, kind, is_interpreted())
    return _attention(*arrays, mask, bits, how).reshape(q_BQHK.shape)


@dataclasses.dataclass(frozen=True)
class _How:
    """What is no array: the number of heads, the rate of dropout, the kind of kernels."""

    heads: int
    rate: float
    kind: str
    interpret: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attention(q_BQD, k_BSD, v_BSD, segments, bits, how):
    return _forward(q_BQD, k_BSD, v_BSD, segments, bits, how)[0]


def _forward(q_BQD, k_BSD, v_BSD, segments, bits, how):
    def compute(*arrays):
        return kernels_of(KINDS, how.kind).forward(*arrays, how.rate, how.interpret)

    compute = _on_each_device(compute, q_BQD, segments, bits, how, "qqqm", "qs")
    context, log_sum = compute(q_BQD, k_BSD, v_BSD, segments, bits)
    context, log_sum = _saved(context), checkpoint_name(log_sum, RESIDUALS)
    return context, (q_BQD, k_BSD, v_BSD, segments, bits, context, log_sum)


def _saved(x):
    """Names a residual.

    It is saved as integers: of a float that is saved and used as well, `jax.checkpoint` makes
    another copy, rounded to its own precision.
    """
    integers = {2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    bits = checkpoint_name(jax.lax.bitcast_convert_type(x, integers), RESIDUALS)
    return jax.lax.bitcast_convert_type(bits, x.dtype)


def _backward(how, residuals, grad_BQD):
    def compute(q, k, v, segments, bits, *rest):
        return kernels_of(KINDS, how.kind).backward(
            q, k, v, segments, bits, how.rate, *rest, how.interpret
        )

    q_BQD, _, _, segments, bits, *_ = residuals
    compute = _on_each_device(compute, q_BQD, segments, bits, how, "qqqmqsq", "qqq")
    return *compute(*residuals, grad_BQD), None, None


_attention.defvjp(_forward, _backward)


def _on_each_device(
    compute: Callable,
    q_BQD: jax.Array,
    segments: Segments | None,
    bits: AttentionBits | None,
    how: _How,
    inputs: str,
    outputs: str,
) -> Callable:
    """Makes a function of one device's rows and heads one of all.

    Args:
      compute: (arrays, ..., segments, bits, arrays, ...) -> arrays, of one device.
      q_BQD: gives the size of the batch and the head width.
      segments, bits, how: as for `_attention`.
      inputs, outputs: a letter for each argument and result: q for [B, length, H, K] of a device,
        which is [B, length, D] of all; s for [B, H, Q]; m for the two arguments `segments` and
        `bits`.
    """
    width = q_BQD.shape[2] // how.heads
    letters = inputs.replace("m", "mm")

    def of_heads(*arrays):
        arrays = (
            x.reshape(*x.shape[:2], -1, width) if letter == "q" else x
            for x, letter in zip(arrays, letters, strict=True)
        )
        return tuple(
            x.reshape(*x.shape[:2], -1) if letter == "q" else x
            for x, letter in zip(compute(*arrays), outputs, strict=True)
        )

    if mesh_to_split_over() is None:
        return of_heads
    rows = dividing_axes("batch", q_BQD.shape[0])
    heads = dividing_axes("heads", how.heads)
    of_rows = PartitionSpec(rows)
    specs = {
        "q": (PartitionSpec(rows, None, heads),),
        "s": (PartitionSpec(rows, heads),),
        "m": (
            jax.tree.map(lambda _: of_rows, segments),
            bits and AttentionBits(*2 * [PartitionSpec(rows, heads)], PartitionSpec()),
        ),
    }
    return jax.shard_map(
        of_heads,
        in_specs=tuple(spec for letter in inputs for spec in specs[letter]),
        out_specs=tuple(spec for letter in outputs for spec in specs[letter]),
        # Pallas does not say over which axes the results of a kernel vary.
        check_vma=False,
    )
