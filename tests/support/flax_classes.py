"""Small models of the drop-in `FlaxRoberta…` classes, shared by tests that do not change them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import roberta_jax
from roberta_jax.modeling.config import RobertaConfig
from tests.support import heads

NAMES = tuple(f"Flax{name}" for name in heads.MODEL_CLASSES)
ENCODER = "FlaxRobertaModel"
MASKED_LM = "FlaxRobertaForMaskedLM"
CAUSAL_LM = "FlaxRobertaForCausalLM"
CLASSIFIER = "FlaxRobertaForSequenceClassification"


def class_of(name: str) -> type:
    return getattr(roberta_jax, name)


def config_of(name: str, **changes) -> RobertaConfig:
    """A config with one layer; see `heads.config_of`."""
    return heads.config_of(name.removeprefix("Flax"), **({"num_hidden_layers": 1} | changes))


def random_params(shapes, scale: float = 0.3):
    """A tree of random arrays, biases and LayerNorms too."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, scale, x.shape), jnp.float32), shapes)


def new_model(name: str, **changes):
    """A model with random values in every parameter."""
    model = class_of(name)(config_of(name, **changes), _do_init=False)
    model._is_initialized = True  # nothing is compiled for initial values
    model.params = random_params(model.params_shape_tree)
    return model


# One for the session; tests must not change it.
random_model = functools.cache(new_model)


def inputs_of(name: str) -> dict[str, jax.Array]:
    """Ids and mask of four rows of 12 tokens; the same for all, so that models share compilations.

    For multiple choice these are two inputs of two choices.
    """
    batch = 2 if name == "FlaxRobertaForMultipleChoice" else 4
    inputs = heads.inputs_of(name.removeprefix("Flax"), config_of(name), batch=batch)
    return {key: jnp.asarray(value) for key, value in inputs.given.items()}
