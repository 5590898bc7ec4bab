"""`RobertaModel`: embeddings and encoder, the model below every head.

Array names carry their shape: B batch, L length, S length of the cross-attention's keys, D hidden
width, H heads.
"""

from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from roberta_jax.modeling.activations import tanh
from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.encoder import Encoder
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.inputs import (
    causal_mask,
    check_encoder_states,
    check_inputs,
    positions_from_ids,
    segments_from,
)
from roberta_jax.modeling.layers import Dense, Embeddings
from roberta_jax.modeling.outputs import ModelOutput


class Pooler(nn.Module):
    """BERT's pooler: tanh(dense(first token)), [B, L, D] to [B, D]."""

    config: RobertaConfig
    execution: Execution

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        config = self.config
        dense = Dense(
            config.hidden_size,
            ("embed", "heads"),
            config.initializer_range,
            self.execution.dtype,
            name="dense",
        )
        return tanh(dense(x_BLD[:, 0]))


class ConfigModule(nn.Module):
    """Base class of the models: their `config` may be of any class that has RoBERTa's fields.

    It is stored as the frozen `RobertaConfig`, which can be hashed, as the attributes of a module
    must be; see `RobertaConfig.from_config`.
    """

    def __post_init__(self):
        config: Any = self.config  # a field of each subclass
        object.__setattr__(self, "config", RobertaConfig.from_config(config))
        super().__post_init__()


class RobertaModel(ConfigModule):
    """The model without a head: from token ids to one hidden vector per token.

    Attributes:
      config: the architecture. With `config.is_decoder` the model is a decoder.
      execution: how to compute it.
      add_pooling_layer: whether to add BERT's pooler. Hugging Face's class adds it by default;
        masked-LM training does not use it.
    """

    config: RobertaConfig
    execution: Execution = Execution()
    add_pooling_layer: bool = False

    def setup(self):
        self.embeddings = Embeddings(self.config, self.execution)
        self.encoder = Encoder(self.config, self.execution)
        if self.add_pooling_layer:
            self.pooler = Pooler(self.config, self.execution)

    def __call__(
        self,
        input_ids: jax.Array | None = None,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        inputs_embeds: jax.Array | None = None,
        head_mask: jax.Array | None = None,
        deterministic: bool = True,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        *,
        encoder_hidden_states: jax.Array | None = None,
        encoder_attention_mask: jax.Array | None = None,
        init_cache: bool = False,
        first_token_only: bool = False,
    ) -> ModelOutput:
        """Encodes a batch.

        If a decoder is applied with a "cache" collection (see `generation.init_cache`) and
        `mutable=["cache"]`, the input continues that of the previous calls.

        Args:
          input_ids: int [B, L]. Give either this or `inputs_embeds`.
          attention_mask: int or bool [B, L], 0 at keys that no query may attend to. None masks
            nothing, not even padding, as in Hugging Face's classes. With a cache, its second axis
            is the size of the cache.
          token_type_ids: int [B, L]; 0 if None.
          position_ids: int [B, L]. If None, they follow from `input_ids` and the number of cached
            tokens (see `positions_from_ids`), or count from `pad_token_id + 1` with
            `inputs_embeds`.
          segment_ids: int [B, L], for rows that hold several inputs. Tokens attend only to tokens
            with their own segment id, and 0 is padding.
          inputs_embeds: [B, L, D] vectors to use instead of word embeddings.
          head_mask: [H] or [layers, H] factors on the heads' attention probabilities.
          deterministic: True turns dropout off. False needs the RNG stream "dropout".
          output_hidden_states, output_attentions: whether to return these as well.
          encoder_hidden_states: [B, S, D], the hidden states that the cross-attention attends to.
          encoder_attention_mask: int or bool [B, S], 0 at those to ignore.
          init_cache: create a cache whose size is the length of this input; for `Module.init`.
          first_token_only: the caller reads the first token of the last hidden state alone. The
            last block then computes nothing else, and that state is [B, 1, D]; but not in a decoder
            or where hidden states or attentions are returned.

        Returns:
          A `ModelOutput`.

        Raises:
          ValueError: shapes contradict each other or the config, the input is too long, or an id is
            outside its table. Under `jit` ids cannot be checked; such an id gives NaN.
        """
        config = self.config
        past_length, cache_size = self._cache()
        check_inputs(
            config,
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            segment_ids=segment_ids,
            inputs_embeds=inputs_embeds,
            cache_size=cache_size,
        )
        batch, length = (inputs_embeds if input_ids is None else input_ids).shape[:2]
        check_encoder_states(config, batch, encoder_hidden_states, encoder_attention_mask)
        if position_ids is None:
            if input_ids is None:
                start = config.pad_token_id + 1 + past_length
                position_ids = (start + jnp.arange(length))[None]
            else:
                position_ids = positions_from_ids(
                    input_ids, config.pad_token_id, segment_ids, past_length
                )
        x_BLD = self.embeddings(
            input_ids, token_type_ids, position_ids, inputs_embeds, deterministic
        )
        mask = segments_from(attention_mask, segment_ids)
        if config.is_decoder:
            causal = causal_mask(length, cache_size or length, past_length)
            mask = causal if mask is None else mask.allowed() & causal
        if config.add_cross_attention and encoder_hidden_states is None and self.is_initializing():
            encoder_hidden_states = jnp.zeros((batch, 1, config.hidden_size), x_BLD.dtype)
        needs_all_tokens = (
            config.is_decoder
            or output_hidden_states
            or output_attentions
            or self.is_initializing()  # of parameters that have the names of the whole stack
        )
        output = self.encoder(
            x_BLD,
            mask,
            head_mask,
            encoder_hidden_states,
            segments_from(encoder_attention_mask, None),
            deterministic,
            init_cache,
            output_hidden_states,
            output_attentions,
            first_only=first_token_only and not needs_all_tokens,
        )
        if not self.add_pooling_layer:
            return output
        return output.replace(pooler_output=self.pooler(output.last_hidden_state))

    def _cache(self) -> tuple[jax.Array | int, int | None]:
        """(number of cached tokens, size of the cache), or (0, None) without a cache."""
        cache = flax.traverse_util.flatten_dict(dict(self.variables.get("cache", {})))
        if not cache:
            return 0, None
        if not self.config.is_decoder:
            raise ValueError("a cache needs a decoder: set is_decoder=True in the model's config")
        # The index is the same in all layers. With stacked layers it is an array.
        index = next(leaf for path, leaf in cache.items() if path[-1] == "cache_index")
        keys = next(leaf for path, leaf in cache.items() if path[-1] == "cached_key")
        return index.reshape(-1)[0], keys.shape[-3]
