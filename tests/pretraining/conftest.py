"""A small corpus, configs for it, and a finished run, for the tests of this folder."""

import functools

import pytest

from roberta_jax.pretrain import pretrain
from tests.support import texts


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory):
    """A folder with `corpus.jsonl`. Its prepared text is cached in the subfolder `cache`."""
    folder = tmp_path_factory.mktemp("pretraining")
    texts.write_corpus(folder / "corpus.jsonl")
    return folder


@pytest.fixture(scope="session")
def small_config(corpus_folder):
    """Returns a function from dotted config keys with their values to a config for the corpus."""
    corpus, cache = corpus_folder / "corpus.jsonl", corpus_folder / "cache"
    return functools.partial(texts.small_config, corpus, cache)


@pytest.fixture(scope="session")
def four_steps(small_config):
    """Like `small_config`, for a run of four steps that saves the checkpoints 2 and 4."""
    steps = {"train.steps": 4, "train.checkpoint_every": 2, "schedule.warmup_steps": 2}
    return lambda **changes: small_config(**{**steps, **changes})


@pytest.fixture(scope="session")
def finished_run(four_steps, corpus_folder):
    """The result of a finished run of the config `four_steps()`; tests do not change its files."""
    return pretrain(four_steps(), corpus_folder / "finished_run")
