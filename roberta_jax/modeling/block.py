"""A transformer block: self-attention, in a decoder also attention to another model, feed-forward.

Array names carry their shape: B inputs, L tokens an input, S keys, D hidden width, F feed-forward
width, H heads, K head width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from roberta_jax.kernels.attention import (
    attend,
    attention_probabilities,
    relative_attention,
    relative_bias,
)
from roberta_jax.kernels.dropout import Dropout, random_words
from roberta_jax.modeling.activations import ACTIVATIONS
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.layers import Dense, Embedding, LayerNorm


class SelfAttention(nn.Module):
    """Projects to queries, keys and values, and attends: to its own tokens or to `memory`.

    With a collection "cache" (see `generation.init_cache`) the keys and values of a call are put
    behind those of the calls before, and the queries attend to all of them.

    Attributes:
      relative: whether this attention has relative positions, if the config asks for them.
    """

    config: RobertaConfig
    execution: Execution
    relative: bool = True

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        bias: jax.Array | None,
        head_mask: jax.Array | None,
        memory_BSD: jax.Array | None,
        deterministic: bool,
        init_cache: bool,
        output_attentions: bool,
    ) -> tuple[jax.Array, jax.Array | None]:
        config, dtype = self.config, self.execution.dtype
        query, key, value = (
            Dense(
                config.hidden_size, ("embed", "heads"), config.initializer_range, dtype, name=name
            )
            for name in ("query", "key", "value")
        )

        def split_heads(y_BLD):
            y_BLD = nn.with_logical_constraint(y_BLD, ("batch", "length", "heads"))
            return y_BLD.reshape(*y_BLD.shape[:-1], config.num_attention_heads, config.head_size)

        source_BSD = x_BLD if memory_BSD is None else memory_BSD
        q_BLHK = split_heads(query(x_BLD))
        k_BSHK, v_BSHK = split_heads(key(source_BSD)), split_heads(value(source_BSD))
        start = 0
        if memory_BSD is None and (init_cache or self.has_variable("cache", "cached_key")):
            k_BSHK, v_BSHK, start = self._remember(k_BSHK, v_BSHK)
        rate = 0.0 if deterministic else config.attention_probs_dropout_prob
        words = random_words(self.make_rng("dropout")) if rate else None

        if self.relative and config.position_embedding_type != "absolute":
            added = self._relative_bias(q_BLHK, k_BSHK, start)
            context_BLHK, probabilities = relative_attention(
                q_BLHK, k_BSHK, v_BSHK, added, bias, words, rate
            )
        else:
            context_BLHK = attend(q_BLHK, k_BSHK, v_BSHK, bias, words, rate)
            probabilities = None
            if output_attentions:
                probabilities = attention_probabilities(q_BLHK, k_BSHK, bias, words, rate)
        if head_mask is not None:
            # A factor on a head's probabilities is one on its result.
            context_BLHK = context_BLHK * head_mask[:, None].astype(dtype)
            if output_attentions:
                probabilities = probabilities * head_mask[:, None, None]
        context_BLD = context_BLHK.reshape(x_BLD.shape)
        context_BLD = nn.with_logical_constraint(context_BLD, ("batch", "length", "heads"))
        return context_BLD, (probabilities if output_attentions else None)

    def _remember(self, k_BSHK, v_BSHK):
        """Writes to the cache; returns all of its keys and values, and how many were there before.

        The call that makes the cache fixes its size by its own length, and leaves it empty.
        """
        made = self.has_variable("cache", "cached_key")
        keys = self.variable("cache", "cached_key", jnp.zeros, k_BSHK.shape, k_BSHK.dtype)
        values = self.variable("cache", "cached_value", jnp.zeros, v_BSHK.shape, v_BSHK.dtype)
        index = self.variable("cache", "cache_index", lambda: jnp.zeros([], jnp.int32))
        if not made:
            return k_BSHK, v_BSHK, 0
        start = index.value
        place = (0, start, 0, 0)
        keys.value = jax.lax.dynamic_update_slice(
            keys.value, k_BSHK.astype(keys.value.dtype), place
        )
        values.value = jax.lax.dynamic_update_slice(
            values.value, v_BSHK.astype(values.value.dtype), place
        )
        index.value = start + k_BSHK.shape[1]
        return keys.value, values.value, start

    def _relative_bias(self, q_BLHK, k_BSHK, start):
        config = self.config
        most = config.max_position_embeddings
        table = Embedding(
            2 * most - 1,
            config.head_size,
            "positions",
            config.initializer_range,
            self.execution.dtype,
            name="distance_embedding",
        )
        distances_LS = (start + jnp.arange(q_BLHK.shape[1]))[:, None] - jnp.arange(k_BSHK.shape[1])
        # A cache may hold more places than there are positions; those are masked.
        distances_LS = jnp.clip(distances_LS, 1 - most, most - 1)
        vectors_LSK = table(distances_LS + most - 1)
        of_keys = config.position_embedding_type == "relative_key_query"
        return relative_bias(q_BLHK, k_BSHK if of_keys else None, vectors_LSK)


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
    """An attention sub-layer; `relative` as in `SelfAttention`."""

    config: RobertaConfig
    execution: Execution
    relative: bool = True

    @nn.compact
    def __call__(
        self, x_BLD, bias, head_mask, memory_BSD, deterministic, init_cache, output_attentions
    ):
        attention = SelfAttention(self.config, self.execution, self.relative, name="self")
        context, probabilities = attention(
            x_BLD, bias, head_mask, memory_BSD, deterministic, init_cache, output_attentions
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
        return ACTIVATIONS[config.hidden_act](h_BLF)


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
        memory_BSD: jax.Array | None,
        memory_bias: jax.Array | None,
        deterministic: bool,
        init_cache: bool,
        output_hidden_states: bool,
        output_attentions: bool,
    ) -> tuple[jax.Array, tuple[jax.Array | None, jax.Array | None, jax.Array | None]]:
        """Carry in and carry out, and what was asked to be kept, in the form that a scan wants."""
        # Ties the biases to this block: XLA would else see that their broadcast to all heads is the
        # same in every iteration, and keep that, many times as large, through the whole loop.
        if bias is not None:
            bias, x_BLD = jax.lax.optimization_barrier((bias, x_BLD))
        if memory_bias is not None:
            memory_bias, x_BLD = jax.lax.optimization_barrier((memory_bias, x_BLD))
        y_BLD, probabilities = Attention(self.config, self.execution, name="attention")(
            x_BLD, bias, head_mask, None, deterministic, init_cache, output_attentions
        )
        crossed = None
        if self.config.add_cross_attention and memory_BSD is not None:
            # To another model's tokens there is no distance.
            cross = Attention(self.config, self.execution, relative=False, name="crossattention")
            y_BLD, crossed = cross(
                y_BLD, memory_bias, head_mask, memory_BSD, deterministic, False, output_attentions
            )
        h_BLF = Intermediate(self.config, self.execution, name="intermediate")(y_BLD)
        output = Output(self.config, self.execution, "mlp", name="output")
        y_BLD = output(h_BLF, y_BLD, deterministic)
        return y_BLD, (y_BLD if output_hidden_states else None, probabilities, crossed)
