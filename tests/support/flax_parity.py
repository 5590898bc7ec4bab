"""Pairs of models, of this package and of transformers' Flax classes, with the same parameters.

Importing this module skips the test module where torch or transformers' Flax classes are missing.
"""

import functools
import tempfile

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
if not hasattr(transformers, "FlaxRobertaModel"):
    pytest.skip("this transformers has no Flax classes", allow_module_level=True)

import roberta_jax
from tests.support import heads
from tests.support.flax_classes import random_params

EMBEDDING_TABLES = ("word_embeddings", "position_embeddings")

# Marks of every module that compares with transformers.
MARKS = [pytest.mark.parity, pytest.mark.usefixtures("highest_matmul_precision")]


def config_of(name, **changes):
    """transformers' config of a small model."""
    values = heads.config_of(name.removeprefix("Flax"), type_vocab_size=2).to_dict()
    if "num_labels" in changes:  # transformers' config prefers the labels' names
        del values["id2label"], values["label2id"]
    return transformers.RobertaConfig(**(values | changes))


def new_pair(name, **changes):
    """(ours, transformers'), with the same random parameters."""
    ours = getattr(roberta_jax, name)(config_of(name, **changes))
    theirs = getattr(transformers, name)(config_of(name, **changes))
    theirs.params = ours.params = random_params(theirs.params, scale=0.2)
    return ours, theirs


# One for the session; tests must not change its models.
pair = functools.cache(new_pair)


def initial_pair(name, config=None, **arguments):
    """(ours, transformers'), each with its own initial parameters."""
    config = config_of(name) if config is None else config
    return tuple(getattr(home, name)(config, **arguments) for home in (roberta_jax, transformers))


def to_torch(model, name):
    """transformers' PyTorch model with the parameters of a model of ours."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, safe_serialization=True)
        cls = getattr(transformers, name.removeprefix("Flax"))
        return cls.from_pretrained(folder, attn_implementation="eager").eval()


def torch_outputs(model, name, ids, **options):
    """The outputs of `to_torch`'s model."""
    with torch.no_grad():
        return to_torch(model, name)(torch.as_tensor(np.asarray(ids)), **options)


def inputs_of(name):
    inputs = dict(heads.inputs_of(name.removeprefix("Flax"), heads.SMALL).given)
    shape = inputs["input_ids"].shape
    inputs["token_type_ids"] = np.random.default_rng(1).integers(0, 2, shape)
    return inputs


def assert_close(actual, expected):
    """Within 1e-5, or 1e-5 of the largest entry where entries exceed 1."""
    assert len(actual) == len(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        heads.assert_close(a, b)
