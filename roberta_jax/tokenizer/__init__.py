"""Byte-level BPE tokenizer: train, load, save, encode, decode; `bulk` encodes whole corpora."""

from roberta_jax.tokenizer.roberta import RobertaTokenizer

__all__ = ["RobertaTokenizer"]
