"""The corpora of a mixture: what a dict may say, and what it takes over from `config.data`."""

import pytest
from ml_collections import ConfigDict

from configs.pretrain import get_config
from roberta_jax.data.text.sources import list_sources
from roberta_jax.errors import UsageError


@pytest.fixture
def data() -> ConfigDict:
    return get_config("tiny").data


def test_without_a_mixture_there_is_one(data):
    (source,) = list_sources(data)
    assert source.data is data
    assert source.weight == 1
    assert source.max_tokens is None
    data.max_tokens = 500
    assert list_sources(data)[0].max_tokens == 500


def test_what_is_not_said_is_as_in_the_first(data):
    data.max_tokens = 500
    data.text_field = "content"
    data.mixture = (
        {"source": "files", "files": "a/*.txt", "weight": 2},
        {"language": "de", "max_tokens": 70},
    )
    first, second, third = list_sources(data)
    assert first.data is data
    common = data.to_dict() | {"mixture": ()}
    assert second.data.to_dict() == common | {
        "source": "files",
        "files": "a/*.txt",
        "max_tokens": None,
    }
    assert (second.weight, second.max_tokens) == (2, None)  # sizes are each corpus' own
    assert third.data.to_dict() == common | {"language": "de", "max_tokens": 70}
    assert (third.weight, third.max_tokens) == (1, 70)
    assert second.data.is_locked
    assert data.mixture[0] == {"source": "files", "files": "a/*.txt", "weight": 2}  # unchanged
    assert data.source == "builtin"


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
def test_bad_mixtures(data, entry, message):
    data.mixture = (entry,)
    with pytest.raises(UsageError, match=rf"^config\.data\.mixture: {message}"):
        list_sources(data)
    data.mixture = ({"source": "builtin"}, entry)  # the number is that of the dict
    with pytest.raises(UsageError, match=message.replace("corpus 1", "corpus 2")):
        list_sources(data)


@pytest.mark.parametrize("max_tokens", [0, -5])
def test_bad_size_of_the_first(data, max_tokens):
    data.max_tokens = max_tokens
    with pytest.raises(UsageError, match=rf"^config\.data\.max_tokens is {max_tokens}: give"):
        list_sources(data)
