"""The parts of RoBERTa: embeddings, attention, feed-forward, and the block they make.

Parameter names and shapes are those of Hugging Face's Flax classes; kernels are [in, out]. Every
parameter carries logical axis names, and every activation that a mesh could split is constrained
by name, so that one table of rules (see `training/partitioning.py`) decides how all of it is laid
out; without a mesh the names mean nothing.

Array names carry their shape: B inputs, L tokens an input, D hidden width, H heads, K head width.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from roberta_jax.modeling.attention import attend, attention_probabilities
from roberta_jax.modeling.config import Execution, RobertaConfig
from roberta_jax.modeling.dropout import Dropout, random_words


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU, x * Phi(x), as BERT and RoBERTa were trained with."""
    return x * 0.5 * (1 + jax.lax.erf(x * 0.5**0.5))


def _tanh_gelu(x):
    return jax.nn.gelu(x, approximate=True)


ACTIVATION_FUNCTIONS = {
    "gelu": gelu,
    "gelu_new": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}


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
        # A look-up in a table split over the devices makes the partitioner rematerialise it whole,
        # batch and all; gathering the (already cast) table first is the cheap way.
        table = jnp.asarray(self.embedding, self.dtype)
        table = nn.with_logical_constraint(table, (None, None))
        return lookup(table, ids, self.padding_row)


def replicated(table: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The table in `dtype`, whole on every device.

    A look-up in a table split over the devices makes the partitioner rematerialise the result on
    all of them; gathering the table first, and already cast, is the cheap way.
    """
    return nn.with_logical_constraint(table.astype(dtype), (None, None))


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
        x_BLD = x_BLD + self.position_embeddings(position_ids)
        x_BLD = self.dropout(self.LayerNorm(x_BLD), deterministic)
        return nn.with_logical_constraint(x_BLD, ("batch", "length", None))


class SelfAttention(nn.Module):
    """Projects to queries, keys and values, and attends."""

    config: RobertaConfig
    execution: Execution

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        bias: jax.Array | None,
        head_mask: jax.Array | None,
        deterministic: bool,
        output_attentions: bool,
    ) -> tuple[jax.Array, jax.Array | None]:
        config, dtype = self.config, self.execution.dtype
        projections = [
            Dense(
                config.hidden_size, ("embed", "heads"), config.initializer_range, dtype, name=name
            )
            for name in ("query", "key", "value")
        ]

        def split_heads(y_BLD):
            y_BLD = nn.with_logical_constraint(y_BLD, ("batch", "length", "heads"))
            return y_BLD.reshape(*y_BLD.shape[:-1], config.num_attention_heads, config.head_size)

        q_BLHK, k_BLHK, v_BLHK = (split_heads(project(x_BLD)) for project in projections)
        rate = 0.0 if deterministic else config.attention_probs_dropout_prob
        words = random_words(self.make_rng("dropout")) if rate else None
        context_BLHK = attend(q_BLHK, k_BLHK, v_BLHK, bias, words, rate)
        probabilities = None
        if output_attentions:
            probabilities = attention_probabilities(q_BLHK, k_BLHK, bias, words, rate)
        if head_mask is not None:
            # A factor on a head's probabilities is one on its result.
            context_BLHK = context_BLHK * head_mask[:, None].astype(dtype)
            if output_attentions:
                probabilities = probabilities * head_mask[:, None, None]
        context_BLD = context_BLHK.reshape(x_BLD.shape)
        return nn.with_logical_constraint(context_BLD, ("batch", "length", "heads")), probabilities


class Output(nn.Module):
    """The end of a sub-layer: LayerNorm(residual + dropout(dense(x)))."""

    config: RobertaConfig
    execution: Execution
    input_axis: str

    @nn.compact
    def __call__(self, x: jax.Array, residual: jax.Array, deterministic: bool) -> jax.Array:
        config, dtype = self.config, self.execution.dtype
        axes = (self.input_axis, "embed")
        x = Dense(config.hidden_size, axes, config.initializer_range, dtype, name="dense")(x)
        x = nn.with_logical_constraint(x, ("batch", "length", None))
        x = residual + Dropout(config.hidden_dropout_prob)(x, deterministic)
        x = LayerNorm(config.layer_norm_eps, dtype, name="LayerNorm")(x)
        return nn.with_logical_constraint(x, ("batch", "length", None))


class Attention(nn.Module):
    """The attention sub-layer."""

    config: RobertaConfig
    execution: Execution

    @nn.compact
    def __call__(self, x_BLD, bias, head_mask, deterministic, output_attentions):
        context, probabilities = SelfAttention(self.config, self.execution, name="self")(
            x_BLD, bias, head_mask, deterministic, output_attentions
        )
        output = Output(self.config, self.execution, "heads", name="output")
        return output(context, x_BLD, deterministic), probabilities


class Intermediate(nn.Module):
    """The first half of the feed-forward sub-layer: activation(dense(x))."""

    config: RobertaConfig
    execution: Execution

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        config = self.config
        h_BLF = Dense(
            config.intermediate_size,
            ("embed", "mlp"),
            config.initializer_range,
            self.execution.dtype,
            name="dense",
        )(x_BLD)
        h_BLF = nn.with_logical_constraint(h_BLF, ("batch", "length", "mlp"))
        return ACTIVATION_FUNCTIONS[config.hidden_act](h_BLF)


class Block(nn.Module):
    """One transformer block, LayerNorm after each sub-layer (post-LN)."""

    config: RobertaConfig
    execution: Execution

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        bias: jax.Array | None,
        head_mask: jax.Array | None,
        deterministic: bool,
        output_hidden_states: bool,
        output_attentions: bool,
    ) -> tuple[jax.Array, tuple[jax.Array | None, jax.Array | None]]:
        """Carry in and carry out, and what was asked to be kept, in the form that a scan wants."""
        if bias is not None:
            # Ties the bias to this block: XLA would else see that its broadcast to all heads is the
            # same in every iteration, and keep that, many times as large, through the whole loop.
            bias, x_BLD = jax.lax.optimization_barrier((bias, x_BLD))
        y_BLD, probabilities = Attention(self.config, self.execution, name="attention")(
            x_BLD, bias, head_mask, deterministic, output_attentions
        )
        h_BLF = Intermediate(self.config, self.execution, name="intermediate")(y_BLD)
        output = Output(self.config, self.execution, "mlp", name="output")
        y_BLD = output(h_BLF, y_BLD, deterministic)
        return y_BLD, (y_BLD if output_hidden_states else None, probabilities)


def shape_error(name: str, got: Sequence[int], wanted: str) -> ValueError:
    """The error for an argument of the wrong shape."""
    return ValueError(f"{name} has shape {tuple(got)}; it must be {wanted}")
