"""Small models with random parameters, for the tests of weight files."""

import functools
import json

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from roberta_jax.modeling.config import RobertaConfig
from roberta_jax.modeling.heads import MODEL_CLASSES
from roberta_jax.weights.parameters import parameter_shapes

CONFIG = RobertaConfig.base(
    vocab_size=300,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=42,
    num_labels=3,
)
IDS = np.random.default_rng(0).integers(3, CONFIG.vocab_size, (2, 20))


def random_params(model, seed=0, dtype=np.float32, *, token_types=True):
    """Random parameters, all different and not zero.

    Args:
      model: The module.
      seed: The seed.
      dtype: The type of the parameters.
      token_types: Whether the token type embeddings are random, too. Zeros can be saved in every
        format.
    """
    draw = np.random.default_rng(seed).normal
    params = jax.tree.map(lambda x: draw(0, 0.2, x.shape).astype(dtype), parameter_shapes(model))
    if not token_types:
        params.get("roberta", params)["embeddings"]["token_type_embeddings"]["embedding"][...] = 0
    return params


def build(name, **changes):
    """(model, params) of a class by name; the token type embeddings are zero."""
    model = MODEL_CLASSES[name](CONFIG.replace(**changes))
    return model, random_params(model, token_types=False)


@functools.partial(jax.jit, static_argnames="model")
def logits_of(model, params):
    """The model's logits for `IDS`."""
    return model.apply({"params": params}, IDS).logits


def edit_tensors(folder, edit):
    """Rewrites model.safetensors; `edit` changes the dictionary of tensors in place."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder, **changes):
    """Changes fields of config.json."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def assert_trees_equal(left, right):
    """Equal in structure, types and bits."""
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), left, right)
