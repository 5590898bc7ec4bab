"""`read_text_spec`: the corpora of a mixture, the cache folder, and wrong values."""

import dataclasses
import pathlib

import pytest
from ml_collections import ConfigDict

from configs.pretrain import get_config
from roberta_jax.data.text.source import TextSource
from roberta_jax.errors import UsageError
from roberta_jax.pretraining.text_spec import CorpusSpec, read_text_spec


@pytest.fixture
def config() -> ConfigDict:
    return get_config("tiny")


def test_without_a_mixture_there_is_one_corpus(config):
    (corpus,) = read_text_spec(config).corpora
    assert corpus == CorpusSpec(TextSource(source="builtin"), weight=1.0, max_tokens=None)
    config.data.max_tokens = 500
    assert read_text_spec(config).corpora[0].max_tokens == 500


def test_the_defaults_of_a_source_are_those_of_the_config():
    assert TextSource() == read_text_spec(get_config("base")).corpora[0].source


def test_a_mixture_entry_takes_missing_keys_from_the_first_corpus(config):
    config.data.max_tokens = 500
    config.data.text_field = "content"
    config.data.mixture = (
        {"source": "files", "files": "a/*.txt", "weight": 2},
        {"language": "de", "max_tokens": 70},
    )
    first, second, third = read_text_spec(config).corpora
    assert first.source == TextSource(source="builtin", text_field="content")
    # max_tokens is that of the entry alone.
    source = dataclasses.replace(first.source, source="files", files="a/*.txt")
    assert second == CorpusSpec(source, 2.0, None)
    assert third == CorpusSpec(dataclasses.replace(first.source, language="de"), 1.0, 70)
    assert config.data.mixture[0] == {"source": "files", "files": "a/*.txt", "weight": 2}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"file": "a.txt"}, "corpus 1 has 'file', but it takes source, files,"),
        ({"validation_fraction": 0.1}, "corpus 1 has 'validation_fraction'"),
        ({"mixture": ()}, "corpus 1 has 'mixture'"),
        ("a.txt", r"corpus 1 is 'a\.txt', but it must be a dict of source, files"),
        (None, "corpus 1 is None"),
        ({"weight": 0}, "corpus 1: weight is 0: give a number above 0"),
        ({"weight": -1}, "corpus 1: weight is -1"),
        ({"weight": float("nan")}, "corpus 1: weight is nan"),
        ({"weight": float("inf")}, "corpus 1: weight is inf"),
        ({"weight": "much"}, "corpus 1: weight is 'much'"),
        ({"weight": None}, "corpus 1: weight is None"),
        ({"max_tokens": 0}, "corpus 1: max_tokens is 0: give a whole number from 1"),
        ({"max_tokens": "1e6"}, "corpus 1: max_tokens is '1e6'"),
    ],
)
def test_bad_mixtures(config, entry, message):
    config.data.mixture = (entry,)
    with pytest.raises(UsageError, match=rf"^--config\.data\.mixture: {message}"):
        read_text_spec(config)
    config.data.mixture = ({"source": "builtin"}, entry)  # the message numbers the entries
    with pytest.raises(UsageError, match=message.replace("corpus 1", "corpus 2")):
        read_text_spec(config)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("max_tokens", 0, r"--config\.data\.max_tokens=0: give a whole number from 1"),
        ("max_tokens", -5, r"--config\.data\.max_tokens=-5: give"),
        ("num_workers", 0, r"--config\.data\.num_workers=0: give a whole number from 1"),
        (
            "validation_fraction",
            1.0,
            r"validation_fraction=1.0: give a number from 0 and below 1, such as",
        ),
        ("validation_fraction", -0.1, r"--config\.data\.validation_fraction=-0\.1"),
        ("validation_fraction", float("nan"), r"--config\.data\.validation_fraction=nan"),
        ("sentences", "never", "never"),
        ("language", "", "language"),
    ],
)
def test_bad_values(config, key, value, message):
    config.data[key] = value
    with pytest.raises(UsageError, match=message):
        read_text_spec(config)


@pytest.mark.parametrize(
    ("source", "key", "right"),
    [
        ("builtin", "files", "files"),
        ("tfds", "files", "files"),
        ("files", "tfds_name", "tfds"),
        ("builtin", "tfds_data_dir", "tfds"),
    ],
)
def test_values_that_the_source_does_not_use_are_refused(config, source, key, right):
    config.data.update({"source": source, key: "x"})
    message = (
        rf"--config\.data\.{key}=x has no effect with --config\.data\.source={source}\. Add "
        rf"--config\.data\.source={right}, or"
    )
    with pytest.raises(UsageError, match=message):
        read_text_spec(config)
    config.data.mixture = ({"source": right},)  # which has the value from there
    assert getattr(read_text_spec(config).corpora[1].source, key) == "x"


def test_cache_dir(monkeypatch, tmp_path):
    def cache_dir(value):
        config = get_config("tiny")
        config.data.cache_dir = value
        return read_text_spec(config).cache_dir

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir(None) == tmp_path / "roberta_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_dir(None) == pathlib.Path("/home/someone/.cache/roberta_jax")
    assert cache_dir("~/x") == pathlib.Path("/home/someone/x")
