"""RoBERTa in pure JAX. The public names, each imported at its first use.

Importing the package costs nothing: neither JAX nor TensorFlow is loaded until a name is used.
"""

import importlib

_HOMES = {
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
    "save_pretrained": "roberta_jax.weights.load",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'roberta_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__():
    return sorted({*globals(), *__all__})
