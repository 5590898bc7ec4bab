"""Scaled dot-product attention, with dropout on the attention probabilities.

`reference_attention` is the definition. `xla_attention` has a hand-written gradient: the forward
pass stores the queries, keys, values, the output and two numbers per query, never the [B, H, Q, S]
probabilities. The backward pass computes the probabilities again, with the same dropout mask.

To add an implementation, write a function with `reference_attention`'s signature and add it to
`IMPLEMENTATIONS`; the tests compare every entry with the reference.

Array names carry their shape: B batch, Q queries, S keys, H heads, K head width.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from roberta_jax.kernels.dropout import dropout

# The `checkpoint_name` of the residuals of `xla_attention`, for rematerialisation policies.
RESIDUALS = "attention_residuals"

# Added to a masked score. It is low enough that the probability is exactly 0, and finite, so that a
# query whose keys are all masked gives a finite output (which nothing reads) instead of NaN.
MASKED_SCORE = -1e30


def mask_to_bias(mask: jax.Array | None) -> jax.Array | None:
    """Converts a bool mask to a float32 bias: 0 where True, `MASKED_SCORE` where False."""
    return None if mask is None else jnp.where(mask, 0.0, MASKED_SCORE).astype(jnp.float32)


def dot_product_attention(
    q_BQHK: jax.Array,
    k_BSHK: jax.Array,
    v_BSHK: jax.Array,
    bias: jax.Array | None = None,
    dropout_seed: jax.Array | None = None,
    dropout_rate: float = 0.0,
    implementation: str = "xla",
) -> jax.Array:
    """softmax(q k / sqrt(K) + bias) v, with the softmax in float32.

    Args:
      q_BQHK, k_BSHK, v_BSHK: queries, keys and values.
      bias: float32, broadcastable to [B, H, Q, S] (see `mask_to_bias`), or None. Only the reference
        implementation computes its gradient; elsewhere the gradient is zero.
      dropout_seed: uint32 [4] from `dropout.seed_from_key`, or None with rate 0.
      dropout_rate: fraction of the probabilities to drop.
      implementation: a key of `IMPLEMENTATIONS`.

    Returns:
      [B, Q, H, K] in v's dtype.
    """
    attention = IMPLEMENTATIONS[implementation]
    return attention(q_BQHK, k_BSHK, v_BSHK, bias, dropout_seed, dropout_rate)


def attention_probabilities(
    q_BQHK: jax.Array,
    k_BSHK: jax.Array,
    bias: jax.Array | None = None,
    dropout_seed: jax.Array | None = None,
    dropout_rate: float = 0.0,
) -> jax.Array:
    """The attention probabilities after dropout, float32 [B, H, Q, S].

    The arguments are those of `dot_product_attention`.
    """
    probabilities = jax.nn.softmax(_scores(q_BQHK, k_BSHK, bias), axis=-1)
    return _dropout(probabilities, dropout_seed, dropout_rate)


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


def reference_attention(q_BQHK, k_BSHK, v_BSHK, bias, dropout_seed, dropout_rate):
    """`dot_product_attention` by its definition, differentiated by JAX; `bias` has a gradient."""
    probabilities = attention_probabilities(q_BQHK, k_BSHK, bias, dropout_seed, dropout_rate)
    probabilities = probabilities.astype(v_BSHK.dtype)
    context = jnp.einsum(
        "bhqs,bshk->bqhk", probabilities, v_BSHK, preferred_element_type=jnp.float32
    )
    return context.astype(v_BSHK.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def xla_attention(q_BQHK, k_BSHK, v_BSHK, bias, dropout_seed, dropout_rate):
    """`dot_product_attention` that stores no probabilities; `bias` has no gradient."""
    return _forward(q_BQHK, k_BSHK, v_BSHK, bias, dropout_seed, dropout_rate)[0]


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


def _dropout(x, seed, rate):
    return dropout(x, seed, rate) if rate else x


def _forward(q_BQHK, k_BSHK, v_BSHK, bias, dropout_seed, dropout_rate):
    scores = _scores(q_BQHK, k_BSHK, bias)
    max_BHQ1 = jnp.max(scores, axis=-1, keepdims=True)
    exp_scores = jnp.exp(scores - max_BHQ1)
    inverse_sum_BHQ1 = 1 / jnp.sum(exp_scores, axis=-1, keepdims=True)
    # Normalised after the product with the values: K instead of S divisions per query and head.
    weights = _dropout(exp_scores, dropout_seed, dropout_rate).astype(v_BSHK.dtype)
    context = jnp.einsum("bhqs,bshk->bqhk", weights, v_BSHK, preferred_element_type=jnp.float32)
    context = (context * jnp.moveaxis(inverse_sum_BHQ1, 1, 2)).astype(v_BSHK.dtype)
    context, *statistics = (
        checkpoint_name(x, RESIDUALS) for x in (context, max_BHQ1, inverse_sum_BHQ1)
    )
    return context, (q_BQHK, k_BSHK, v_BSHK, bias, dropout_seed, context, *statistics)


def _backward(dropout_rate, residuals, grad_BQHK):
    q_BQHK, k_BSHK, v_BSHK, bias, dropout_seed, context, max_BHQ1, inverse_sum_BHQ1 = residuals
    dtype = v_BSHK.dtype

    def product(spec, *arrays):
        return jnp.einsum(spec, *arrays, preferred_element_type=jnp.float32)

    probabilities = jnp.exp(_scores(q_BQHK, k_BSHK, bias) - max_BHQ1) * inverse_sum_BHQ1
    dropped = _dropout(probabilities, dropout_seed, dropout_rate).astype(dtype)
    grad_v = product("bhqs,bqhk->bshk", dropped, grad_BQHK)

    grad_probabilities = product("bqhk,bshk->bhqs", grad_BQHK, v_BSHK)
    grad_probabilities = _dropout(grad_probabilities, dropout_seed, dropout_rate)
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


xla_attention.defvjp(_forward, _backward)

# What `Execution.attention` selects from. The keys are values of `--config.execution.attention`.
IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {
    "xla": xla_attention,
    "reference": reference_attention,
}
