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

# The tokens that fairseq adds before and after those of dict.txt.
_FIRST = ("<s>", "<pad>", "</s>", "<unk>")
_LAST = "<mask>"
_FILLER = "madeupword"


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
    alphabet = _alphabet()
    problems = []
    if [vocab[token] for token in tokens] != list(range(len(tokens))):
        problems.append("its ids have gaps")
    if tuple(tokens[:4]) != _FIRST or tokens[-1] != _LAST:
        problems.append(f"{', '.join(_FIRST)} must come first and {_LAST} last")
    if any(byte not in vocab for byte in alphabet):
        problems.append("it does not have a token for each byte")
    if problems:
        raise UsageError(f"fairseq's dict.txt cannot hold this vocabulary: {'; '.join(problems)}")
    rows = tokens[4:-1]
    gpt2_tokens = dict.fromkeys(_in_gpt2_order(alphabet, merges, rows))
    encoder = {token: i for i, token in enumerate(gpt2_tokens)}
    lines = [
        f"{token if token.startswith(_FILLER) else encoder[token]} {len(rows) - i}"
        for i, token in enumerate(rows)
    ]
    bpe = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "encoder.json").write_text(json.dumps(encoder), encoding="utf-8")
    (folder / "vocab.bpe").write_text("\n".join(bpe) + "\n", encoding="utf-8")
    (folder / "dict.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _in_gpt2_order(alphabet, merges, rows) -> list[str]:
    """The tokens in the order of GPT-2's ids."""
    rest = [token for token in rows if not token.startswith(_FILLER)]
    return [*alphabet, *("".join(pair) for pair in merges), *rest]


def _alphabet() -> list[str]:
    """The characters that GPT-2 writes the 256 bytes with, in the order of its ids.

    Printable bytes stand for themselves and come first; the others are numbered from 256 on. The
    tokenizer has a table of the same characters by byte, which `weights` may not import.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(others)]
