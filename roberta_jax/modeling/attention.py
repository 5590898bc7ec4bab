"""Scaled dot-product attention, with dropout on the probabilities.

Array names carry their shape: B inputs, Q queries and S keys an input (both L tokens), H heads,
K head width.
"""

import jax
import jax.numpy as jnp

from roberta_jax.modeling.dropout import dropout

# What a masked score becomes: so low that its probability is exactly 0, yet finite, so that a
# query with no key at all gives a number (an unread one) instead of NaN.
MASKED = -1e30


def attend(
    q_BQHK: jax.Array,
    k_BSHK: jax.Array,
    v_BSHK: jax.Array,
    mask: jax.Array | None,
    head_mask: jax.Array | None,
    words: jax.Array | None,
    rate: float,
    output_attentions: bool,
) -> tuple[jax.Array, jax.Array | None]:
    """softmax(q k / sqrt(K)) v, the softmax in float32.

    Args:
      q_BQHK, k_BSHK, v_BSHK: queries, keys and values.
      mask: bool, broadcastable to [B, H, Q, S], True where a query may see a key; None lets every
        query see every key.
      head_mask: [H] factors on each head's probabilities, or None.
      words: random words of the dropout (`dropout.random_words`), or None with rate 0.
      rate: share of the probabilities to drop.
      output_attentions: whether to return the probabilities as well.

    Returns:
      [B, Q, H, K] in v's dtype, and the [B, H, Q, S] probabilities (after dropout and head mask,
      as Hugging Face's classes return them) or None.
    """
    q_BQHK = q_BQHK * q_BQHK.shape[-1] ** -0.5
    scores = jnp.einsum("bqhk,bshk->bhqs", q_BQHK, k_BSHK, preferred_element_type=jnp.float32)
    if mask is not None:
        scores = jnp.where(mask, scores, MASKED)
    probabilities = jax.nn.softmax(scores, axis=-1).astype(v_BSHK.dtype)
    if rate:
        probabilities = dropout(probabilities, words, rate)
    if head_mask is not None:
        probabilities = probabilities * head_mask[:, None, None].astype(probabilities.dtype)
    context = jnp.einsum("bhqs,bshk->bqhk", probabilities, v_BSHK)
    return context, probabilities if output_attentions else None
