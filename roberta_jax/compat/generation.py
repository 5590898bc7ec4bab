"""Text generation of the drop-in causal language model.

`modeling.generation` and `modeling.beam_search` compute the tokens; `generation_options` turns
transformers' options into their arguments.

Array names carry their shape: B batch, L prompt tokens, T tokens of prompt and continuation.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from roberta_jax.compat.config import to_roberta_config
from roberta_jax.compat.generation_config import FlaxGenerationConfig
from roberta_jax.compat.generation_options import resolve_options
from roberta_jax.compat.outputs import FlaxCausalLMOutput, FlaxGenerateOutput
from roberta_jax.modeling.beam_search import beam_search
from roberta_jax.modeling.generation import generate
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
        logits_processor: Sequence[Callable[..., jax.Array]] | None = None,
        *,
        attention_mask: jax.Array | None = None,
        encoder_hidden_states: jax.Array | None = None,
        encoder_attention_mask: jax.Array | None = None,
        **options: Any,
    ) -> FlaxGenerateOutput:
        """Continues prompts by greedy search, sampling or beam search.

        See `modeling.generation.generate` and `modeling.beam_search.beam_search`. R is the option
        `num_return_sequences`.

        Args:
          input_ids: int [B, L], the prompts, padded on the left.
          generation_config: A `FlaxGenerationConfig` or transformers' `GenerationConfig`; the
            model's own if None.
          prng_key: A JAX key for sampling; `PRNGKey(0)` if None.
          trace: False runs the loop step by step without compiling it, for debugging.
          params: The parameters; the model's own if None.
          logits_processor: Functions (int32 [B, T] sequences, [B, V] scores, number of tokens so
            far) -> [B, V] scores, such as transformers' Flax logits processors. They are applied
            after the options' rules, and before tokens are forced or sampled.
          attention_mask: int [B, L], 0 at padding; if None, pad tokens are padding.
          encoder_hidden_states: [B, S, D], for a model with cross-attention.
          encoder_attention_mask: int [B, S].
          options: Fields of `FlaxGenerationConfig` that override it in this call.

        Returns:
          An object whose `sequences`, int32 [B R, T], hold the prompts and continuations, those of
          a prompt one after the other. A sequence that has ended is filled up with pad tokens.
          After beam search it also has the sequences' `scores`.

        Raises:
          UsageError: An option is unknown or not supported, or leaves no token to generate.
          ValueError: See `modeling.generation.generate`.
        """
        input_ids = jnp.asarray(input_ids, jnp.int32)
        resolved = resolve_options(
            generation_config or self._current_generation_config(),
            options,
            input_ids.shape[-1],
            to_roberta_config(self.config),
            logits_processor or (),
        )
        params = self.params if params is None else params
        per_prompt = (input_ids, attention_mask, encoder_hidden_states, encoder_attention_mask)
        if resolved.num_samples > 1:
            per_prompt = jax.tree.map(
                lambda x: jnp.repeat(jnp.asarray(x), resolved.num_samples, axis=0), per_prompt
            )
        input_ids, attention_mask, encoder_hidden_states, encoder_attention_mask = per_prompt
        arguments = {
            "max_new_tokens": resolved.max_new_tokens,
            "min_new_tokens": resolved.min_new_tokens,
            "rules": resolved.rules,
            "eos_token_id": resolved.eos_token_id,
            "pad_token_id": resolved.pad_token_id,
            "encoder_hidden_states": encoder_hidden_states,
            "encoder_attention_mask": encoder_attention_mask,
        }
        with contextlib.nullcontext() if trace else jax.disable_jit():
            if resolved.beams is not None:
                output = beam_search(
                    self.module,
                    params,
                    input_ids,
                    attention_mask,
                    beams=resolved.beams,
                    **arguments,
                )
                return FlaxGenerateOutput(
                    output.sequences.reshape(-1, output.sequences.shape[-1]),
                    output.scores.reshape(-1),
                )
            sequences = generate(
                self.module,
                params,
                input_ids,
                attention_mask,
                sampling=resolved.sampling,
                key=jax.random.PRNGKey(0) if prng_key is None else prng_key,
                **arguments,
            )
        return FlaxGenerateOutput(sequences)

    def _current_generation_config(self) -> FlaxGenerationConfig:
        """Returns `generation_config`, or, while that is unchanged, the model config's values."""
        if self.generation_config == self._initial_generation_config:
            return FlaxGenerationConfig.from_model_config(self.config)
        return self.generation_config
