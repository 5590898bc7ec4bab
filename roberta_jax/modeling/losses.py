"""The losses of the heads, each as a sum and a count.

No loss here divides by its count. Counts differ between devices and microbatches, so a mean of
their means would be wrong. The caller adds the sums and the counts of everything that it covers and
divides once.

Array names carry their shape: B batch, L length, K prediction slots per input, C classes, V
vocabulary.
"""

import jax
import jax.numpy as jnp

from roberta_jax.kernels.cross_entropy import cross_entropy

# The label of a position that is not a target, as in PyTorch and Hugging Face's classes.
IGNORE_INDEX = -100


def masked_lm_loss(
    logits: jax.Array, labels: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The summed cross-entropy of the masked targets, and their number.

    Args:
      logits: [B, K, V], or [B, L, V] with a label and a weight for every position.
      labels: int [B, K], in [0, V). Labels of weight 0 have no effect but must be in range; a
        label out of range gives NaN.
      weights: float [B, K], 1 for a target and 0 for an empty slot.

    Returns:
      (sum of weight * negative log-likelihood in nats, sum of weights), float32 scalars. The ratio
      of the two, each summed over the whole global batch, is fairseq's loss before it divides by
      log 2.
    """
    weights = weights.astype(jnp.float32)
    return jnp.sum(cross_entropy(logits, labels) * weights), jnp.sum(weights)


def masked_lm_hits(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """The summed weight of the targets whose label has the largest logit.

    The arguments are those of `masked_lm_loss`; the result is a float32 scalar.
    """
    correct = jnp.argmax(logits, axis=-1) == labels
    return jnp.sum(jnp.where(correct, weights.astype(jnp.float32), 0))


def label_loss(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The summed cross-entropy of the targets, and their number.

    Args:
      logits: [..., C].
      labels: int [...], in [0, C), or `IGNORE_INDEX` (-100) where there is no target. Any other
        label gives NaN.

    Returns:
      (sum of negative log-likelihoods in nats, number of targets), float32 scalars.
    """
    weights = (labels != IGNORE_INDEX).astype(jnp.float32)
    losses = cross_entropy(logits, jnp.where(weights > 0, labels, 0))
    return jnp.sum(losses * weights), jnp.sum(weights)


def span_loss(logits_BL: jax.Array, positions_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The summed cross-entropy of positions in the inputs, and the number of targets.

    As in Hugging Face's question answering, positions are clipped to [0, L], and position L is not
    a target: a position past the input does not count, and a negative one counts as 0.

    Args:
      logits_BL: one logit per position.
      positions_B: int [B] or [B, 1].

    Returns:
      (sum of negative log-likelihoods in nats, number of targets), float32 scalars.
    """
    length = logits_BL.shape[-1]
    positions_B = jnp.clip(positions_B.reshape(-1), 0, length)
    return label_loss(logits_BL, jnp.where(positions_B < length, positions_B, IGNORE_INDEX))


def label_count(labels: jax.Array) -> jax.Array:
    """The number of targets among labels, of which -100 is none; float32 scalar."""
    return jnp.sum((labels != IGNORE_INDEX).astype(jnp.float32))


def span_count(positions_B: jax.Array, length: int) -> jax.Array:
    """The number of positions that are targets in inputs of this length; see `span_loss`.

    Returns a float32 scalar.
    """
    return jnp.sum((positions_B.reshape(-1) < length).astype(jnp.float32))


def classification_loss(
    logits_BC: jax.Array,
    labels: jax.Array,
    problem_type: str | None = None,
    weights_B: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The summed loss of sequence classification, and the count to divide it by.

    | problem_type | loss | labels | count |
    | --- | --- | --- | --- |
    | "regression" | squared error | float [B] or [B, C] | B * C |
    | "single_label_classification" | cross-entropy, nats | int [B], -100 is ignored | targets |
    | "multi_label_classification" | binary cross-entropy, nats | float [B, C] | B * C |

    Args:
      logits_BC: float32.
      labels: see the table.
      problem_type: one of the three, or None to infer it as Hugging Face's classes do: regression
        if C is 1, else single-label for integer labels and multi-label for others.
      weights_B: 0 for inputs that do not count, 1 for the others; None counts all.

    Returns:
      (sum of losses, count), float32 scalars.

    Raises:
      ValueError: the labels have the wrong shape or dtype.
    """
    if problem_type is None:
        if logits_BC.shape[-1] == 1:
            problem_type = "regression"
        elif jnp.issubdtype(labels.dtype, jnp.integer):
            problem_type = "single_label_classification"
        else:
            problem_type = "multi_label_classification"
    if problem_type == "single_label_classification":
        if labels.size != logits_BC.shape[0] or not jnp.issubdtype(labels.dtype, jnp.integer):
            raise ValueError(
                f"single-label classification needs integer labels ({logits_BC.shape[0]},), not "
                f"{labels.dtype} {tuple(labels.shape)}"
            )
        labels_B = labels.reshape(-1)
        if weights_B is not None:
            labels_B = jnp.where(weights_B > 0, labels_B, IGNORE_INDEX)
        return label_loss(logits_BC, labels_B)
    if labels.size != logits_BC.size:
        raise ValueError(
            f"{problem_type.replace('_', ' ')} needs labels {tuple(logits_BC.shape)}, not "
            f"{tuple(labels.shape)}"
        )
    labels_BC = labels.reshape(logits_BC.shape).astype(jnp.float32)
    if problem_type == "regression":
        loss = jnp.square(logits_BC - labels_BC)
    else:
        loss = jax.nn.softplus(logits_BC) - labels_BC * logits_BC
    if weights_B is None:
        return jnp.sum(loss), jnp.float32(logits_BC.size)
    weights_B = (weights_B > 0).astype(jnp.float32)
    return jnp.sum(loss * weights_B[:, None]), jnp.sum(weights_B) * logits_BC.shape[-1]
