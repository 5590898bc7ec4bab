"""Byte-level BPE tokenizer: trains, loads, saves, encodes and decodes.

`RobertaTokenizer` is in `tokenizer`. `bulk` encodes whole corpora. `hf_api` emulates how Hugging
Face's tokenizers are called.
"""

from roberta_jax.tokenizer.hf_api.batch_encoding import BatchEncoding
from roberta_jax.tokenizer.tokenizer import RobertaTokenizer, RobertaTokenizerFast

__all__ = ["BatchEncoding", "RobertaTokenizer", "RobertaTokenizerFast"]
