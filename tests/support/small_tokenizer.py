"""A small trained tokenizer, shared by the tests of a process."""

import functools

from roberta_jax.tokenizer import RobertaTokenizer
from tests.support.tokenizer_examples import TEXTS


@functools.cache
def small_tokenizer() -> RobertaTokenizer:
    """A tokenizer of 1000 ids, for tests that do not change it."""
    return RobertaTokenizer.train(TEXTS, vocab_size=1000)
