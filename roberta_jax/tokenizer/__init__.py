"""Byte-level BPE tokenizer: train, load, save, encode, decode; `bulk` encodes whole corpora."""

from roberta_jax.tokenizer.encoding import BatchEncoding
from roberta_jax.tokenizer.roberta import RobertaTokenizer, RobertaTokenizerFast

__all__ = ["BatchEncoding", "RobertaTokenizer", "RobertaTokenizerFast"]
