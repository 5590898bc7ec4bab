"""transformers' `AutoConfig` and `FlaxAutoModel…` for RoBERTa and the models that share its shape.

The class is chosen by the config's `model_type`: "roberta", "xlm-roberta" or "camembert". For
CamemBERT, whose Flax classes transformers lacks, it is RoBERTa's.
"""

import os
from typing import Any, ClassVar

from roberta_jax.compat import models, xlm_roberta
from roberta_jax.compat.base import FlaxRobertaPreTrainedModel
from roberta_jax.compat.config import (
    CONFIG_CLASSES,
    CamembertConfig,
    RobertaConfig,
    XLMRobertaConfig,
    to_mutable_config,
)
from roberta_jax.errors import NotFoundError, UsageError
from roberta_jax.modeling.config import check_model_type
from roberta_jax.storage import hub

ModelMapping = dict[type[RobertaConfig], type[FlaxRobertaPreTrainedModel]]

CONFIG_MAPPING = dict(CONFIG_CLASSES)


class AutoConfig:
    """Creates the config of the class that `model_type` names."""

    def __init__(self, *args: Any, **kwargs: Any):
        raise TypeError("AutoConfig is not created itself; use AutoConfig.from_pretrained(PATH)")

    @classmethod
    def for_model(cls, model_type: str, *args: Any, **kwargs: Any) -> RobertaConfig:
        """Creates a config by its `model_type`; takes the arguments of its class.

        Raises:
          ValueError: The architecture is not RoBERTa's.
        """
        check_model_type(model_type)
        return CONFIG_CLASSES[model_type](*args, **kwargs)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> Any:
        """Reads a model's `config.json`; see `RobertaConfig.from_pretrained`."""
        path = pretrained_model_name_or_path
        config_dict, _ = RobertaConfig.get_config_dict(path, **kwargs)
        # Without a `model_type` the file is RoBERTa's, as for all readers of this package.
        config_class = CONFIG_CLASSES.get(config_dict.get("model_type"), RobertaConfig)
        return config_class.from_pretrained(path, **kwargs)


class _AutoModel:
    """The base of the `FlaxAutoModel…` classes, which set `_model_mapping`."""

    _model_mapping: ClassVar[ModelMapping] = {}

    def __init__(self, *args: Any, **kwargs: Any):
        name = type(self).__name__
        raise TypeError(
            f"{name} is not created itself; use {name}.from_pretrained(PATH) or "
            f"{name}.from_config(config)"
        )

    @classmethod
    def _class_for(cls, config: Any) -> type[FlaxRobertaPreTrainedModel]:
        if not isinstance(config, RobertaConfig):
            config = to_mutable_config(config)
        check_model_type(config.model_type)
        return cls._model_mapping[CONFIG_CLASSES[config.model_type]]

    @classmethod
    def from_config(cls, config: Any, **kwargs: Any) -> FlaxRobertaPreTrainedModel:
        """Creates a model with random parameters.

        Args:
          config: A config; its `model_type` decides the class.
          kwargs: Arguments of the class; `trust_remote_code` has no effect.

        Raises:
          ValueError: The architecture is not RoBERTa's.
        """
        return cls._class_for(config).from_config(config, **kwargs)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *model_args: Any,
        config: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Loads a model with the class that its `config.json` asks for.

        Takes the arguments of `FlaxRobertaForMaskedLM.from_pretrained`, which see.
        """
        path = pretrained_model_name_or_path
        loading = {name: kwargs[name] for name in hub.LOADING_KEYWORDS.intersection(kwargs)}
        loading.pop("return_unused_kwargs", None)
        if config is not None and not isinstance(config, str | os.PathLike):
            model_class = cls._class_for(config)
        else:
            try:
                config_dict, _ = RobertaConfig.get_config_dict(config or path, **loading)
            except NotFoundError:  # the model's class says whether anything is missing
                config_dict = {}
            try:
                model_class = cls._class_for(
                    AutoConfig.for_model(config_dict.get("model_type", "roberta"))
                )
            except ValueError as error:
                raise UsageError(f"cannot use {path}: {error}") from None
        return model_class.from_pretrained(path, *model_args, config=config, **kwargs)


def _mapping(head: str) -> ModelMapping:
    """Returns the mapping of the classes whose names end in `head`."""
    roberta = getattr(models, f"FlaxRoberta{head}")
    xlm = getattr(xlm_roberta, f"FlaxXLMRoberta{head}")
    return {RobertaConfig: roberta, XLMRobertaConfig: xlm, CamembertConfig: roberta}


FLAX_MODEL_MAPPING = _mapping("Model")
FLAX_MODEL_FOR_MASKED_LM_MAPPING = _mapping("ForMaskedLM")
FLAX_MODEL_FOR_CAUSAL_LM_MAPPING = _mapping("ForCausalLM")
FLAX_MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING = _mapping("ForSequenceClassification")
FLAX_MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING = _mapping("ForTokenClassification")
FLAX_MODEL_FOR_MULTIPLE_CHOICE_MAPPING = _mapping("ForMultipleChoice")
FLAX_MODEL_FOR_QUESTION_ANSWERING_MAPPING = _mapping("ForQuestionAnswering")


class FlaxAutoModel(_AutoModel):
    """Loads the encoder with a pooler and no head."""

    _model_mapping = FLAX_MODEL_MAPPING


class FlaxAutoModelForMaskedLM(_AutoModel):
    """Loads a model with a masked-LM head."""

    _model_mapping = FLAX_MODEL_FOR_MASKED_LM_MAPPING


class FlaxAutoModelForCausalLM(_AutoModel):
    """Loads a model with a next-token head."""

    _model_mapping = FLAX_MODEL_FOR_CAUSAL_LM_MAPPING


class FlaxAutoModelForSequenceClassification(_AutoModel):
    """Loads a model with a classification or regression head over the whole input."""

    _model_mapping = FLAX_MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING


class FlaxAutoModelForTokenClassification(_AutoModel):
    """Loads a model with a classification head for each token."""

    _model_mapping = FLAX_MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING


class FlaxAutoModelForMultipleChoice(_AutoModel):
    """Loads a model with a head that scores each choice of a question."""

    _model_mapping = FLAX_MODEL_FOR_MULTIPLE_CHOICE_MAPPING


class FlaxAutoModelForQuestionAnswering(_AutoModel):
    """Loads a model with a head that predicts the start and end of an answer span."""

    _model_mapping = FLAX_MODEL_FOR_QUESTION_ANSWERING_MAPPING
