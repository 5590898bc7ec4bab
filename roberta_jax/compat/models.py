"""Drop-in replacements for the `FlaxRoberta…` classes of transformers 4.

A script that used transformers' classes only needs another import:

        from roberta_jax import FlaxRobertaForSequenceClassification

        model = FlaxRobertaForSequenceClassification.from_pretrained("roberta-base", num_labels=3)
        logits = model(**tokenizer("some text", return_tensors="np")).logits

Constructors, calls, outputs and the tree of `params` are those of transformers 4.57. The linen
modules are those of `roberta_jax.modeling`.

Where transformers' Flax classes and its PyTorch classes disagree, these classes follow PyTorch:

* Every decoder uses `past_key_values`, also without cross-attention.
* Positions start at `pad_token_id + 1` during generation, too, as in PyTorch's forward pass. Only
  PyTorch's `generate` starts at 0.
* Beam search only counts continuations among the best `num_beams` as finished, and those that
  reach the maximum length, and applies the length penalty to all of them.
* Attention dropout is drawn separately for each input and head.
* An input longer than the position table raises an error.
* The embedding rows of the padding token are initialized to zero.

Logits are float32 for any `dtype`.
"""

from typing import Any

from roberta_jax.compat.base import FlaxRobertaPreTrainedModel
from roberta_jax.compat.generation import FlaxGenerationMixin
from roberta_jax.compat.outputs import (
    FlaxCausalLMOutput,
    FlaxModelOutput,
    FlaxQuestionAnsweringOutput,
)
from roberta_jax.modeling import heads

# transformers' names of the linen modules.
FlaxRobertaModule = heads.RobertaModel
FlaxRobertaForMaskedLMModule = heads.RobertaForMaskedLM
FlaxRobertaForCausalLMModule = heads.RobertaForCausalLM
FlaxRobertaForSequenceClassificationModule = heads.RobertaForSequenceClassification
FlaxRobertaForTokenClassificationModule = heads.RobertaForTokenClassification
FlaxRobertaForMultipleChoiceModule = heads.RobertaForMultipleChoice
FlaxRobertaForQuestionAnsweringModule = heads.RobertaForQuestionAnswering


class FlaxRobertaModel(FlaxRobertaPreTrainedModel):
    """The encoder with a pooler and no head."""

    module_class = FlaxRobertaModule
    output_class = FlaxModelOutput

    def _build_module(self, gradient_checkpointing: bool) -> Any:
        return super()._build_module(gradient_checkpointing).clone(add_pooling_layer=True)


class FlaxRobertaForMaskedLM(FlaxRobertaPreTrainedModel):
    """The encoder with a masked-LM head."""

    module_class = FlaxRobertaForMaskedLMModule


class FlaxRobertaForCausalLM(FlaxGenerationMixin, FlaxRobertaPreTrainedModel):
    """The decoder with a next-token head; the config must have `is_decoder=True` to generate."""

    module_class = FlaxRobertaForCausalLMModule
    output_class = FlaxCausalLMOutput


class FlaxRobertaForSequenceClassification(FlaxRobertaPreTrainedModel):
    """The encoder with a classification or regression head over the whole input."""

    module_class = FlaxRobertaForSequenceClassificationModule


class FlaxRobertaForTokenClassification(FlaxRobertaPreTrainedModel):
    """The encoder with a classification head for each token."""

    module_class = FlaxRobertaForTokenClassificationModule


class FlaxRobertaForMultipleChoice(FlaxRobertaPreTrainedModel):
    """The encoder with a head that scores each choice of a question."""

    module_class = FlaxRobertaForMultipleChoiceModule


class FlaxRobertaForQuestionAnswering(FlaxRobertaPreTrainedModel):
    """The encoder with a head that predicts the start and end of an answer span."""

    module_class = FlaxRobertaForQuestionAnsweringModule
    output_class = FlaxQuestionAnsweringOutput
