"""LayerNorm(residual + dropout(x + bias)), the end of each sub-layer of a block, in one pass.

The plain form, differentiated by JAX, is `modeling.block.Output`: XLA passes over the arrays for
the mean, for the variance and for the result, and computes the dropout's bits each time. A kernel
reads each array once, and writes the result. Its backward pass computes the bits and the statistics
again, and sums up the gradients of the vectors on the way.

A module of kernels has three functions:

    why_not(shape, dtype) -> what the kernels cannot compute, or None
    forward(x, bias, residual, scale, shift, bits, how) -> y
    backward(x, bias, residual, scale, bits, grad, how) -> (
        grad_x, grad_residual, sums of grad_bias, grad_scale and grad_shift, float32 [..., 3, D])

Array names carry their shape: B batch, L length, D hidden width.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from roberta_jax.kernels import dropout
from roberta_jax.kernels.dispatch import (
    AUTO,
    axes_of,
    dividing_axes,
    is_interpreted,
    kernels_of,
    kind_of_platform,
    mesh_to_split_over,
    refusal,
)

# See `dispatch.Kinds`.
KINDS = {"pallas_tpu": ("tpu", "roberta_jax.kernels.layer_norm_tpu")}

# The values of `Execution.layer_norm`.
CHOICES = (AUTO, "xla", *KINDS)


class RowBits(NamedTuple):
    """What decides which elements are kept, on any device that has some rows of the batch.

    Attributes:
      low_B, high_B: uint32 [B], the words of a row of the batch.
      seed: uint32 [4].
    """

    low_B: jax.Array
    high_B: jax.Array
    seed: jax.Array


@dataclasses.dataclass(frozen=True)
class How:
    """What is no array: the rate of dropout, LayerNorm's epsilon, the kind of kernels."""

    rate: float
    epsilon: float
    kind: str
    interpret: bool


def of_platform(choice: str, x_BLD: jax.Array, where: str | None = None) -> str:
    """The implementation for an array on a platform, by default `dispatch.platform()`.

    Returns:
      "xla" or a key of `KINDS`.

    Raises:
      ValueError: the choice is a kind of kernels that cannot compute this.
    """
    if choice == AUTO:
        kind = kind_of_platform(KINDS, where)
        return kind if is_fused(kind) and why_not(kind, x_BLD) is None else "xla"
    reason = why_not(choice, x_BLD) if is_fused(choice) else None
    if reason:
        raise refusal("layer_norm", choice, reason)
    return choice


def is_fused(implementation: str) -> bool:
    """Whether kernels compute it in one pass."""
    return implementation in KINDS


def why_not(kind: str, x_BLD: jax.Array) -> str | None:
    """Why the kernels of a kind cannot compute this, or None if they can."""
    if axes_of("length"):
        return "the rule of the axis 'length' splits it over devices"
    return kernels_of(KINDS, kind).why_not(x_BLD.shape, x_BLD.dtype)


def residual_layer_norm(
    x_BLD: jax.Array,
    bias_D: jax.Array,
    residual_BLD: jax.Array,
    scale_D: jax.Array,
    shift_D: jax.Array,
    *,
    epsilon: float,
    kind: str,
    dropout_seed: jax.Array | None = None,
    dropout_rate: float = 0.0,
) -> jax.Array:
    """LayerNorm(residual + dropout(x + bias)) * scale + shift by the kernels of a kind.

    Everything is computed in float32. It drops the elements that `dropout.dropout` drops.

    Args:
      x_BLD, residual_BLD: of the same dtype.
      bias_D, scale_D, shift_D: float32.
      epsilon: added to the variance.
      kind: a key of `KINDS` that `why_not` has nothing against.
      dropout_seed: uint32 [4] from `dropout.seed_from_key`, or None with rate 0.
      dropout_rate: fraction of the elements to drop.

    Returns:
      [B, L, D] in x's dtype.
    """
    bits = None
    if dropout_rate:
        bits = RowBits(*dropout.leading_words(dropout_seed, x_BLD, (0,)), dropout_seed)
    how = How(dropout_rate, epsilon, kind, is_interpreted())
    return _layer_norm(x_BLD, bias_D, residual_BLD, scale_D, shift_D, bits, how)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _layer_norm(x_BLD, bias_D, residual_BLD, scale_D, shift_D, bits, how):
    return _forward(x_BLD, bias_D, residual_BLD, scale_D, shift_D, bits, how)[0]


def _forward(x_BLD, bias_D, residual_BLD, scale_D, shift_D, bits, how):
    def compute(*arrays):
        return kernels_of(KINDS, how.kind).forward(*arrays, how)

    arrays = x_BLD, bias_D, residual_BLD, scale_D, shift_D, bits
    result = _on_each_device(compute, arrays, "rdrddb", "r")(*arrays)
    return result, (x_BLD, bias_D, residual_BLD, scale_D, bits)


def _backward(how, residuals, grad_BLD):
    def compute(*arrays):
        return kernels_of(KINDS, how.kind).backward(*arrays, how)

    arrays = *residuals, grad_BLD
    compute = _on_each_device(compute, arrays, "rdrdbr", "rrr")
    grad_x, grad_residual, sums = compute(*arrays)
    grads_D = jnp.sum(sums, axis=tuple(range(sums.ndim - 2)))
    return grad_x, grads_D[0], grad_residual, grads_D[1], grads_D[2], None


_layer_norm.defvjp(_forward, _backward)


def _on_each_device(compute, arrays, inputs, outputs):
    """Makes a function of one device's rows one of all; r is an array of rows, b the bits."""
    if mesh_to_split_over() is None:
        return compute
    of_rows = PartitionSpec(dividing_axes("batch", arrays[0].shape[0]))
    no_rows = PartitionSpec()
    bits = arrays[inputs.index("b")]
    specs = {"r": of_rows, "d": no_rows, "b": bits and RowBits(of_rows, of_rows, no_rows)}
    results = tuple(specs[letter] for letter in outputs)
    return jax.shard_map(
        compute,
        in_specs=tuple(specs[letter] for letter in inputs),
        out_specs=results if len(results) > 1 else results[0],
        # Pallas does not say over which axes the results of a kernel vary.
        check_vma=False,
    )
