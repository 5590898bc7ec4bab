"""The files of a tokenizer as fairseq has them: `encoder.json`, `vocab.bpe` and `dict.txt`.

fairseq encodes in two steps: GPT-2's byte-pair encoding gives GPT-2's ids (`encoder.json` and
`vocab.bpe`), and `dict.txt` lists these ids, as text, in the order of the model's own. GPT-2
numbers its tokens by a rule (the 256 bytes, then a token a merge, then the rest), so that all
three files follow from a vocabulary and its merges; from roberta-base's they come out as
released, but for the counts.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence

from roberta_jax.errors import UsageError

# The rows that fairseq puts before and after those of dict.txt.
_FIRST = ("<s>", "<pad>", "</s>", "<unk>")
_LAST = "<mask>"
_FILLER = "madeupword"


def write(
    folder: pathlib.Path, vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]
) -> None:
    """Writes the three files.

    The counts that `dict.txt` has beside each id are not known; numbers that fall from row to row
    stand in for them and keep the order, which is all that a model depends on.

    Args:
      folder: An existing folder.
      vocab: {token: id} with the special tokens.
      merges: The pairs, in order.

    Raises:
      UsageError: The vocabulary is not in fairseq's order: `<s>`, `<pad>`, `</s>`, `<unk>` first,
        `<mask>` last, no id left out, and a token for each of the 256 bytes.
    """
    tokens = sorted(vocab, key=vocab.get)
    alphabet = _alphabet()
    problems = []
    if [vocab[token] for token in tokens] != list(range(len(tokens))):
        problems.append("its ids leave gaps")
    if tuple(tokens[:4]) != _FIRST or tokens[-1] != _LAST:
        problems.append(f"{', '.join(_FIRST)} must come first and {_LAST} last")
    if any(byte not in vocab for byte in alphabet):
        problems.append("it has not a token for each byte")
    if problems:
        raise UsageError(f"fairseq's dict.txt cannot hold this vocabulary: {'; '.join(problems)}")
    rows = tokens[4:-1]
    encoder = {token: i for i, token in enumerate(dict.fromkeys(_numbered(alphabet, merges, rows)))}
    lines = [
        f"{token if token.startswith(_FILLER) else encoder[token]} {len(rows) - i}"
        for i, token in enumerate(rows)
    ]
    bpe = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "encoder.json").write_text(json.dumps(encoder), encoding="utf-8")
    (folder / "vocab.bpe").write_text("\n".join(bpe) + "\n", encoding="utf-8")
    (folder / "dict.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _numbered(alphabet, merges, rows) -> list[str]:
    """The tokens in the order of GPT-2's ids."""
    rest = [token for token in rows if not token.startswith(_FILLER)]
    return [*alphabet, *("".join(pair) for pair in merges), *rest]


def _alphabet() -> list[str]:
    """GPT-2's letters for the 256 bytes, in the order of its ids: printable ones first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(others)]
