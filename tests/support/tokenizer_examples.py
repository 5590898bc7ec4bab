"""Texts and vocabularies for tests of the tokenizer."""

import json
import pydoc_data.topics

from roberta_jax.tokenizer.byte_alphabet import byte_alphabet

TEXTS = list(pydoc_data.topics.topics.values())
HARD_STRINGS = [
    "",
    " ",
    "Hello world",
    " Hello  world \n\n\tI'm he'LL they've 3.14159",
    "café İstanbul 日本語のテキスト 한국어 مرحبا नमस्ते 👍🏽🇫🇷",
    "a <mask> b<mask>c  <mask></s> <s>x <pad>",
    "x\u00a0y\u3000z\u200b\x1c\x85",
]
LONG_TEXT = "def return class " * 9


def byte_vocab(*more: str) -> dict[str, int]:
    """A vocabulary of the special tokens, the 256 bytes and `more` tokens."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *byte_alphabet(), *more, "<mask>"]
    return {token: i for i, token in enumerate(tokens)}


def write_vocab_and_merges(folder, vocab, merges):
    """Writes `vocab.json` and `merges.txt`; returns the folder."""
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    return folder
