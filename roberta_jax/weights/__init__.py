"""Pretrained weights: load and save them in every supported format.

The public functions can be reached as `weights.from_pretrained` and so on. Each one's module is
imported when the name is first used.
"""

import importlib

_MODULES = {
    "Loaded": "roberta_jax.weights.load",
    "from_pretrained": "roberta_jax.weights.load",
    "load_pretrained": "roberta_jax.weights.load",
    "model_folder": "roberta_jax.weights.load",
    "read_config": "roberta_jax.weights.load",
    "read_pretrained": "roberta_jax.weights.load",
    "save_pretrained": "roberta_jax.weights.save",
    "stack_layers": "roberta_jax.weights.names",
    "tokenizer_folder": "roberta_jax.storage.hub",
    "unstack_layers": "roberta_jax.weights.names",
}


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'roberta_jax.weights' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
