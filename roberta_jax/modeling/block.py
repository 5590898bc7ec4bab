"""A transformer block: self-attention, optional cross-attention (in a decoder), feed-forward.

Array names carry their shape: B batch, L length of the queries, S length of the keys, D hidden
width, F feed-forward width, H heads, K head width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from roberta_jax.kernels import layer_norm
from roberta_jax.kernels.attention import (
    attention_probabilities,
    dot_product_attention,
    relative_bias,
)
from roberta_jax.kernels.dropout import seed_from_key
from roberta_jax.kernels.masks import Mask, bias_of, of_first_query
from roberta_jax.modeling.activations import ACTIVATIONS
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.layers import Dense, Dropout, Embedding, LayerNorm, add


class SelfAttention(nn.Module):
    """Multi-head attention without the output projection.

    Queries come from `x_BLD`. Keys and values come from `encoder_states_BSD` if it is given
    (cross-attention), else from `x_BLD`.

    With a "cache" collection (see `generation.init_cache`) each call appends its keys and values to
    those of the previous calls, and the queries attend to all of them.

    Attributes:
      relative: whether to use the relative positions of `config.position_embedding_type`.
    """

    config: RobertaConfig
    execution: Execution
    relative: bool = True

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        mask: Mask,
        head_mask: jax.Array | None,
        encoder_states_BSD: jax.Array | None,
        deterministic: bool,
        init_cache: bool,
        output_attentions: bool,
        first_only: bool = False,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Returns ([B, L, D], the attention probabilities [B, H, L, S] or None).

        With `first_only`, L is 1: the first token alone attends to the keys.
        """
        config, execution = self.config, self.execution
        query, key, value = (
            Dense(
                config.hidden_size,
                ("embed", "heads"),
                config.initializer_range,
                execution.dtype,
                name=name,
            )
            for name in ("query", "key", "value")
        )

        def split_heads(y_BLD):
            y_BLD = nn.with_logical_constraint(y_BLD, ("batch", "length", "heads"))
            return y_BLD.reshape(*y_BLD.shape[:-1], config.num_attention_heads, config.head_size)

        source_BSD = x_BLD if encoder_states_BSD is None else encoder_states_BSD
        if first_only:
            x_BLD = x_BLD[:, :1]
            mask = of_first_query(mask)
        q_BLHK = split_heads(query(x_BLD))
        k_BSHK, v_BSHK = split_heads(key(source_BSD)), split_heads(value(source_BSD))
        past_length = 0
        is_cached = init_cache or self.has_variable("cache", "cached_key")
        if encoder_states_BSD is None and is_cached:
            k_BSHK, v_BSHK, past_length = self._update_cache(k_BSHK, v_BSHK)
        dropout_rate = 0.0 if deterministic else config.attention_probs_dropout_prob
        dropout_seed = seed_from_key(self.make_rng("dropout")) if dropout_rate else None

        implementation = execution.attention
        if self.relative and config.position_embedding_type != "absolute":
            position_bias = self._relative_bias(q_BLHK, k_BSHK, past_length)
            mask = position_bias if mask is None else position_bias + bias_of(mask)
            implementation = "reference"  # the only one that computes the gradient of the bias
        context_BLHK = dot_product_attention(
            q_BLHK, k_BSHK, v_BSHK, mask, dropout_seed, dropout_rate, implementation
        )
        probabilities = None
        if output_attentions:
            probabilities = attention_probabilities(
                q_BLHK, k_BSHK, mask, dropout_seed, dropout_rate
            )
        if head_mask is not None:
            # Scaling a head's output is the same as scaling its probabilities.
            # In float32, in which the gradient of the mask is then summed.
            context_BLHK = (context_BLHK * head_mask[:, None].astype(jnp.float32)).astype(
                execution.dtype
            )
            if output_attentions:
                probabilities = probabilities * head_mask[:, None, None]
        context_BLD = context_BLHK.reshape(x_BLD.shape)
        context_BLD = nn.with_logical_constraint(context_BLD, ("batch", "length", "heads"))
        return context_BLD, probabilities

    def _update_cache(self, k_BSHK, v_BSHK):
        """Appends to the cache: (all keys, all values, number of tokens cached before).

        The call that creates the cache leaves it empty; the length of its input is the cache's
        size.
        """
        is_initialized = self.has_variable("cache", "cached_key")
        cached_key = self.variable("cache", "cached_key", jnp.zeros, k_BSHK.shape, k_BSHK.dtype)
        cached_value = self.variable("cache", "cached_value", jnp.zeros, v_BSHK.shape, v_BSHK.dtype)
        cache_index = self.variable("cache", "cache_index", lambda: jnp.zeros([], jnp.int32))
        if not is_initialized:
            return k_BSHK, v_BSHK, 0
        past_length = cache_index.value
        for cached, new in ((cached_key, k_BSHK), (cached_value, v_BSHK)):
            cached.value = jax.lax.dynamic_update_slice(
                cached.value, new.astype(cached.value.dtype), (0, past_length, 0, 0)
            )
        cache_index.value = past_length + k_BSHK.shape[1]
        return cached_key.value, cached_value.value, past_length

    def _relative_bias(self, q_BLHK, k_BSHK, past_length):
        config = self.config
        max_positions = config.max_position_embeddings
        table = Embedding(
            2 * max_positions - 1,
            config.head_size,
            "positions",
            config.initializer_range,
            self.execution.dtype,
            name="distance_embedding",
        )
        query_positions_L = past_length + jnp.arange(q_BLHK.shape[1])
        distances_LS = query_positions_L[:, None] - jnp.arange(k_BSHK.shape[1])
        # A cache can be longer than the number of positions. The keys beyond it are masked.
        distances_LS = jnp.clip(distances_LS, 1 - max_positions, max_positions - 1)
        vectors_LSK = table(distances_LS + max_positions - 1)
        use_keys = config.position_embedding_type == "relative_key_query"
        return relative_bias(q_BLHK, k_BSHK if use_keys else None, vectors_LSK)


class Output(nn.Module):
    """The end of a sub-layer: LayerNorm(residual + dropout(dense(x)))."""

    config: RobertaConfig
    execution: Execution
    input_axis: str

    @nn.compact
    def __call__(self, x: jax.Array, residual: jax.Array, deterministic: bool) -> jax.Array:
        config, dtype = self.config, self.execution.dtype
        axes = (self.input_axis, "embed")
        dense = Dense(config.hidden_size, axes, config.initializer_range, dtype, name="dense")
        dropout = Dropout(config.hidden_dropout_prob)
        norm = LayerNorm(config.layer_norm_eps, dtype, name="LayerNorm")

        def constrained(x):
            return nn.with_logical_constraint(x, ("batch", "length", None))

        kind = layer_norm.of_platform(self.execution.layer_norm, residual)
        if not layer_norm.is_fused(kind):
            x = constrained(dense(x))
            return constrained(norm(add(residual, dropout(x, deterministic))))
        x, bias = dense.without_bias(x)
        seed, rate = dropout.seed_and_rate(deterministic)
        x = layer_norm.residual_layer_norm(
            constrained(x),
            bias,
            residual,
            *norm.parameters(config.hidden_size),
            epsilon=config.layer_norm_eps,
            kind=kind,
            dropout_seed=seed,
            dropout_rate=rate,
        )
        return constrained(x)


class Attention(nn.Module):
    """The attention sub-layer: `SelfAttention`, then `Output`. `relative` is as in the first."""

    config: RobertaConfig
    execution: Execution
    relative: bool = True

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        mask: Mask,
        head_mask: jax.Array | None,
        encoder_states_BSD: jax.Array | None,
        deterministic: bool,
        init_cache: bool,
        output_attentions: bool,
        first_only: bool = False,
    ) -> tuple[jax.Array, jax.Array | None]:
        attention = SelfAttention(self.config, self.execution, self.relative, name="self")
        context, probabilities = attention(
            x_BLD,
            mask,
            head_mask,
            encoder_states_BSD,
            deterministic,
            init_cache,
            output_attentions,
            first_only,
        )
        output = Output(self.config, self.execution, "heads", name="output")
        residual = x_BLD[:, :1] if first_only else x_BLD
        return output(context, residual, deterministic), probabilities


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
    """One transformer block, with LayerNorm after each sub-layer (post-LN)."""

    config: RobertaConfig
    execution: Execution

    @nn.compact
    def __call__(
        self,
        x_BLD: jax.Array,
        mask: Mask,
        head_mask: jax.Array | None,
        encoder_states_BSD: jax.Array | None,
        encoder_mask: Mask,
        deterministic: bool,
        init_cache: bool,
        output_hidden_states: bool,
        output_attentions: bool,
        first_only: bool = False,
    ) -> tuple[jax.Array, tuple[jax.Array | None, jax.Array | None, jax.Array | None]]:
        """Applies the block to the carry of `nn.scan`.

        Returns:
          (output [B, L, D], (output again, attention probabilities, cross-attention
          probabilities)). Members of the inner tuple that were not requested are None. With
          `first_only`, the output is that of the first token, [B, 1, D].
        """
        # Ties the masks to this block. Their broadcast to all heads is the same in every iteration
        # of the scan; XLA would otherwise hoist it out and keep the large result for all layers.
        if mask is not None:
            mask, x_BLD = jax.lax.optimization_barrier((mask, x_BLD))
        if encoder_mask is not None:
            encoder_mask, x_BLD = jax.lax.optimization_barrier((encoder_mask, x_BLD))
        y_BLD, probabilities = Attention(self.config, self.execution, name="attention")(
            x_BLD, mask, head_mask, None, deterministic, init_cache, output_attentions, first_only
        )
        cross_probabilities = None
        if self.config.add_cross_attention and encoder_states_BSD is not None:
            # There are no distances between the tokens of different inputs.
            cross_attention = Attention(
                self.config, self.execution, relative=False, name="crossattention"
            )
            y_BLD, cross_probabilities = cross_attention(
                y_BLD,
                encoder_mask,
                head_mask,
                encoder_states_BSD,
                deterministic,
                False,
                output_attentions,
            )
        h_BLF = Intermediate(self.config, self.execution, name="intermediate")(y_BLD)
        output = Output(self.config, self.execution, "mlp", name="output")
        y_BLD = output(h_BLF, y_BLD, deterministic)
        hidden_state = y_BLD if output_hidden_states else None
        return y_BLD, (hidden_state, probabilities, cross_probabilities)
