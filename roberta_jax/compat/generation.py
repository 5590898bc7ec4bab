"""Text generation of the drop-in causal language model.

`modeling.generation` computes the tokens; `generation_config` resolves transformers' options.

Array names carry their shape: B batch, L prompt tokens, T tokens of prompt and continuation.
"""

from typing import Any

import jax
import jax.numpy as jnp

from roberta_jax.compat.config import to_roberta_config
from roberta_jax.compat.generation_config import FlaxGenerationConfig, resolve_options
from roberta_jax.compat.outputs import FlaxCausalLMOutput, FlaxGenerateOutput
from roberta_jax.modeling import generation
from roberta_jax.modeling.inputs import positions_from_ids


class FlaxGenerationMixin:
    """Adds `generate` to `FlaxRobertaPreTrainedModel`; list it before that class.

    It uses the model's `config`, `module`, `params`, `generation_config` and `init_cache`.
    """

    @classmethod
    def can_generate(cls) -> bool:
        """Returns whether the class implements `generate`: True."""
        return True

    def prepare_inputs_for_generation(
        self, input_ids: jax.Array, max_length: int, attention_mask: jax.Array | None = None
    ) -> dict[str, Any]:
        """Returns the inputs of the first call of a hand-written generation loop.

        They are passed to the model along with `input_ids`; `update_inputs_for_generation` gives
        those of each later call.

        Args:
          input_ids: int [B, L], the prompts, padded on the left.
          max_length: Length T of the cache: tokens of the prompt and the continuation.
          attention_mask: int [B, L], 0 at padding. If None, positions are counted from the tokens
            that are not padding, and nothing is masked.

        Returns:
          `past_key_values`, `attention_mask` [B, T] and `position_ids` [B, L].
        """
        batch_size, length = input_ids.shape
        pad_token_id = to_roberta_config(self.config).pad_token_id
        mask_BT = jnp.ones((batch_size, max_length), jnp.int32)
        if attention_mask is None:
            position_ids = positions_from_ids(jnp.asarray(input_ids), pad_token_id)
        else:
            mask_BL = jnp.asarray(attention_mask, jnp.int32)
            mask_BT = mask_BT.at[:, :length].set(mask_BL)
            # Positions are counted over the entries that are not the padding id, here 0.
            position_ids = positions_from_ids(mask_BL, 0) + pad_token_id
        return {
            "past_key_values": self.init_cache(batch_size, max_length),
            "attention_mask": mask_BT,
            "position_ids": position_ids,
        }

    def update_inputs_for_generation(
        self, model_outputs: FlaxCausalLMOutput, model_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Returns the inputs of the next call, from the outputs and inputs of the last one."""
        return model_kwargs | {
            "past_key_values": model_outputs.past_key_values,
            "position_ids": model_kwargs["position_ids"][:, -1:] + 1,
        }

    def generate(
        self,
        input_ids: jax.Array,
        generation_config: Any = None,
        prng_key: jax.Array | None = None,
        trace: bool = True,
        params: Any = None,
        logits_processor: Any = None,
        *,
        attention_mask: jax.Array | None = None,
        encoder_hidden_states: jax.Array | None = None,
        encoder_attention_mask: jax.Array | None = None,
        **options: Any,
    ) -> FlaxGenerateOutput:
        """Continues prompts by greedy search or sampling; see `modeling.generation.generate`.

        Args:
          input_ids: int [B, L], the prompts, padded on the left.
          generation_config: A `FlaxGenerationConfig` or transformers' `GenerationConfig`; the
            model's own if None.
          prng_key: A JAX key for sampling; `PRNGKey(0)` if None.
          trace: Ignored; the loop is always compiled.
          params: The parameters; the model's own if None.
          logits_processor: Not supported; must be None or empty.
          attention_mask: int [B, L], 0 at padding; if None, pad tokens are padding.
          encoder_hidden_states: [B, S, D], for a model with cross-attention.
          encoder_attention_mask: int [B, S].
          options: Fields of `FlaxGenerationConfig` that override it in this call.

        Returns:
          An object whose `sequences`, int32 [B, T], hold the prompts and continuations. A
          sequence that has ended is filled up with pad tokens.

        Raises:
          UsageError: An option is unknown or not supported (beam search, for example), or
            `max_length` leaves no token to generate.
          ValueError: See `modeling.generation.generate`.
        """
        input_ids = jnp.asarray(input_ids, jnp.int32)
        prompt_length = input_ids.shape[-1]
        options["logits_processor"] = logits_processor or None
        resolved = resolve_options(
            generation_config or self._current_generation_config(),
            options,
            prompt_length,
            to_roberta_config(self.config),
        )
        sequences = generation.generate(
            self.module,
            self.params if params is None else params,
            input_ids,
            attention_mask,
            max_new_tokens=resolved.max_new_tokens,
            min_new_tokens=resolved.min_new_tokens,
            sampling=resolved.sampling,
            key=jax.random.PRNGKey(0) if prng_key is None else prng_key,
            eos_token_id=resolved.eos_token_id,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
        )
        continuation = sequences[:, prompt_length:]
        is_eos = continuation == resolved.eos_token_id
        is_after_eos = jnp.cumsum(is_eos, axis=1) - is_eos > 0
        continuation = jnp.where(is_after_eos, resolved.pad_token_id, continuation)
        return FlaxGenerateOutput(sequences.at[:, prompt_length:].set(continuation))

    def _current_generation_config(self) -> FlaxGenerationConfig:
        """Returns `generation_config`, or, while that is unchanged, the model config's values."""
        if self.generation_config == self._initial_generation_config:
            return FlaxGenerationConfig.from_model_config(self.config)
        return self.generation_config
