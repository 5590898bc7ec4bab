"""The `FlaxRoberta…` classes of transformers 4, for scripts that used them: change the import.

        from roberta_jax import FlaxRobertaForSequenceClassification

        model = FlaxRobertaForSequenceClassification.from_pretrained("roberta-base", num_labels=3)
        logits = model(**tokenizer("some text", return_tensors="np")).logits

Constructors, calls, outputs and the tree of `params` are those of transformers 4.57; the modules of
`modeling` compute. Outputs are those of transformers' Flax classes, but where these differ from its
PyTorch classes they are the latter's: `past_key_values` is used by every decoder, positions count
from `pad_token_id + 1` while generating, too, each attention probability is dropped on its own, an
input longer than the position table is an error, padding rows start at zero. Logits are float32
under any `dtype`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from roberta_jax.compat.base import FlaxRobertaPreTrainedModel
from roberta_jax.compat.config import shape_of
from roberta_jax.compat.generation import FlaxGenerationConfig, options_of
from roberta_jax.compat.outputs import (
    FlaxCausalLMOutput,
    FlaxGenerateOutput,
    FlaxModelOutput,
    FlaxQuestionAnsweringOutput,
)
from roberta_jax.modeling import generation
from roberta_jax.modeling.heads import RobertaForCausalLM as FlaxRobertaForCausalLMModule
from roberta_jax.modeling.heads import RobertaForMaskedLM as FlaxRobertaForMaskedLMModule
from roberta_jax.modeling.heads import (
    RobertaForMultipleChoice as FlaxRobertaForMultipleChoiceModule,
)
from roberta_jax.modeling.heads import (
    RobertaForQuestionAnswering as FlaxRobertaForQuestionAnsweringModule,
)
from roberta_jax.modeling.heads import (
    RobertaForSequenceClassification as FlaxRobertaForSequenceClassificationModule,
)
from roberta_jax.modeling.heads import (
    RobertaForTokenClassification as FlaxRobertaForTokenClassificationModule,
)
from roberta_jax.modeling.heads import RobertaModel as FlaxRobertaModule
from roberta_jax.modeling.inputs import positions_from_ids


class FlaxRobertaModel(FlaxRobertaPreTrainedModel):
    """The encoder and its pooler."""

    module_class = FlaxRobertaModule
    output_class = FlaxModelOutput

    def _make_module(self, gradient_checkpointing: bool) -> Any:
        return super()._make_module(gradient_checkpointing).clone(add_pooling_layer=True)


class FlaxRobertaForMaskedLM(FlaxRobertaPreTrainedModel):
    """The encoder with the masked-LM head."""

    module_class = FlaxRobertaForMaskedLMModule


class FlaxRobertaForSequenceClassification(FlaxRobertaPreTrainedModel):
    """The encoder with a classifier of inputs."""

    module_class = FlaxRobertaForSequenceClassificationModule


class FlaxRobertaForMultipleChoice(FlaxRobertaPreTrainedModel):
    """The encoder with a head that chooses between inputs."""

    module_class = FlaxRobertaForMultipleChoiceModule


class FlaxRobertaForTokenClassification(FlaxRobertaPreTrainedModel):
    """The encoder with a classifier of tokens."""

    module_class = FlaxRobertaForTokenClassificationModule


class FlaxRobertaForQuestionAnswering(FlaxRobertaPreTrainedModel):
    """The encoder with a head that finds an answer's two ends."""

    module_class = FlaxRobertaForQuestionAnsweringModule
    output_class = FlaxQuestionAnsweringOutput


class FlaxRobertaForCausalLM(FlaxRobertaPreTrainedModel):
    """The decoder with a head that predicts the next token; `is_decoder=True` in its config."""

    module_class = FlaxRobertaForCausalLMModule
    output_class = FlaxCausalLMOutput

    @classmethod
    def can_generate(cls) -> bool:
        """True."""
        return True

    def prepare_inputs_for_generation(
        self, input_ids: jax.Array, max_length: int, attention_mask: jax.Array | None = None
    ) -> dict[str, Any]:
        """What the first call of a loop of one's own takes beside `input_ids`.

        Args:
          input_ids: int [B, L], the prompts, padded on the left.
          max_length: tokens that the cache is to hold.
          attention_mask: int [B, L]; None takes all for real.

        Returns:
          `past_key_values`, `attention_mask` [B, max_length] and `position_ids` [B, L].
        """
        batch, length = input_ids.shape
        pad = shape_of(self.config).pad_token_id
        mask = jnp.ones((batch, max_length), jnp.int32)
        if attention_mask is None:
            positions = positions_from_ids(jnp.asarray(input_ids), pad)
        else:
            # A mask of 0 and 1 has the form of ids, of which 0 is padding.
            given = jnp.asarray(attention_mask, jnp.int32)
            mask = mask.at[:, :length].set(given)
            positions = positions_from_ids(given, 0) + pad
        return {
            "past_key_values": self.init_cache(batch, max_length),
            "attention_mask": mask,
            "position_ids": positions,
        }

    def update_inputs_for_generation(
        self, model_outputs: FlaxCausalLMOutput, model_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """What the next call takes, given what the last one took and returned."""
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
        """Continues prompts, greedily or by sampling; see `modeling.generation.generate`.

        Args:
          input_ids: int [B, L], padded on the left.
          generation_config: Options, ours (`FlaxGenerationConfig`) or transformers'; the model's if
            None.
          prng_key: A JAX key for sampling; that of seed 0 if None.
          trace: Not read: the loop is always compiled.
          params: Parameters; the model's own if None.
          logits_processor: Refused unless empty.
          attention_mask: int [B, L], 0 at padding; None takes pad tokens for it.
          encoder_hidden_states, encoder_attention_mask: For a model with cross-attention.
          options: Those of `FlaxGenerationConfig`, for this call.

        Returns:
          `sequences`, int32 [B, max_length]; pad tokens follow an input's end.

        Raises:
          UsageError: An option is unknown or not built (beams), or nothing is left to generate.
          ValueError: As `modeling.generation.generate`.
        """
        input_ids = jnp.asarray(input_ids, jnp.int32)
        settings = generation_config or self._generation_settings()
        length = input_ids.shape[-1]
        options["logits_processor"] = logits_processor or None
        chosen = options_of(settings, options, length, shape_of(self.config))
        sequences = generation.generate(
            self.module,
            self.params if params is None else params,
            input_ids,
            attention_mask,
            max_new_tokens=chosen.max_new_tokens,
            min_new_tokens=chosen.min_new_tokens,
            sampling=chosen.sampling,
            key=jax.random.PRNGKey(0) if prng_key is None else prng_key,
            eos_token_id=chosen.eos_token_id,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
        )
        ends = sequences[:, length:] == chosen.eos_token_id
        ended = jnp.cumsum(ends, axis=1) - ends > 0
        padded = jnp.where(ended, chosen.pad_token_id, sequences[:, length:])
        return FlaxGenerateOutput(sequences.at[:, length:].set(padded))

    def _generation_settings(self) -> FlaxGenerationConfig:
        """`generation_config`; while it is as it was made, what the model's config says now."""
        if self.generation_config == self._generation_default:
            return FlaxGenerationConfig.from_model_config(self.config)
        return self.generation_config
