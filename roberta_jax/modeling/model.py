"""`RobertaModel`, the encoder with its inputs, on which every head sits.

Array names carry their shape: B inputs, L tokens an input, S tokens of another model's input, D
hidden width.
"""

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.encoder import Encoder
from roberta_jax.modeling.execution import Execution
from roberta_jax.modeling.inputs import (
    attention_mask_from,
    causal_mask,
    check_inputs,
    check_memory,
    positions_from_ids,
)
from roberta_jax.modeling.layers import Dense, Embeddings
from roberta_jax.modeling.outputs import ModelOutput


class Pooler(nn.Module):
    """tanh(dense(first token))."""

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
        return jnp.tanh(dense(x_BLD[:, 0]))


class RobertaModel(nn.Module):
    """The encoder: token ids in, one vector a token out. With `config.is_decoder` a decoder.

    Attributes:
      config: the model's shape.
      execution: how to compute it.
      add_pooling_layer: whether to add BERT's pooler, as Hugging Face's class does by default;
        masked-LM training has no use for it.
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
    ) -> ModelOutput:
        """Encodes a batch.

        An id outside its table raises ValueError where the ids can be looked at; inside `jit` they
        cannot, and such an id gives NaN.

        A decoder that is applied with a collection "cache" (see `generation.init_cache`) and
        `mutable=["cache"]` continues the input of the calls before.

        Args:
          input_ids: int [B, L]; or give `inputs_embeds`.
          attention_mask: int or bool [B, L], 0 at keys that no query may see. None lets all see
            all, padding included, as in Hugging Face's classes. With a cache as long as the cache.
          token_type_ids: int [B, L], 0 if None.
          position_ids: int [B, L]; if None, derived from the ids and the number of cached tokens
            (see `positions_from_ids`), or running from `pad_token_id + 1` with `inputs_embeds`.
          segment_ids: int [B, L], for rows that hold several inputs: tokens attend within their
            own segment alone, and 0 is padding.
          inputs_embeds: [B, L, D] vectors in place of the word table's.
          head_mask: [H] or [layers, H] factors on the heads' attention probabilities.
          deterministic: no dropout; False needs the RNG stream "dropout".
          output_hidden_states, output_attentions: what else to return.
          encoder_hidden_states: [B, S, D], what the cross-attention of a decoder attends to.
          encoder_attention_mask: int or bool [B, S], 0 where it may not.
          init_cache: make a cache that is as long as this input; for `Module.init`.

        Returns:
          A `ModelOutput`.

        Raises:
          ValueError: shapes do not fit each other or the config, or the input is too long.
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
        check_memory(config, batch, encoder_hidden_states, encoder_attention_mask)
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
        mask = attention_mask_from(attention_mask, segment_ids)
        if config.is_decoder:
            causal = causal_mask(length, cache_size or length, past_length)
            mask = causal if mask is None else mask & causal
        if config.add_cross_attention and encoder_hidden_states is None and self.is_initializing():
            encoder_hidden_states = jnp.zeros((batch, 1, config.hidden_size), x_BLD.dtype)
        output = self.encoder(
            x_BLD,
            mask,
            head_mask,
            encoder_hidden_states,
            attention_mask_from(encoder_attention_mask, None),
            deterministic,
            init_cache,
            output_hidden_states,
            output_attentions,
        )
        if not self.add_pooling_layer:
            return output
        return output.replace(pooler_output=self.pooler(output.last_hidden_state))

    def _cache(self) -> tuple[jax.Array | int, int | None]:
        """How many tokens the cache holds and how many it can hold; (0, None) without a cache."""
        found = flax.traverse_util.flatten_dict(dict(self.variables.get("cache", {})))
        if not found:
            return 0, None
        if not self.config.is_decoder:
            raise ValueError("a cache needs a decoder: set is_decoder=True in the model's config")
        # All layers are equally far; stacked ones share an array.
        index = next(leaf for path, leaf in found.items() if path[-1] == "cache_index")
        keys = next(leaf for path, leaf in found.items() if path[-1] == "cached_key")
        return index.reshape(-1)[0], keys.shape[-3]
