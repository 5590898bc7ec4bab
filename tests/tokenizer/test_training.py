"""Training a byte-level BPE vocabulary."""

import re

import pytest

from roberta_jax.tokenizer import RobertaTokenizer, training, vocabulary
from tests.support.tokenizer_examples import TEXTS


def test_training_twice_gives_the_same_tokenizer():
    texts = TEXTS[:20]
    one = RobertaTokenizer.train(texts, vocab_size=600)
    two = RobertaTokenizer.train(iter(texts), vocab_size=600)
    assert vocabulary.vocab_and_merges(one.backend) == vocabulary.vocab_and_merges(two.backend)
    assert one.fingerprint() == two.fingerprint()
    # A larger vocabulary starts with the same merges, because they are ordered by frequency.
    more = RobertaTokenizer.train(texts, vocab_size=700)
    assert list(more.get_vocab()) != list(one.get_vocab())
    merges = vocabulary.vocab_and_merges(one.backend)[1]
    assert vocabulary.vocab_and_merges(more.backend)[1][: len(merges)] == merges


def test_training_merges_the_most_frequent_pairs():
    tokenizer = RobertaTokenizer.train(["zq zq zq qz"], vocab_size=263)
    assert vocabulary.vocab_and_merges(tokenizer.backend)[1] == [("z", "q"), ("Ġ", "zq")]


def test_smallest_vocabulary_is_bytes():
    tokenizer = RobertaTokenizer.train([], vocab_size=261)
    assert len(tokenizer.encode("é", add_special_tokens=False)) == 2
    with pytest.raises(ValueError, match="at least 261"):
        RobertaTokenizer.train(TEXTS, vocab_size=260)


def test_text_too_small_for_the_vocabulary():
    for sizes in (
        {"vocab_size": 10**9},  # the library would abort
        {"vocab_size": 300.0},
        {"vocab_size": True},
        {"min_frequency": -1},
        {"min_frequency": 2**70},
        {"min_frequency": 0.5},
    ):
        (name,) = sizes
        with pytest.raises(ValueError, match=rf"^{name}=.* must be a whole number from \d+ to \d+"):
            RobertaTokenizer.train(TEXTS, **{"vocab_size": 300, **sizes})
    with pytest.raises(ValueError, match=r"new_tokenizer\.vocab_size") as raised:
        RobertaTokenizer.train(["some text, and some more"], vocab_size=5000)
    allowed = int(re.search(r"allows (\d+) tokens", str(raised.value))[1])
    assert len(RobertaTokenizer.train(["some text, and some more"], vocab_size=allowed)) == allowed


def test_take_bytes_reads_only_what_it_needs():
    texts = iter(["abc", "déf", "ghi", "never read"])
    assert list(training.take_bytes(texts, 9)) == ["abc", "déf", "gh"]
    assert next(texts) == "never read"
    assert list(training.take_bytes(["a\ud800"], 9)) == ["a\ufffd"]
    assert list(training.take_bytes(["aé"], 2)) == ["a"]


def test_training_on_long_lines_and_surrogates():
    long_line = "word " * 300_000 + "\ud800"
    assert "Ġword" in RobertaTokenizer.train([long_line], vocab_size=265).get_vocab()
