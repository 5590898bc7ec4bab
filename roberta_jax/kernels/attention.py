"""Scaled dot-product attention, with dropout on the probabilities.

The gradient is written out: the forward pass keeps the queries, keys, values and its result, and
two numbers a query, never the [B, H, Q, S] probabilities; the backward pass computes those again,
with the same dropout bits.

Array names carry their shape: B inputs, Q queries and S keys an input, H heads, K head width.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from roberta_jax.kernels.dropout import dropout

# The name under which a block's rematerialisation policy keeps this module's residuals.
RESIDUALS = "attention_residuals"

# Added to a masked score: so low that the probability is exactly 0, yet finite, so that a query
# with no key at all gives a number (an unread one) instead of NaN.
MASKED = -1e30


def mask_to_bias(mask: jax.Array | None) -> jax.Array | None:
    """What to add to the scores: 0 where the bool mask is True, `MASKED` elsewhere."""
    return None if mask is None else jnp.where(mask, 0.0, MASKED).astype(jnp.float32)


def _scores(q_BQHK, k_BSHK, bias):
    q_BQHK = q_BQHK * q_BQHK.shape[-1] ** -0.5
    scores = jnp.einsum("bqhk,bshk->bhqs", q_BQHK, k_BSHK, preferred_element_type=jnp.float32)
    return scores if bias is None else scores + bias


def _drop(x, words, rate):
    return dropout(x, words, rate) if rate else x


def attention_probabilities(
    q_BQHK: jax.Array, k_BSHK: jax.Array, bias: jax.Array | None, words, rate: float
) -> jax.Array:
    """The probabilities themselves, float32 [B, H, Q, S], after dropout; see `attend`."""
    return _drop(jax.nn.softmax(_scores(q_BQHK, k_BSHK, bias), axis=-1), words, rate)


def relative_bias(q_BQHK: jax.Array, k_BSHK: jax.Array | None, vectors_QSK: jax.Array) -> jax.Array:
    """What relative positions add to the scores: float32 [B, H, Q, S].

    The query's product with the vector of its distance to the key (Shaw et al. 2018, equation 5)
    and, where keys are given, the key's product with it (Huang et al. 2020, method 4).
    """
    scale = q_BQHK.shape[-1] ** -0.5

    def product(spec, x):
        return jnp.einsum(spec, x * scale, vectors_QSK, preferred_element_type=jnp.float32)

    added = product("bqhk,qsk->bhqs", q_BQHK)
    return added if k_BSHK is None else added + product("bshk,qsk->bhqs", k_BSHK)


def relative_attention(
    q_BQHK: jax.Array,
    k_BSHK: jax.Array,
    v_BSHK: jax.Array,
    added: jax.Array,
    bias: jax.Array | None,
    words: jax.Array | None,
    rate: float,
) -> tuple[jax.Array, jax.Array]:
    """`attend` with a term of the scores that has a gradient, by JAX's own differentiation.

    Args:
      added: float32 [B, H, Q, S], from `relative_bias`.
      others: see `attend`.

    Returns:
      ([B, Q, H, K] in v's dtype, the probabilities [B, H, Q, S] after dropout).
    """
    added = added if bias is None else added + bias
    probabilities = attention_probabilities(q_BQHK, k_BSHK, added, words, rate)
    context = jnp.einsum(
        "bhqs,bshk->bqhk",
        probabilities.astype(v_BSHK.dtype),
        v_BSHK,
        preferred_element_type=jnp.float32,
    )
    return context.astype(v_BSHK.dtype), probabilities


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def attend(
    q_BQHK: jax.Array,
    k_BSHK: jax.Array,
    v_BSHK: jax.Array,
    bias: jax.Array | None,
    words: jax.Array | None,
    rate: float,
) -> jax.Array:
    """softmax(q k / sqrt(K) + bias) v, the softmax in float32.

    Args:
      q_BQHK, k_BSHK, v_BSHK: queries, keys and values.
      bias: float32, broadcastable to [B, H, Q, S] (see `mask_to_bias`), or None; gets no gradient.
      words: random words of the dropout (`dropout.random_words`), or None with rate 0.
      rate: share of the probabilities to drop.

    Returns:
      [B, Q, H, K] in v's dtype.
    """
    return _forward(q_BQHK, k_BSHK, v_BSHK, bias, words, rate)[0]


def _forward(q_BQHK, k_BSHK, v_BSHK, bias, words, rate):
    scores = _scores(q_BQHK, k_BSHK, bias)
    greatest_BHQ1 = jnp.max(scores, axis=-1, keepdims=True)
    powers = jnp.exp(scores - greatest_BHQ1)
    inverse_BHQ1 = 1 / jnp.sum(powers, axis=-1, keepdims=True)
    # Divided by the sum after the product: K numbers a query and head instead of S.
    powers = _drop(powers, words, rate).astype(v_BSHK.dtype)
    context = jnp.einsum("bhqs,bshk->bqhk", powers, v_BSHK, preferred_element_type=jnp.float32)
    context = (context * _per_query(inverse_BHQ1)).astype(v_BSHK.dtype)
    kept = [checkpoint_name(x, RESIDUALS) for x in (context, greatest_BHQ1, inverse_BHQ1)]
    return kept[0], (q_BQHK, k_BSHK, v_BSHK, bias, words, *kept)


def _per_query(x_BHQ1):
    return jnp.moveaxis(x_BHQ1, 1, 2)  # to [B, Q, H, 1]


def _backward(rate, residuals, grad_BQHK):
    q_BQHK, k_BSHK, v_BSHK, bias, words, context, greatest_BHQ1, inverse_BHQ1 = residuals
    dtype = v_BSHK.dtype

    def product(spec, *arrays):
        return jnp.einsum(spec, *arrays, preferred_element_type=jnp.float32)

    probabilities = jnp.exp(_scores(q_BQHK, k_BSHK, bias) - greatest_BHQ1) * inverse_BHQ1
    dropped = _drop(probabilities, words, rate).astype(dtype)
    grad_v = product("bhqs,bqhk->bshk", dropped, grad_BQHK)

    grad_probabilities = product("bqhk,bshk->bhqs", grad_BQHK, v_BSHK)
    grad_probabilities = _drop(grad_probabilities, words, rate)
    # The sum over keys of probability * its gradient, by way of the result, which is far smaller.
    inner_BQH = jnp.sum(grad_BQHK.astype(jnp.float32) * context.astype(jnp.float32), axis=-1)
    inner_BHQ1 = jnp.swapaxes(inner_BQH, 1, 2)[..., None]
    grad_scores = (probabilities * (grad_probabilities - inner_BHQ1)).astype(dtype)

    scale = q_BQHK.shape[-1] ** -0.5
    grad_q = product("bhqs,bshk->bqhk", grad_scores, k_BSHK) * scale
    grad_k = product("bhqs,bqhk->bshk", grad_scores, q_BQHK * scale)
    return grad_q.astype(dtype), grad_k.astype(dtype), grad_v.astype(dtype), None, None


attend.defvjp(_forward, _backward)
