"""Drop-in replacements for the `FlaxXLMRoberta…` classes of transformers 4.

XLM-R has RoBERTa's architecture: these are the classes of `models` with another config class.
"""

from roberta_jax.compat import models
from roberta_jax.compat.base import FlaxRobertaPreTrainedModel
from roberta_jax.compat.config import XLMRobertaConfig

# transformers' names of the linen modules.
FlaxXLMRobertaModule = models.FlaxRobertaModule
FlaxXLMRobertaForMaskedLMModule = models.FlaxRobertaForMaskedLMModule
FlaxXLMRobertaForCausalLMModule = models.FlaxRobertaForCausalLMModule
FlaxXLMRobertaForSequenceClassificationModule = models.FlaxRobertaForSequenceClassificationModule
FlaxXLMRobertaForTokenClassificationModule = models.FlaxRobertaForTokenClassificationModule
FlaxXLMRobertaForMultipleChoiceModule = models.FlaxRobertaForMultipleChoiceModule
FlaxXLMRobertaForQuestionAnsweringModule = models.FlaxRobertaForQuestionAnsweringModule


class FlaxXLMRobertaPreTrainedModel(FlaxRobertaPreTrainedModel):
    """The base class; see `FlaxRobertaPreTrainedModel`."""

    config_class = XLMRobertaConfig


class FlaxXLMRobertaModel(models.FlaxRobertaModel, FlaxXLMRobertaPreTrainedModel):
    """The encoder with a pooler and no head."""


class FlaxXLMRobertaForMaskedLM(models.FlaxRobertaForMaskedLM, FlaxXLMRobertaPreTrainedModel):
    """The encoder with a masked-LM head."""


class FlaxXLMRobertaForCausalLM(models.FlaxRobertaForCausalLM, FlaxXLMRobertaPreTrainedModel):
    """The decoder with a next-token head."""


class FlaxXLMRobertaForSequenceClassification(
    models.FlaxRobertaForSequenceClassification, FlaxXLMRobertaPreTrainedModel
):
    """The encoder with a classification or regression head over the whole input."""


class FlaxXLMRobertaForTokenClassification(
    models.FlaxRobertaForTokenClassification, FlaxXLMRobertaPreTrainedModel
):
    """The encoder with a classification head for each token."""


class FlaxXLMRobertaForMultipleChoice(
    models.FlaxRobertaForMultipleChoice, FlaxXLMRobertaPreTrainedModel
):
    """The encoder with a head that scores each choice of a question."""


class FlaxXLMRobertaForQuestionAnswering(
    models.FlaxRobertaForQuestionAnswering, FlaxXLMRobertaPreTrainedModel
):
    """The encoder with a head that predicts the start and end of an answer span."""
