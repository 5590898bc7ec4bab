"""Fixtures shared by the tests of weight files."""

import shutil

import pytest

from roberta_jax import RobertaTokenizer, weights
from roberta_jax.modeling.heads import RobertaForMaskedLM
from tests.support.checkpoints import CONFIG, random_params


@pytest.fixture(scope="session")
def masked_lm():
    """(model, params); tests must not change the parameters."""
    model = RobertaForMaskedLM(CONFIG)
    return model, random_params(model)


@pytest.fixture(scope="session")
def tokenizer():
    return RobertaTokenizer.train(["the cat sat on the mat, or so they say"] * 5, vocab_size=270)


@pytest.fixture(scope="session")
def saved(masked_lm, tokenizer, tmp_path_factory):
    """A folder with the masked LM and the tokenizer; tests must not change it."""
    folder = tmp_path_factory.mktemp("saved") / "hf"
    weights.save_pretrained(folder, *masked_lm, tokenizer)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of `saved` that a test may change."""
    return shutil.copytree(saved, tmp_path / "copy")
