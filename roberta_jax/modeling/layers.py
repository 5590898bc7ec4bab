"""The layers that the blocks and heads are built of, and the embeddings.

Parameter names and shapes are those of Hugging Face's Flax classes; kernels are [in, out]. Every
parameter carries logical axis names, and every activation that a mesh could split is constrained
by name, so that one table of rules (see `training/partitioning.py`) decides how all of it is laid
out; without a mesh the names mean nothing.

Array names carry their shape: B inputs, L tokens an input, D hidden width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from roberta_jax.kernels.dropout import Dropout
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.execution import Execution


class Dense(nn.Module):
    """x @ kernel + bias, computed in `dtype` from float32 parameters.

    Attributes:
      features: output width.
      axes: logical names of the kernel's two axes.
      initializer_range: standard deviation of the initial kernel.
      dtype: of the product.
    """

    features: int
    axes: tuple[str, str]
    initializer_range: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param(
            "kernel",
            nn.with_logical_partitioning(nn.initializers.normal(self.initializer_range), self.axes),
            (x.shape[-1], self.features),
            jnp.float32,
        )
        bias = self.param(
            "bias",
            nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:]),
            (self.features,),
            jnp.float32,
        )
        product = jnp.einsum("...i,io->...o", x.astype(self.dtype), kernel.astype(self.dtype))
        return product + bias.astype(self.dtype)


class LayerNorm(nn.Module):
    """LayerNorm over the last axis in float32, with the variance from centred values.

    (The shortcut E[x^2] - E[x]^2 cancels badly where the mean is large.)
    """

    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = x.shape[-1:]
        scale = self.param(
            "scale",
            nn.with_logical_partitioning(nn.initializers.ones, ("norm",)),
            shape,
            jnp.float32,
        )
        bias = self.param(
            "bias",
            nn.with_logical_partitioning(nn.initializers.zeros, ("norm",)),
            shape,
            jnp.float32,
        )
        x = x.astype(jnp.float32)
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        return (centred * jax.lax.rsqrt(variance + self.epsilon) * scale + bias).astype(self.dtype)


class Embedding(nn.Module):
    """A table of vectors, looked up by id; see `lookup` for what differs from `nn.Embed`.

    Attributes:
      num_embeddings, features: the table's shape.
      rows_axis: logical name of its first axis.
      initializer_range: standard deviation of the initial table.
      dtype: of the vectors given.
      padding_row: a row that starts at zero and gets no gradient from look-ups, as torch's
        `padding_idx` does; None for no such row.
    """

    num_embeddings: int
    features: int
    rows_axis: str
    initializer_range: float
    dtype: jnp.dtype
    padding_row: int | None = None

    def setup(self):
        def initialize(key, shape, dtype):
            table = nn.initializers.normal(self.initializer_range)(key, shape, dtype)
            return table if self.padding_row is None else table.at[self.padding_row].set(0)

        self.embedding = self.param(
            "embedding",
            nn.with_logical_partitioning(initialize, (self.rows_axis, "embed")),
            (self.num_embeddings, self.features),
            jnp.float32,
        )

    def __call__(self, ids: jax.Array) -> jax.Array:
        return lookup(replicated(self.embedding, self.dtype), ids, self.padding_row)


def replicated(table: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The table in `dtype`, whole on every device.

    A look-up in a table split over the devices makes the partitioner rematerialise the result on
    all of them; gathering the table first, and already cast, is the cheap way.
    """
    return nn.with_logical_constraint(jnp.asarray(table, dtype), (None, None))


def lookup(table: jax.Array, ids: jax.Array, padding_row: int | None) -> jax.Array:
    """table[ids], with NaN for ids outside the table and no gradient into `padding_row`."""
    return _lookup(table, ids, padding_row)


def _take(table, ids, padding_row):
    del padding_row
    return table.at[ids].get(mode="fill", fill_value=jnp.nan)


def _take_forward(table, ids, padding_row):
    return _take(table, ids, padding_row), (table, ids)


def _take_backward(padding_row, residuals, grad):
    # Summed in float32: in bfloat16 a frequent id's many small gradients would be lost.
    table, ids = residuals
    rows = table.shape[0]
    if padding_row is not None:
        ids = jnp.where(ids == padding_row, rows, ids)
    summed = jnp.zeros(table.shape, jnp.float32).at[ids].add(grad.astype(jnp.float32), mode="drop")
    return summed.astype(table.dtype), None


_lookup = jax.custom_vjp(_take, nondiff_argnums=(2,))
_lookup.defvjp(_take_forward, _take_backward)


class Embeddings(nn.Module):
    """LayerNorm(word + token type + position), then dropout."""

    config: RobertaConfig
    execution: Execution

    def setup(self):
        config, dtype = self.config, self.execution.dtype
        width, spread = config.hidden_size, config.initializer_range
        pad = config.pad_token_id
        self.word_embeddings = Embedding(config.vocab_size, width, "vocab", spread, dtype, pad)
        self.position_embeddings = Embedding(
            config.max_position_embeddings, width, "positions", spread, dtype, pad
        )
        self.token_type_embeddings = Embedding(
            config.type_vocab_size, width, "token_types", spread, dtype
        )
        self.LayerNorm = LayerNorm(config.layer_norm_eps, dtype)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def __call__(
        self,
        input_ids: jax.Array | None,
        token_type_ids: jax.Array | None,
        position_ids: jax.Array,
        inputs_embeds: jax.Array | None,
        deterministic: bool,
    ) -> jax.Array:
        """Embeds [B, L] ids (or takes [B, L, D] word vectors) to [B, L, D]."""
        if inputs_embeds is None:
            x_BLD = self.word_embeddings(input_ids)
        else:
            x_BLD = inputs_embeds.astype(self.execution.dtype)
        if token_type_ids is None:
            token_type_ids = jnp.zeros((1, 1), jnp.int32)
        x_BLD = x_BLD + self.token_type_embeddings(token_type_ids)
        if self.config.position_embedding_type == "absolute":
            x_BLD = x_BLD + self.position_embeddings(position_ids)
        else:  # the table is there all the same, in Hugging Face's files, too
            self.position_embeddings(position_ids[:, :1])
        x_BLD = self.dropout(self.LayerNorm(x_BLD), deterministic)
        return nn.with_logical_constraint(x_BLD, ("batch", "length", None))
