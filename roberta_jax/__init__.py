"""RoBERTa in pure JAX: pretraining, ablations, fine-tuning and inference.

The public names are imported from their modules on first use. Importing the package itself loads
neither JAX nor TensorFlow.
"""

import importlib

__version__ = "0.2.0"

_HEADS = (
    "Model",
    "ForCausalLM",
    "ForMaskedLM",
    "ForMultipleChoice",
    "ForQuestionAnswering",
    "ForSequenceClassification",
    "ForTokenClassification",
)

# Public name -> the module that defines it.
_MODULES = {
    "AutoConfig": "roberta_jax.compat.auto",
    "AutoTokenizer": "roberta_jax.tokenizer.auto",
    "CONFIG_MAPPING": "roberta_jax.compat.auto",
    "CamembertConfig": "roberta_jax.compat.config",
    "FillMask": "roberta_jax.inference.fill_mask",
    "FLAX_MODEL_FOR_MASKED_LM_MAPPING": "roberta_jax.compat.auto",
    "FlaxRobertaConfig": "roberta_jax.compat.config",
    "FlaxRobertaPreTrainedModel": "roberta_jax.compat.models",
    "FlaxXLMRobertaPreTrainedModel": "roberta_jax.compat.xlm_roberta",
    "RobertaConfig": "roberta_jax.compat.config",
    "RobertaTokenizer": "roberta_jax.tokenizer",
    "RobertaTokenizerFast": "roberta_jax.tokenizer",
    "Sampling": "roberta_jax.modeling.generation",
    "XLMRobertaConfig": "roberta_jax.compat.config",
    "from_pretrained": "roberta_jax.weights.load",
    "generate": "roberta_jax.modeling.generation",
    "save_pretrained": "roberta_jax.weights.save",
}
for _head in _HEADS:
    _MODULES[f"Roberta{_head}"] = "roberta_jax.modeling.heads"
    _MODULES[f"FlaxRoberta{_head}"] = "roberta_jax.compat.models"
    _MODULES[f"FlaxXLMRoberta{_head}"] = "roberta_jax.compat.xlm_roberta"
    _MODULES["FlaxAutoModel" + _head.removeprefix("Model")] = "roberta_jax.compat.auto"

__all__ = sorted(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'roberta_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__():
    return sorted({*globals(), *__all__})
