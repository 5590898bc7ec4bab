"""The kernels of `layer_norm` for TPUs, by Pallas.

A program of the grid computes some tokens of a row of the batch, each with its whole width.

Array names carry their shape: T tokens of a program, D hidden width.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from roberta_jax.kernels import dropout

_LANES = 128
_BLOCK_SIZE = 256 * 1024  # elements of an array in a program: 1 MiB in float32


def why_not(shape: tuple[int, ...], dtype: jnp.dtype) -> str | None:
    """What of an array [B, L, D] the kernels cannot compute, or None."""
    _, length, width = shape
    if dtype not in (jnp.float32, jnp.bfloat16):
        return f"the dtype is {dtype}, not float32 or bfloat16"
    if width % _LANES:
        return f"the width {width} is no multiple of {_LANES}"
    if not _tokens(length, width):
        return f"{length} tokens of width {width} do not split into equal blocks"
    return None


def _tokens(length: int, width: int) -> int:
    """How many tokens a program computes; 0 if there is no such number."""
    sizes = (length, *(size for size in (512, 256, 128, 64, 32, 16) if length % size == 0))
    return next((size for size in sizes if size * width <= _BLOCK_SIZE), 0)


def forward(x, bias, residual, scale, shift, bits, how):
    """[B, L, D]; see `layer_norm` for the arguments of this and of `backward`."""
    vectors = jnp.stack([bias, scale, shift])
    return _call(_forward_kernel, (x, residual), vectors, bits, how, 1)


def backward(x, bias, residual, scale, bits, grad, how):
    """(grad_x, grad_residual, sums [B, blocks, 3, D])."""
    vectors = jnp.stack([bias, scale])
    return _call(_backward_kernel, (x, residual, grad), vectors, bits, how, 2)


def _call(kernel, arrays, vectors, bits, how, results):
    """Calls a kernel with blocks of the arrays and vectors, for as many arrays of results."""
    batch, length, width = arrays[0].shape
    tokens = _tokens(length, width)
    grid = batch, length // tokens
    block = pl.BlockSpec((1, tokens, width), lambda b, i, *_: (b, i, 0))
    whole = pl.BlockSpec(vectors.shape, lambda b, i, *_: (0, 0))
    out_specs = [block] * results
    out_shape = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays[:results]]
    if results > 1:
        out_specs.append(pl.BlockSpec((1, 1, 3, width), lambda b, i, *_: (b, i, 0, 0)))
        out_shape.append(jax.ShapeDtypeStruct((*grid, 3, width), jnp.float32))
    scalars = () if bits is None else bits
    out = pl.pallas_call(
        functools.partial(kernel, how=how),
        out_shape=out_shape,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=grid,
            in_specs=[*[block] * len(arrays), whole],
            out_specs=out_specs,
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        # For XLA, which otherwise takes a kernel for free when it orders a program.
        cost_estimate=pl.CostEstimate(
            flops=(30 if results == 1 else 40) * arrays[0].size,
            transcendentals=batch * length,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*arrays, *out_shape)),
        ),
        interpret=how.interpret,
        name=f"layer_norm{kernel.__name__.removesuffix('_kernel')}",
    )(*scalars, *arrays, vectors)
    return out[0] if results == 1 else tuple(out)


def _forward_kernel(*refs, how):
    *scalars, x, residual, vectors, result = refs
    bias_1D, scale_1D, shift_1D = (vectors[i : i + 1] for i in range(3))
    factor_TD = _kept_factor(scalars, how, x.shape[1:])
    normalized_TD, _ = _normalized(x[0], bias_1D, residual[0], factor_TD, how)
    result[0] = (normalized_TD * scale_1D + shift_1D).astype(result.dtype)


def _backward_kernel(*refs, how):
    *scalars, x, residual, grad, vectors, grad_x, grad_residual, sums = refs
    bias_1D, scale_1D = vectors[0:1], vectors[1:2]
    factor_TD = _kept_factor(scalars, how, x.shape[1:])
    normalized_TD, inverse_T1 = _normalized(x[0], bias_1D, residual[0], factor_TD, how)
    grad_TD = grad[0].astype(jnp.float32)
    scaled_TD = grad_TD * scale_1D
    mean_T1 = jnp.mean(scaled_TD, axis=1, keepdims=True)
    slope_T1 = jnp.mean(scaled_TD * normalized_TD, axis=1, keepdims=True)
    grad_sum_TD = inverse_T1 * (scaled_TD - mean_T1 - normalized_TD * slope_T1)
    grad_residual[0] = grad_sum_TD.astype(grad_residual.dtype)
    grad_x_TD = grad_sum_TD if factor_TD is None else grad_sum_TD * factor_TD
    grad_x[0] = grad_x_TD.astype(grad_x.dtype)
    for i, part_TD in enumerate((grad_x_TD, grad_TD * normalized_TD, grad_TD)):
        sums[0, 0, i : i + 1] = jnp.sum(part_TD, axis=0, keepdims=True)


def _normalized(x_TD, bias_1D, residual_TD, factor_TD, how):
    """(LayerNorm's result without scale and shift, 1 / the standard deviation)."""
    x_TD = x_TD.astype(jnp.float32) + bias_1D
    if factor_TD is not None:
        x_TD = x_TD * factor_TD
    sum_TD = residual_TD.astype(jnp.float32) + x_TD
    # From centred values, because E[x^2] - E[x]^2 loses precision when the mean is large.
    centred_TD = sum_TD - jnp.mean(sum_TD, axis=1, keepdims=True)
    variance_T1 = jnp.mean(jnp.square(centred_TD), axis=1, keepdims=True)
    inverse_T1 = jax.lax.rsqrt(variance_T1 + how.epsilon)
    return centred_TD * inverse_T1, inverse_T1


def _kept_factor(scalars, how, shape):
    """0 for the elements that dropout drops, 1 / (1 - rate) for the others; None without dropout.

    The elements are those of `dropout.keep_mask` for an array [B, L, D].
    """
    if not scalars:
        return None
    low_ref, high_ref, seed_ref = scalars
    tokens, width = shape
    row, block = pl.program_id(0), pl.program_id(1)
    token_T1 = jax.lax.broadcasted_iota(jnp.uint32, (tokens, 1), 0)
    token_T1 += (block * tokens).astype(jnp.uint32)
    low_T1, high_T1 = dropout.mix_coordinate(low_ref[row], high_ref[row], token_T1, seed_ref[2])
    column_1D = dropout.column_word(
        jax.lax.broadcasted_iota(jnp.uint32, (1, width), 1), seed_ref[3]
    )
    hash_TD = dropout.element_hash(column_1D, low_T1, high_T1)
    return jnp.where(hash_TD >= dropout.threshold(how.rate), 1 / (1 - how.rate), 0.0)
