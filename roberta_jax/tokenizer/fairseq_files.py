"""Writes a tokenizer's files in fairseq's format: `encoder.json`, `vocab.bpe` and `dict.txt`.

fairseq encodes in two steps. GPT-2's byte-pair encoding gives GPT-2's ids (`encoder.json` and
`vocab.bpe`). `dict.txt` lists these ids, as text, in the order of the model's ids. Since GPT-2
numbers its tokens by a rule (the 256 bytes, one token per merge, then the rest), all three files
follow from a vocabulary and its merges. For roberta-base they equal the released files, except for
the counts in `dict.txt`.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence

from roberta_jax.errors import UsageError
from roberta_jax.storage.atomic import write_text
from roberta_jax.tokenizer.byte_alphabet import byte_alphabet
from roberta_jax.tokenizer.special_tokens import BOS, EOS, FILLER_PREFIX, MASK, PAD, UNK

# The tokens that fairseq adds before those of dict.txt; it adds MASK after them.
_FIRST = (BOS, PAD, EOS, UNK)


def write(
    folder: pathlib.Path, vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]
) -> None:
    """Writes the three files.

    The token counts that `dict.txt` has beside each id are unknown. They are replaced by numbers
    that decrease from row to row, which gives the same order of ids.

    Args:
      folder: An existing folder.
      vocab: {token: id} with the special tokens.
      merges: The pairs of tokens to merge, in order.

    Raises:
      UsageError: The vocabulary is not in fairseq's order: it must have `<s>`, `<pad>`, `</s>` and
        `<unk>` first, `<mask>` last, no gap in its ids, and a token for each of the 256 bytes.
    """
    tokens = sorted(vocab, key=vocab.get)
    alphabet = list(byte_alphabet())
    problems = []
    if [vocab[token] for token in tokens] != list(range(len(tokens))):
        problems.append("its ids have gaps")
    if tuple(tokens[:4]) != _FIRST or tokens[-1] != MASK:
        problems.append(f"{', '.join(_FIRST)} must come first and {MASK} last")
    if any(byte not in vocab for byte in alphabet):
        problems.append("it does not have a token for each byte")
    if problems:
        raise UsageError(f"fairseq's dict.txt cannot hold this vocabulary: {'; '.join(problems)}")
    rows = tokens[4:-1]
    gpt2_tokens = dict.fromkeys(_in_gpt2_order(alphabet, merges, rows))
    encoder = {token: i for i, token in enumerate(gpt2_tokens)}
    lines = [
        f"{token if token.startswith(FILLER_PREFIX) else encoder[token]} {len(rows) - i}"
        for i, token in enumerate(rows)
    ]
    bpe = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    write_text(folder / "encoder.json", json.dumps(encoder))
    write_text(folder / "vocab.bpe", "\n".join(bpe) + "\n")
    write_text(folder / "dict.txt", "\n".join(lines) + "\n")


def _in_gpt2_order(alphabet, merges, rows) -> list[str]:
    """The tokens in the order of GPT-2's ids."""
    rest = [token for token in rows if not token.startswith(FILLER_PREFIX)]
    return [*alphabet, *("".join(pair) for pair in merges), *rest]
