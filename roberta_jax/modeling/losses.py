"""Losses as sums and counts.

A mean of per-device or per-microbatch means is wrong wherever the counts differ. So nothing here
divides: the caller adds up sums and counts over everything it covers and divides once.

Array names carry their shape: B inputs, K prediction slots an input, N targets, D hidden width,
V vocabulary, C classes or a chunk of the vocabulary.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

# Words a step of `projected_cross_entropy` covers, at most: few enough that the chunk's logits stay
# in a CPU's cache, enough for an accelerator's matrix units.
CHUNK = 4096

# The label of what is no target, as in PyTorch and Hugging Face's classes.
IGNORE_INDEX = -100

_NEVER = -1e30  # a logit whose probability is 0


@jax.custom_vjp
def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax(logits)[label] for each target, in nats.

    Args:
      logits: [..., V], any floating type; computed in float32.
      labels: int [...], in [0, V).

    Returns:
      float32 [...].
    """
    return _cross_entropy_forward(logits, labels)[0]


def _cross_entropy_forward(logits, labels):
    log_sum = jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)
    at_label = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return log_sum - at_label.astype(jnp.float32), (logits, labels, log_sum)


def _cross_entropy_backward(residuals, grad):
    # Written out so that the gradient is one pass over the logits, with only the logits and one
    # number a target kept from the forward pass.
    logits, labels, log_sum = residuals
    column = jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1)
    softmax = jnp.exp(logits.astype(jnp.float32) - log_sum[..., None])
    grad_logits = (softmax - (column == labels[..., None])) * grad[..., None]
    return grad_logits.astype(logits.dtype), None


cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


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


def label_loss(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Summed cross-entropy of the targets, and their number.

    Args:
      logits: [..., C].
      labels: int [...], in [0, C), or -100 for no target.

    Returns:
      (sum of negative log-likelihoods in nats, number of targets), float32 scalars.
    """
    weights = (labels != IGNORE_INDEX).astype(jnp.float32)
    losses = cross_entropy(logits, jnp.where(weights > 0, labels, 0))
    return jnp.sum(losses * weights), jnp.sum(weights)


def span_loss(logits_BL: jax.Array, positions_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Summed cross-entropy of positions in an input, and the number of those inside it.

    As Hugging Face's question answering: negative positions count as 0, those past the end are no
    targets. (Its clamp to [0, L], with L ignored.)
    """
    length = logits_BL.shape[-1]
    positions_B = jnp.clip(positions_B.reshape(-1), 0, length)
    return label_loss(logits_BL, jnp.where(positions_B < length, positions_B, IGNORE_INDEX))


def classification_loss(
    logits_BC: jax.Array, labels: jax.Array, problem_type: str | None = None
) -> tuple[jax.Array, jax.Array]:
    """The loss of sequence classification, summed, and what to divide it by.

    * "regression": squared error; divided by all numbers. [B] or [B, C].
    * "single_label_classification": cross-entropy in nats; divided by the targets. int [B], -100
      for none.
    * "multi_label_classification": binary cross-entropy in nats; divided by all B * C. [B, C].

    Args:
      logits_BC: float32.
      labels: see above.
      problem_type: one of the three; None takes regression where C is 1, and decides by the labels
        elsewhere: classes where they are integers, else several labels each. So do Hugging Face's
        classes.

    Raises:
      ValueError: labels of the wrong shape or type.
    """
    if problem_type is None:
        integers = jnp.issubdtype(labels.dtype, jnp.integer)
        kinds = ("multi_label_classification", "single_label_classification")
        problem_type = "regression" if logits_BC.shape[-1] == 1 else kinds[integers]
    if problem_type == "single_label_classification":
        if labels.size != logits_BC.shape[0] or not jnp.issubdtype(labels.dtype, jnp.integer):
            raise ValueError(
                f"single-label classification needs integer labels ({logits_BC.shape[0]},), not "
                f"{labels.dtype} {tuple(labels.shape)}"
            )
        return label_loss(logits_BC, labels.reshape(-1))
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
    return jnp.sum(loss), jnp.float32(logits_BC.size)


@jax.custom_vjp
def projected_cross_entropy(
    x_ND: jax.Array, table_VD: jax.Array, bias_V: jax.Array, labels_N: jax.Array
) -> jax.Array:
    """`cross_entropy(x @ table.T + bias, labels)`, with the [N, V] logits never whole in memory.

    The logits are computed a chunk of the vocabulary at a time, for the softmax's denominator and
    once more for the gradient. That is one matrix product more than keeping them, and still the
    faster way on a CPU, where a chunk stays in cache while the whole would be written and read
    again some ten times.

    Args:
      x_ND: one vector a target, in the type of the matrix products.
      table_VD: the decoder's rows, cast to that type here.
      bias_V: float32.
      labels_N: int, in [0, V).

    Returns:
      float32 [N], in nats.
    """
    return _projected_forward(x_ND, table_VD, bias_V, labels_N)[0]


def _chunk_size(vocabulary):
    """(number of chunks, their size); the size is a multiple of 128 where there are several."""
    if vocabulary <= CHUNK:
        return 1, vocabulary
    chunks = -(-vocabulary // CHUNK)
    size = -(-vocabulary // chunks)
    return chunks, -(-size // 128) * 128


def _chunk(i, x_ND, table_VD, bias_V):
    """Chunk i: (its first word, its rows of the table, its words [C], its logits [N, C]).

    The last chunk starts early so that all are of one size. The words it repeats are called -1 and
    get a logit that makes their probability 0, so that they count once.
    """
    vocabulary = table_VD.shape[0]
    _, size = _chunk_size(vocabulary)
    start = jnp.minimum(i * size, vocabulary - size)
    rows_CD = jax.lax.dynamic_slice_in_dim(table_VD, start, size)
    words_C = start + jnp.arange(size)
    words_C = jnp.where(words_C >= i * size, words_C, -1)
    bias_C = jax.lax.dynamic_slice_in_dim(bias_V, start, size)
    bias_C = jnp.where(words_C >= 0, bias_C, _NEVER)
    logits_NC = jnp.einsum("nd,cd->nc", x_ND, rows_CD, preferred_element_type=jnp.float32) + bias_C
    return start, rows_CD, words_C, nn.with_logical_constraint(logits_NC, ("batch", "logits"))


def _projected_forward(x_ND, table_VD, bias_V, labels_N):
    rows_VD = table_VD.astype(x_ND.dtype)
    targets = x_ND.shape[0]

    def add_chunk(carry, i):
        greatest, total = carry
        _, _, _, logits_NC = _chunk(i, x_ND, rows_VD, bias_V)
        new = jnp.maximum(greatest, jnp.max(logits_NC, axis=-1))
        total = total * jnp.exp(greatest - new) + jnp.sum(
            jnp.exp(logits_NC - new[:, None]), axis=-1
        )
        return (new, total), None

    start = (jnp.full(targets, _NEVER, jnp.float32), jnp.zeros(targets, jnp.float32))
    chunks, _ = _chunk_size(table_VD.shape[0])
    (greatest, total), _ = jax.lax.scan(add_chunk, start, jnp.arange(chunks))
    log_sum = greatest + jnp.log(total)
    at_label = bias_V[labels_N] + jnp.einsum(
        "nd,nd->n", x_ND, rows_VD[labels_N], preferred_element_type=jnp.float32
    )
    return log_sum - at_label, (x_ND, table_VD, bias_V, labels_N, log_sum)


def _projected_backward(residuals, grad_N):
    x_ND, table_VD, bias_V, labels_N, log_sum = residuals
    rows_VD = table_VD.astype(x_ND.dtype)
    ones_N = jnp.ones(grad_N.shape, x_ND.dtype)

    def add_chunk(carry, i):
        grad_x, grad_table, grad_bias = carry
        start, rows_CD, words_C, logits_NC = _chunk(i, x_ND, rows_VD, bias_V)
        softmax = jnp.exp(logits_NC - log_sum[:, None])
        grad_NC = (softmax - (words_C == labels_N[:, None])) * grad_N[:, None]
        grad_NC = grad_NC.astype(x_ND.dtype)

        def add_at_start(total, part):
            part = part + jax.lax.dynamic_slice_in_dim(total, start, part.shape[0])
            return jax.lax.dynamic_update_slice_in_dim(total, part, start, axis=0)

        def product(spec, *arrays):
            return jnp.einsum(spec, *arrays, preferred_element_type=jnp.float32)

        grad_x = grad_x + product("nc,cd->nd", grad_NC, rows_CD)
        grad_table = add_at_start(grad_table, product("nc,nd->cd", grad_NC, x_ND))
        # A product with ones: XLA's own sum over rows is far slower on a CPU.
        grad_bias = add_at_start(grad_bias, product("n,nc->c", ones_N, grad_NC))
        return (grad_x, grad_table, grad_bias), None

    zeros = [jnp.zeros(array.shape, jnp.float32) for array in (x_ND, table_VD, bias_V)]
    chunks, _ = _chunk_size(table_VD.shape[0])
    (grad_x, grad_table, grad_bias), _ = jax.lax.scan(add_chunk, tuple(zeros), jnp.arange(chunks))
    return grad_x.astype(x_ND.dtype), grad_table.astype(table_VD.dtype), grad_bias, None


projected_cross_entropy.defvjp(_projected_forward, _projected_backward)
