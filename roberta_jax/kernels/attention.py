"""Scaled dot-product attention, with dropout on the attention probabilities.

`reference_attention` is the definition. The other implementations have hand-written gradients: the
forward pass stores the queries, keys, values, the output and one or two numbers per query, never
the [B, H, Q, S] probabilities. The backward pass computes the probabilities again, with the same
dropout mask. `xla_attention` writes probabilities to memory while it computes a layer. The fused
ones, one for TPUs and one for GPUs, keep them on the chip; see `fused_attention`.

All implementations drop the same elements.

Array names carry their shape: B batch, Q queries, S keys, H heads, K head width.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from roberta_jax.kernels import fused_attention
from roberta_jax.kernels.dispatch import AUTO, kind_of_platform
from roberta_jax.kernels.dropout import AttentionBits, attention_bits, attention_dropout
from roberta_jax.kernels.fused_attention import RESIDUALS
from roberta_jax.kernels.masks import Mask, bias_of


def dot_product_attention(
    q_BQHK: jax.Array,
    k_BSHK: jax.Array,
    v_BSHK: jax.Array,
    mask: Mask = None,
    dropout_seed: jax.Array | None = None,
    dropout_rate: float = 0.0,
    implementation: str = AUTO,
) -> jax.Array:
    """softmax(q k / sqrt(K) + bias) v, with the softmax in float32.

    Args:
      q_BQHK, k_BSHK, v_BSHK: queries, keys and values.
      mask: `Segments`, a float32 bias that is broadcastable to [B, H, Q, S] (see `mask_to_bias`),
        or None. Only the reference implementation computes the gradient of a bias; elsewhere the
        gradient is zero.
      dropout_seed: uint32 [4] from `dropout.seed_from_key`, or None with rate 0.
      dropout_rate: fraction of the probabilities to drop, rounded to a multiple of 2**-16.
      implementation: a key of `IMPLEMENTATIONS`, or "auto": the fused one of the platform where it
        can compute this, else "xla".

    Returns:
      [B, Q, H, K] in v's dtype.

    Raises:
      ValueError: the implementation cannot compute this.
    """
    if implementation == AUTO:
        implementation = of_platform(AUTO)
        is_one_query = q_BQHK.shape[1] == 1  # its scores are few
        if is_fused(implementation) and (
            is_one_query or fused_attention.why_not(implementation, q_BQHK, k_BSHK, mask)
        ):
            implementation = "xla"
    bits = attention_bits(dropout_seed, q_BQHK) if dropout_rate else None
    attention = IMPLEMENTATIONS[implementation]
    return attention(q_BQHK, k_BSHK, v_BSHK, mask, bits, dropout_rate)


def attention_probabilities(
    q_BQHK: jax.Array,
    k_BSHK: jax.Array,
    mask: Mask = None,
    dropout_seed: jax.Array | None = None,
    dropout_rate: float = 0.0,
) -> jax.Array:
    """The attention probabilities after dropout, float32 [B, H, Q, S].

    The arguments are those of `dot_product_attention`.
    """
    bits = attention_bits(dropout_seed, q_BQHK) if dropout_rate else None
    return _probabilities(q_BQHK, k_BSHK, bias_of(mask), bits, dropout_rate)


def _probabilities(q_BQHK, k_BSHK, bias, bits, rate):
    return _dropout(jax.nn.softmax(_scores(q_BQHK, k_BSHK, bias), axis=-1), bits, rate)


def relative_bias(q_BQHK: jax.Array, k_BSHK: jax.Array | None, vectors_QSK: jax.Array) -> jax.Array:
    """The bias of relative position embeddings, float32 [B, H, Q, S].

    It is the product of each query with the vector of its distance to the key (Shaw et al. 2018,
    equation 5), plus, if `k_BSHK` is given, the product of each key with that vector (Huang et al.
    2020, method 4).
    """

    def product(spec, x):
        x, factor = _scaled(x)
        return factor * jnp.einsum(spec, x, vectors_QSK, preferred_element_type=jnp.float32)

    bias = product("bqhk,qsk->bhqs", q_BQHK)
    return bias if k_BSHK is None else bias + product("bshk,qsk->bhqs", k_BSHK)


def reference_attention(q_BQHK, k_BSHK, v_BSHK, mask, bits: AttentionBits | None, rate):
    """`dot_product_attention` by its definition, differentiated by JAX; a bias has a gradient."""
    probabilities = _probabilities(q_BQHK, k_BSHK, bias_of(mask), bits, rate).astype(v_BSHK.dtype)
    context = jnp.einsum(
        "bhqs,bshk->bqhk", probabilities, v_BSHK, preferred_element_type=jnp.float32
    )
    return context.astype(v_BSHK.dtype)


def xla_attention(q_BQHK, k_BSHK, v_BSHK, mask, bits: AttentionBits | None, rate):
    """`dot_product_attention` that stores no probabilities; a bias has no gradient."""
    return _xla_attention(q_BQHK, k_BSHK, v_BSHK, bias_of(mask), bits, rate)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _xla_attention(q_BQHK, k_BSHK, v_BSHK, bias, bits, rate):
    return _forward(q_BQHK, k_BSHK, v_BSHK, bias, bits, rate)[0]


def _scores(q_BQHK, k_BSHK, bias):
    q_BQHK, factor = _scaled(q_BQHK)
    scores = jnp.einsum("bqhk,bshk->bhqs", q_BQHK, k_BSHK, preferred_element_type=jnp.float32)
    scores = factor * scores
    return scores if bias is None else scores + bias


def _scaled(x):
    """Two factors of x / sqrt(K), an array and a number, where K is the size of x's last axis.

    The number is 1 if the array can be scaled without loss: in float32, or where sqrt(K) is a power
    of two, as for heads of 64. Otherwise the float32 product with the array is to be scaled.
    """
    scale = x.shape[-1] ** -0.5
    is_exact = math.frexp(scale)[0] == 0.5 or jnp.finfo(x.dtype).bits >= 32
    return (x * scale, 1.0) if is_exact else (x, scale)


def _dropout(x, bits, rate):
    return attention_dropout(x, bits, rate) if rate else x


def _forward(q_BQHK, k_BSHK, v_BSHK, bias, bits, rate):
    scores = _scores(q_BQHK, k_BSHK, bias)
    max_BHQ1 = jnp.max(scores, axis=-1, keepdims=True)
    exp_scores = jnp.exp(scores - max_BHQ1)
    inverse_sum_BHQ1 = 1 / jnp.sum(exp_scores, axis=-1, keepdims=True)
    # Normalised after the product with the values: K instead of S divisions per query and head.
    weights = _dropout(exp_scores, bits, rate).astype(v_BSHK.dtype)
    context = jnp.einsum("bhqs,bshk->bqhk", weights, v_BSHK, preferred_element_type=jnp.float32)
    context = (context * jnp.moveaxis(inverse_sum_BHQ1, 1, 2)).astype(v_BSHK.dtype)
    context, *statistics = (
        checkpoint_name(x, RESIDUALS) for x in (context, max_BHQ1, inverse_sum_BHQ1)
    )
    return context, (q_BQHK, k_BSHK, v_BSHK, bias, bits, context, *statistics)


def _backward(rate, residuals, grad_BQHK):
    q_BQHK, k_BSHK, v_BSHK, bias, bits, context, max_BHQ1, inverse_sum_BHQ1 = residuals
    dtype = v_BSHK.dtype

    def product(spec, *arrays):
        return jnp.einsum(spec, *arrays, preferred_element_type=jnp.float32)

    probabilities = jnp.exp(_scores(q_BQHK, k_BSHK, bias) - max_BHQ1) * inverse_sum_BHQ1
    dropped = _dropout(probabilities, bits, rate).astype(dtype)
    grad_v = product("bhqs,bqhk->bshk", dropped, grad_BQHK)

    grad_probabilities = product("bqhk,bshk->bhqs", grad_BQHK, v_BSHK)
    grad_probabilities = _dropout(grad_probabilities, bits, rate)
    # The softmax's gradient needs sum_s(probability * its gradient). That equals the product of the
    # output with its own gradient, which is far smaller.
    inner_BQH = jnp.sum(grad_BQHK.astype(jnp.float32) * context.astype(jnp.float32), axis=-1)
    inner_BHQ1 = jnp.swapaxes(inner_BQH, 1, 2)[..., None]
    grad_scores = (probabilities * (grad_probabilities - inner_BHQ1)).astype(dtype)

    scale = q_BQHK.shape[-1] ** -0.5
    grad_q = product("bhqs,bshk->bqhk", grad_scores, k_BSHK) * scale
    q_BQHK, factor = _scaled(q_BQHK)
    grad_k = factor * product("bhqs,bqhk->bshk", grad_scores, q_BQHK)
    return grad_q.astype(dtype), grad_k.astype(dtype), grad_v.astype(dtype), None, None


_xla_attention.defvjp(_forward, _backward)

IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {
    "xla": xla_attention,
    "reference": reference_attention,
    **{
        kind: functools.partial(fused_attention.fused_attention, kind=kind)
        for kind in fused_attention.KINDS
    },
}

# The values of `Execution.attention`.
CHOICES = (AUTO, *IMPLEMENTATIONS)


def of_platform(choice: str, where: str | None = None) -> str:
    """What "auto" stands for on a platform, by default `dispatch.platform()`.

    Where that cannot compute something, "auto" computes it with "xla"; without `where` also if it
    is not known how arrays are split over several devices (see `dispatch.knows_splits`). Other
    choices stay as they are.
    """
    return kind_of_platform(fused_attention.KINDS, where) if choice == AUTO else choice


def is_fused(implementation: str) -> bool:
    """Whether it takes `Segments` as they are, and its scores stay on the chip."""
    return implementation in fused_attention.KINDS
