"""RoBERTa in pure JAX: pretraining, ablations, fine-tuning and inference.

The public names are imported from their modules on first use. Importing the package itself loads
neither JAX nor TensorFlow.
"""

import importlib

__version__ = "0.2.0"

# Public name -> the module that defines it.
_MODULES = {
    "FillMask": "roberta_jax.inference.fill_mask",
    "FlaxRobertaConfig": "roberta_jax.compat.config",
    "FlaxRobertaForCausalLM": "roberta_jax.compat.models",
    "FlaxRobertaForMaskedLM": "roberta_jax.compat.models",
    "FlaxRobertaForMultipleChoice": "roberta_jax.compat.models",
    "FlaxRobertaForQuestionAnswering": "roberta_jax.compat.models",
    "FlaxRobertaForSequenceClassification": "roberta_jax.compat.models",
    "FlaxRobertaForTokenClassification": "roberta_jax.compat.models",
    "FlaxRobertaModel": "roberta_jax.compat.models",
    "FlaxRobertaPreTrainedModel": "roberta_jax.compat.models",
    "RobertaConfig": "roberta_jax.modeling.config",
    "RobertaForCausalLM": "roberta_jax.modeling.heads",
    "RobertaForMaskedLM": "roberta_jax.modeling.heads",
    "RobertaForMultipleChoice": "roberta_jax.modeling.heads",
    "RobertaForQuestionAnswering": "roberta_jax.modeling.heads",
    "RobertaForSequenceClassification": "roberta_jax.modeling.heads",
    "RobertaForTokenClassification": "roberta_jax.modeling.heads",
    "RobertaModel": "roberta_jax.modeling.heads",
    "RobertaTokenizer": "roberta_jax.tokenizer",
    "RobertaTokenizerFast": "roberta_jax.tokenizer",
    "Sampling": "roberta_jax.modeling.generation",
    "from_pretrained": "roberta_jax.weights.load",
    "generate": "roberta_jax.modeling.generation",
    "save_pretrained": "roberta_jax.weights.save",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'roberta_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__():
    return sorted({*globals(), *__all__})
