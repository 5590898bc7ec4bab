"""Pretrained weights: load and save them in every supported format."""

import importlib

_HOMES = {
    "Loaded": "roberta_jax.weights.load",
    "from_pretrained": "roberta_jax.weights.load",
    "load_pretrained": "roberta_jax.weights.load",
    "model_folder": "roberta_jax.weights.load",
    "read_pretrained": "roberta_jax.weights.load",
    "save_pretrained": "roberta_jax.weights.save",
    "stack_layers": "roberta_jax.weights.names",
    "unstack_layers": "roberta_jax.weights.names",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'roberta_jax.weights' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
