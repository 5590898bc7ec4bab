"""Cross-entropy over a vocabulary, from logits or fused with the projection to the vocabulary.

`reference_cross_entropy` and `reference_projected_cross_entropy` are the definitions.

To add an implementation of the projected cross-entropy, write a function with the reference's
signature and add it to `IMPLEMENTATIONS`; the tests compare every entry with the reference.

Array names carry their shape: N targets, D hidden width, V vocabulary, C words of one chunk of the
vocabulary.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from roberta_jax.kernels.dispatch import axes_of, parts_of

# Largest number of words in a chunk of `chunked_cross_entropy`. The logits of a chunk stay in a
# CPU's cache, and the matrix products are large enough for an accelerator's matrix units.
CHUNK_SIZE = 4096

# Up to this size the logits are kept for the backward pass, in bytes. Computing them again costs
# more time on a CPU, though the larger ones do not stay in its cache.
KEPT_LOGITS = 64 << 20

_MASKED_LOGIT = -1e30  # its probability is exactly 0


def reference_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """`cross_entropy` by its definition, differentiated by JAX."""
    labels = labels[..., None]
    logits = nan_unless_in_range(logits.astype(jnp.float32), labels, logits.shape[-1])
    log_probabilities = jax.nn.log_softmax(logits, axis=-1)
    return -jnp.take_along_axis(log_probabilities, labels, axis=-1)[..., 0]


def reference_projected_cross_entropy(x_ND, table_VD, bias_V, labels_N):
    """`projected_cross_entropy` by its definition: computes the whole [N, V] logits."""
    table_VD = table_VD.astype(x_ND.dtype)
    logits_NV = jnp.einsum("nd,vd->nv", x_ND, table_VD, preferred_element_type=jnp.float32)
    return reference_cross_entropy(logits_NV + bias_V, labels_N)


def nan_unless_in_range(x: jax.Array, labels: jax.Array, num_classes: int) -> jax.Array:
    """Makes x, to whose shape the labels broadcast, NaN where they are not in [0, num_classes).

    Indexing itself would take a negative label from the end, and some modes clip a larger one.
    """
    # A factor, so that the gradient is NaN too.
    return x * jnp.where((labels >= 0) & (labels < num_classes), 1.0, jnp.nan)


@jax.custom_vjp
def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log softmax(logits)[label] for each target, in nats.

    Args:
      logits: [..., V], any floating dtype; the loss is computed in float32.
      labels: int [...], in [0, V).

    Returns:
      float32 [...]; NaN, with NaN as gradient, where a label is out of range.
    """
    return _cross_entropy_forward(logits, labels)[0]


def _cross_entropy_forward(logits, labels):
    log_sum = jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)
    log_sum = nan_unless_in_range(log_sum, labels, logits.shape[-1])
    label_logits = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return log_sum - label_logits.astype(jnp.float32), (logits, labels, log_sum)


def _cross_entropy_backward(residuals, grad):
    # Hand-written so that the gradient is one pass over the logits, and the forward pass stores
    # only the logits and one number per target.
    logits, labels, log_sum = residuals
    column = jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1)
    softmax = jnp.exp(logits.astype(jnp.float32) - log_sum[..., None])
    grad_logits = (softmax - (column == labels[..., None])) * grad[..., None]
    return grad_logits.astype(logits.dtype), None


cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def projected_cross_entropy(
    x_ND: jax.Array,
    table_VD: jax.Array,
    bias_V: jax.Array,
    labels_N: jax.Array,
    implementation: str | None = None,
) -> jax.Array:
    """`cross_entropy(x @ table.T + bias, labels)`.

    Args:
      x_ND: one vector per target, in the dtype of the matrix products.
      table_VD: the rows of the decoder; cast to x's dtype here.
      bias_V: float32.
      labels_N: int, in [0, V).
      implementation: a key of `IMPLEMENTATIONS`; by default "whole" where `keeps_logits` and the
        vocabulary is not split over devices, otherwise "chunked".

    Returns:
      float32 [N], in nats; NaN, with NaN as gradient, where a label is out of range.
    """
    if implementation is None:
        is_whole = keeps_logits(*labels_N.shape, *bias_V.shape) and not axes_of("logits")
        implementation = "whole" if is_whole else "chunked"
    return IMPLEMENTATIONS[implementation](x_ND, table_VD, bias_V, labels_N)


def keeps_logits(num_targets: int, vocab_size: int) -> bool:
    """Whether the logits are small enough to be kept for the backward pass."""
    return 4 * num_targets * vocab_size <= KEPT_LOGITS


@jax.custom_vjp
def whole_cross_entropy(x_ND, table_VD, bias_V, labels_N):
    """`projected_cross_entropy` that keeps the logits for the backward pass, for few targets."""
    return _whole_forward(x_ND, table_VD, bias_V, labels_N)[0]


def _whole_forward(x_ND, table_VD, bias_V, labels_N):
    logits_NV = _logits(x_ND, _replicated(table_VD.astype(x_ND.dtype)), bias_V)
    loss_N, (_, _, log_sum_N) = _cross_entropy_forward(logits_NV, labels_N)
    return loss_N, (x_ND, table_VD, labels_N, logits_NV, log_sum_N)


def _whole_backward(residuals, grad_N):
    x_ND, table_VD, labels_N, logits_NV, log_sum_N = residuals
    grad_NV, _ = _cross_entropy_backward((logits_NV, labels_N, log_sum_N), grad_N)
    rows_VD = _replicated(table_VD.astype(x_ND.dtype))
    grad_x, grad_table, grad_bias = _gradients_of_logits(grad_NV, x_ND, rows_VD)
    grad_table = nn.with_logical_constraint(grad_table, (None, "embedding"))
    return grad_x.astype(x_ND.dtype), grad_table.astype(table_VD.dtype), grad_bias, None


whole_cross_entropy.defvjp(_whole_forward, _whole_backward)


def _logits(x_ND, rows_CD, bias_C):
    """float32 [N, C]."""
    logits_NC = jnp.einsum("nd,cd->nc", x_ND, rows_CD, preferred_element_type=jnp.float32) + bias_C
    return nn.with_logical_constraint(logits_NC, ("batch", None))


def _gradients_of_logits(grad_NC, x_ND, rows_CD):
    """The gradients of x, of the rows and of the bias from that of the logits, float32."""
    grad_NC = grad_NC.astype(x_ND.dtype)

    def product(spec, *arrays):
        return jnp.einsum(spec, *arrays, preferred_element_type=jnp.float32)

    # A product with ones for the bias, because XLA's sum over rows is far slower on a CPU.
    ones_N = jnp.ones(len(x_ND), x_ND.dtype)
    return (
        product("nc,cd->nd", grad_NC, rows_CD),
        product("nc,nd->cd", grad_NC, x_ND),
        product("n,nc->c", ones_N, grad_NC),
    )


def _replicated(rows_VD):
    return nn.with_logical_constraint(rows_VD, (None, None))


@jax.custom_vjp
def chunked_cross_entropy(x_ND, table_VD, bias_V, labels_N):
    """`projected_cross_entropy` that never holds the whole [N, V] logits in memory.

    The logits are computed one chunk of the vocabulary at a time, in the forward pass for the
    softmax's denominator and again in the backward pass. This costs one more matrix product than
    keeping the logits.

    Where the rule of the logical axis "logits" splits the vocabulary over devices, each computes
    the chunks of its own part. The parts are equally long: the table is padded with words of
    probability 0. One number per target and part is exchanged in the forward pass, and the gradient
    of x is added up once in the backward pass.
    """
    return _chunked_forward(x_ND, table_VD, bias_V, labels_N)[0]


def _num_chunks_and_size(vocab_size):
    """(number of chunks, their size). With several chunks the size is a multiple of 128."""
    if vocab_size <= CHUNK_SIZE:
        return 1, vocab_size
    chunks = -(-vocab_size // CHUNK_SIZE)
    size = -(-vocab_size // chunks)
    return chunks, -(-size // 128) * 128


def _chunk(i, x_ND, table_VD, bias_V):
    """Chunk i: (its first word, its rows of the table, its word ids [C], its logits [N, C]).

    All chunks have the same size, so the last one overlaps the one before. The words in the overlap
    get the id -1 and the probability 0, so that each word counts once.
    """
    vocab_size = table_VD.shape[0]
    _, size = _num_chunks_and_size(vocab_size)
    start = jnp.minimum(i * size, vocab_size - size)
    rows_CD = jax.lax.dynamic_slice_in_dim(table_VD, start, size)
    words_C = start + jnp.arange(size)
    words_C = jnp.where(words_C >= i * size, words_C, -1)
    bias_C = jax.lax.dynamic_slice_in_dim(bias_V, start, size)
    bias_C = jnp.where(words_C >= 0, bias_C, _MASKED_LOGIT)
    return start, rows_CD, words_C, _logits(x_ND, rows_CD, bias_C)


def _softmax_sums(x_ND, rows_VD, bias_V):
    """(the largest logit, the sum of the exponentials of the logits minus it), float32 [N]."""
    num_targets = x_ND.shape[0]

    def add_chunk(carry, i):
        running_max, total = carry
        _, _, _, logits_NC = _chunk(i, x_ND, rows_VD, bias_V)
        new_max = jnp.maximum(running_max, jnp.max(logits_NC, axis=-1))
        total = total * jnp.exp(running_max - new_max) + jnp.sum(
            jnp.exp(logits_NC - new_max[:, None]), axis=-1
        )
        return (new_max, total), None

    initial = (
        jnp.full(num_targets, _MASKED_LOGIT, jnp.float32),
        jnp.zeros(num_targets, jnp.float32),
    )
    num_chunks, _ = _num_chunks_and_size(rows_VD.shape[0])
    return jax.lax.scan(add_chunk, initial, jnp.arange(num_chunks))[0]


def _label_logits(x_ND, rows_VD, bias_V, labels_N):
    return bias_V[labels_N] + jnp.einsum(
        "nd,nd->n", x_ND, rows_VD[labels_N], preferred_element_type=jnp.float32
    )


def _chunked_forward(x_ND, table_VD, bias_V, labels_N):
    rows_PVD, bias_PV, first_P = _parts(table_VD.astype(x_ND.dtype), bias_V)
    if first_P is None:
        logits_max, total = _softmax_sums(x_ND, rows_PVD, bias_PV)
        label_logits = _label_logits(x_ND, rows_PVD, bias_PV, labels_N)
    else:

        def of_part(rows_VD, bias_V, first):
            words_N = labels_N - first
            is_here = (words_N >= 0) & (words_N < rows_VD.shape[0])
            label_logits = _label_logits(x_ND, rows_VD, bias_V, jnp.where(is_here, words_N, 0))
            sums = _softmax_sums(x_ND, rows_VD, bias_V)
            return *sums, jnp.where(is_here, label_logits, 0)

        max_PN, total_PN, label_logits_PN = _on_each_part(of_part)(rows_PVD, bias_PV, first_P)
        logits_max, label_logits = jnp.max(max_PN, axis=0), jnp.sum(label_logits_PN, axis=0)
        total = jnp.sum(total_PN * jnp.exp(max_PN - logits_max), axis=0)
    log_sum = nan_unless_in_range(logits_max + jnp.log(total), labels_N, table_VD.shape[0])
    return log_sum - label_logits, (x_ND, table_VD, bias_V, labels_N, log_sum)


def _chunked_backward(residuals, grad_N):
    x_ND, table_VD, bias_V, labels_N, log_sum = residuals
    rows_PVD, bias_PV, first_P = _parts(table_VD.astype(x_ND.dtype), bias_V)
    if first_P is None:
        grads = _gradients(x_ND, rows_PVD, bias_PV, labels_N, log_sum, grad_N)
    else:

        def of_part(rows_VD, bias_V, first):
            return _gradients(x_ND, rows_VD, bias_V, labels_N - first, log_sum, grad_N)

        grad_x_PND, grad_table_PVD, grad_bias_PV = _on_each_part(of_part)(
            rows_PVD, bias_PV, first_P
        )
        grads = (
            jnp.sum(grad_x_PND, axis=0),
            grad_table_PVD.reshape(-1, x_ND.shape[1]),
            grad_bias_PV.reshape(-1),
        )
    grad_x, grad_table, grad_bias = grads
    # Split as the table is, before the padding is cut off: no device then lacks a part of an axis.
    grad_table = nn.with_logical_constraint(grad_table, (None, "embedding"))
    vocab_size = bias_V.shape[0]
    return (
        grad_x.astype(x_ND.dtype),
        grad_table[:vocab_size].astype(table_VD.dtype),
        grad_bias[:vocab_size],
        None,
    )


def _gradients(x_ND, rows_VD, bias_V, labels_N, log_sum, grad_N):
    """The gradients of x, of the table and of the bias, float32."""

    def add_chunk(carry, i):
        grad_x, grad_table, grad_bias = carry
        start, rows_CD, words_C, logits_NC = _chunk(i, x_ND, rows_VD, bias_V)
        softmax = jnp.exp(logits_NC - log_sum[:, None])
        is_label = (words_C >= 0) & (words_C == labels_N[:, None])
        grad_NC = (softmax - is_label) * grad_N[:, None]
        parts = _gradients_of_logits(grad_NC, x_ND, rows_CD)

        def add_at_start(total, part):
            part = part + jax.lax.dynamic_slice_in_dim(total, start, part.shape[0])
            return jax.lax.dynamic_update_slice_in_dim(total, part, start, axis=0)

        grad_x = grad_x + parts[0]
        grad_table = add_at_start(grad_table, parts[1])
        grad_bias = add_at_start(grad_bias, parts[2])
        return (grad_x, grad_table, grad_bias), None

    zeros = [jnp.zeros(array.shape, jnp.float32) for array in (x_ND, rows_VD, bias_V)]
    num_chunks, _ = _num_chunks_and_size(rows_VD.shape[0])
    return jax.lax.scan(add_chunk, tuple(zeros), jnp.arange(num_chunks))[0]


def _parts(rows_VD, bias_V):
    """The parts of the vocabulary that different devices compute, P of them.

    Returns:
      (rows [P, V, D], bias [P, V], first words [P]) of parts of equal length, or (rows [V, D],
      bias [V], None) if the vocabulary is not split.
    """
    parts = parts_of(axes_of("logits"))
    if parts == 1:
        return _replicated(rows_VD), bias_V, None
    vocab_size, width = rows_VD.shape
    # A multiple of 128, so that the products of the last chunk are as fast as those of the others.
    length = -(-vocab_size // (128 * parts)) * 128
    missing = parts * length - vocab_size
    rows_VD = jnp.pad(rows_VD, ((0, missing), (0, 0)))
    bias_V = jnp.pad(bias_V, (0, missing), constant_values=_MASKED_LOGIT)
    rows_PVD = nn.with_logical_constraint(
        rows_VD.reshape(parts, length, width), ("logits", None, None)
    )
    return rows_PVD, bias_V.reshape(parts, length), jnp.arange(parts) * length


def _on_each_part(function):
    axes = axes_of("logits")
    return jax.vmap(function, spmd_axis_name=axes if len(axes) > 1 else axes[0])


chunked_cross_entropy.defvjp(_chunked_forward, _chunked_backward)

IMPLEMENTATIONS: dict[str, Callable[..., jax.Array]] = {
    "chunked": chunked_cross_entropy,
    "whole": whole_cross_entropy,
    "reference": reference_projected_cross_entropy,
}
