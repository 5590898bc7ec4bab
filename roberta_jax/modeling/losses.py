"""Losses as sums and counts.

A mean of per-device or per-microbatch means is wrong wherever the counts differ. So nothing here
divides: the caller adds up sums and counts over everything it covers and divides once.

Shapes: B inputs, K prediction slots an input, V vocabulary.
"""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax(logits)[label] for each target, in nats.

    Args:
      logits: [..., V], any floating type; computed in float32.
      labels: int [...], in [0, V).

    Returns:
      float32 [...].
    """
    return _forward(logits, labels)[0]


def _forward(logits, labels):
    log_sum = jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)
    at_label = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return log_sum - at_label.astype(jnp.float32), (logits, labels, log_sum)


def _backward(residuals, grad):
    # Written out so that the gradient is one pass over the logits, with only the logits and one
    # number a target kept from the forward pass.
    logits, labels, log_sum = residuals
    column = jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1)
    softmax = jnp.exp(logits.astype(jnp.float32) - log_sum[..., None])
    grad_logits = (softmax - (column == labels[..., None])) * grad[..., None]
    return grad_logits.astype(logits.dtype), None


cross_entropy.defvjp(_forward, _backward)


def masked_lm_loss(
    logits: jax.Array, labels: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Summed cross-entropy of the masked targets, and their number.

    Args:
      logits: [B, K, V], or [B, L, V] with a label and a weight for every position.
      labels: int [B, K], in [0, V); the value at weight 0 is without effect but must be in range.
      weights: float [B, K], 1 for a target and 0 for an empty slot.

    Returns:
      (sum of weight * negative log-likelihood in nats, sum of weights), float32 scalars. Their
      quotient, both summed over the whole global batch, is fairseq's loss before its division by
      log 2.
    """
    weights = weights.astype(jnp.float32)
    return jnp.sum(cross_entropy(logits, labels) * weights), jnp.sum(weights)


def masked_lm_hits(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """Summed weight of the targets whose label has the greatest logit; shapes as above."""
    hit = jnp.argmax(logits, axis=-1) == labels
    return jnp.sum(jnp.where(hit, weights.astype(jnp.float32), 0))
