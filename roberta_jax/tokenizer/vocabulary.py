"""What a pipeline's vocabulary is: tokens and merges, its fingerprint, and its word starts."""

import hashlib
import json

import numpy as np
from tokenizers import Tokenizer

from roberta_jax.tokenizer import related_models, templates
from roberta_jax.tokenizer.special_tokens import FILLER_PREFIX


def vocab_and_merges(backend: Tokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Returns a BPE model's vocabulary and merges.

    Returns:
      Token to id, in the order of the ids and without added tokens; and pairs of tokens, in the
      order in which they are merged.
    """
    return _vocab_and_merges(json.loads(backend.to_str())["model"])


def _vocab_and_merges(model: dict) -> tuple[dict[str, int], list[tuple[str, str]]]:
    vocab = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    return vocab, merges


def fingerprint(backend: Tokenizer, *, is_byte_level: bool) -> str:
    """Returns a hash of everything that determines the ids of a text.

    The fingerprint of a byte-level pipeline does not depend on which files it was read from or on
    the version of the `tokenizers` library. For other pipelines the whole `tokenizer.json` is
    hashed, which another version of the library may write differently.

    Args:
      backend: the pipeline.
      is_byte_level: whether it is RoBERTa's own pipeline.

    Returns:
      A SHA-256 as 64 hexadecimal digits.
    """
    state = json.loads(backend.to_str())
    if is_byte_level:
        vocab, merges = _vocab_and_merges(state["model"])
        # Versions of the library differ in which settings they write when these have the default.
        settings = {name: value for name, value in state["model"].items() if value}
        hashed = {
            "model": settings | {"vocab": vocab, "merges": merges},
            "added_tokens": state["added_tokens"],
            "normalizer": state["normalizer"],
            "add_prefix_space": backend.pre_tokenizer.add_prefix_space,
        }
        if templates.has_single_separator(backend):
            hashed["single_separator_pairs"] = True
    else:
        hashed = {k: v for k, v in state.items() if k not in ("padding", "truncation")}
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()


def word_start_table(backend: Tokenizer, *, is_byte_level: bool) -> np.ndarray:
    """Returns which ids begin a word, for whole-word masking by fairseq's rule.

    A token begins a word if its text starts with a space. Special tokens, other added tokens and
    fairseq's "madeupword" entries are words of their own. (The first word of a sentence has no
    space; it is known by its position.) Unigram models write the space as "▁"; WordPiece tokens
    begin a word unless they start with "##".

    Args:
      backend: the pipeline.
      is_byte_level: whether it is RoBERTa's own pipeline.

    Returns:
      bool [number of ids].

    Raises:
      ValueError: the tokens of this type of model do not show where words begin.
    """
    vocab = backend.get_vocab(with_added_tokens=True)
    prefix, begins_word = ("Ġ", True) if is_byte_level else related_models.word_prefix(backend)
    table = np.zeros(max(len(vocab), max(vocab.values(), default=-1) + 1), bool)
    for token, i in vocab.items():
        is_filler = token.startswith(FILLER_PREFIX)
        table[i] = is_filler or token.startswith(prefix) == begins_word
    table[list(backend.get_added_tokens_decoder())] = True
    return table
