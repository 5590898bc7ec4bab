"""Tokenizers that several tests use."""

import copy

import pytest

from roberta_jax.tokenizer import RobertaTokenizer
from tests.support.tokenizer_examples import TEXTS
from tests.support.tokenizer_pairs import PIECES, make_pair


@pytest.fixture(scope="session")
def trained() -> RobertaTokenizer:
    return RobertaTokenizer.train(TEXTS, vocab_size=1000)


@pytest.fixture(scope="module")
def tokenizer(trained) -> RobertaTokenizer:
    """A trained tokenizer of 1000 ids, for tests that do not change it."""
    return copy.deepcopy(trained)


@pytest.fixture
def own_tokenizer(trained) -> RobertaTokenizer:
    """A trained tokenizer that the test may change."""
    return copy.deepcopy(trained)


@pytest.fixture(scope="module")
def saved_folder(tokenizer, tmp_path_factory):
    """A folder with the files of `tokenizer`."""
    folder = tmp_path_factory.mktemp("saved")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def roberta(real_data) -> RobertaTokenizer:
    """RoBERTa's own tokenizer, from fairseq's files."""
    return RobertaTokenizer.from_pretrained(real_data / "bpe_gpt2")


# For comparisons with transformers


@pytest.fixture(scope="session")
def vocabulary_folder(tmp_path_factory):
    """A folder with `vocab.json` and `merges.txt` of a small vocabulary, and no other file."""
    folder = tmp_path_factory.mktemp("vocabulary")
    texts = [*TEXTS, "".join(PIECES) * 3]
    RobertaTokenizer.train(texts, vocab_size=1500).save_vocabulary(folder)
    return folder


@pytest.fixture(scope="module", params=["plain", "prefixed", "untrimmed"])
def pair(request, vocabulary_folder):
    """Our tokenizer and transformers', with several options."""
    options = {
        "plain": {},
        "prefixed": {"add_prefix_space": True},
        "untrimmed": {"trim_offsets": False, "add_prefix_space": True},
    }[request.param]
    return make_pair(vocabulary_folder, **options)


@pytest.fixture(scope="module")
def plain(vocabulary_folder):
    """Our tokenizer and transformers', with default options."""
    return make_pair(vocabulary_folder)
