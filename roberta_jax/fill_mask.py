"""Predicts masked tokens: `python -m roberta_jax.fill_mask FOLDER "text with <mask>"`.

FOLDER is the workdir of a finished training run, a folder in Hugging Face's format, or a hub id
such as roberta-base. Without texts, each line of standard input is a text, in UTF-8.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, BinaryIO, TextIO

from roberta_jax import cli
from roberta_jax.errors import UsageError
from roberta_jax.training.compilation_cache import use_compilation_cache


def fill_mask(
    folder: str | os.PathLike, texts: Sequence[str], top_k: int = 5
) -> list[list[list[dict[str, Any]]]]:
    """Loads a model and its tokenizer and predicts the masked tokens of texts.

    Returns:
      `top_k` predictions for each mask of each text; see `FillMask.predictions`.

    Raises:
      UsageError: There is no such model, or a text has no mask or too many tokens.
    """
    from roberta_jax.inference.fill_mask import FillMask
    from roberta_jax.inference.loading import load_masked_lm

    if top_k < 1:
        raise UsageError(f"top_k must be at least 1, not {top_k}")
    loaded = load_masked_lm(folder)
    return FillMask(loaded.model, loaded.params, loaded.tokenizer).predictions(texts, top_k)


def read_texts(stream: TextIO | BinaryIO) -> list[str]:
    """Reads one text per line, without empty lines.

    Raises:
      UsageError: A line is not UTF-8, or the stream cannot be read.
    """
    texts, number = [], 0
    try:
        for number, line in enumerate(stream, start=1):
            if isinstance(line, bytes):
                line = line.decode("utf-8-sig" if number == 1 else "utf-8")
            if line.strip():
                texts.append(line.rstrip("\r\n"))
    except UnicodeDecodeError as error:
        raise UsageError(
            f"line {number} of standard input is not UTF-8 ({error}). Convert it first, "
            "such as with: iconv -f LATIN1 -t UTF-8"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot read standard input: {error.strerror or error}") from None
    return texts


def _given_texts(texts: Sequence[str]) -> Sequence[str]:
    """The texts of the command line, or those on standard input."""
    for number, text in enumerate(texts, start=1):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise UsageError(f"text {number} is not UTF-8: {os.fsencode(text)!r:.80}") from None
    if texts or sys.stdin is None:
        return texts
    if sys.stdin.isatty():
        print("Type one text with <mask> per line, then Ctrl-D:", file=sys.stderr)
    return read_texts(getattr(sys.stdin, "buffer", sys.stdin))


def table(text: str, masks: Sequence[Sequence[dict[str, Any]]]) -> str:
    """Formats the predictions for one text, one table per mask."""
    lines = [text]
    for number, choices in enumerate(masks, start=1):
        if len(masks) > 1:
            lines.append(f"  mask {number} of {len(masks)}")
        width = max([len("token"), *(len(repr(choice["token_str"])) for choice in choices)])
        lines.append(f"  score   {'token':<{width}}  sequence")
        for choice in choices:
            token = repr(choice["token_str"])
            sequence = choice["sequence"].replace("\n", "\\n")
            lines.append(f"  {choice['score']:.4f}  {token:<{width}}  {sequence}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command. Wrong input is printed without a traceback, with exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m roberta_jax.fill_mask", description=__doc__)
    parser.add_argument(
        "folder", help="the workdir of a finished run, a folder in HF's format or a hub id"
    )
    parser.add_argument("texts", nargs="*", help="texts with <mask> (default: lines of stdin)")
    parser.add_argument("--top_k", type=int, default=5, help="predictions per mask (default: 5)")
    arguments = parser.parse_args(argv)
    with cli.usage_errors():
        texts = _given_texts(arguments.texts)
        if not texts:
            raise UsageError("no text: give a text that contains <mask>")
        use_compilation_cache()
        results = fill_mask(arguments.folder, texts, arguments.top_k)
        print("\n\n".join(table(text, masks) for text, masks in zip(texts, results, strict=True)))


if __name__ == "__main__":
    main()
