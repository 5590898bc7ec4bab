"""Splits documents into sentences: first into paragraphs, then with sentencex within each.

Line breaks have different meanings. In dumps of encyclopedias each line is a paragraph or a
headline. Books and docstrings wrap prose at some 70 to 80 columns, and contain verse, tables and
code. Joining all lines would join headlines to prose; splitting at every line break would cut
sentences. Therefore a line break counts as a wrap only if the first word of the next line would not
have fit into the line. Lines longer than any wrap column are paragraphs.
"""

import itertools
import re
from collections.abc import Iterator

import sentencex

from roberta_jax.errors import UsageError

MODES = ("split", "lines")

# The longest line of wrapped text is in this range of columns.
_MIN_WIDTH, _MAX_WIDTH = 40, 120
# Number of columns by which a wrapped line may be too short. With 8, 97% of the line breaks inside
# sentences of the standard library's docstrings are recognized as wraps; with 0 only 90%, and with
# 20 much code is joined as well.
_SLACK = 8
_WIDE_SPACE = re.compile(r"[^\S\x00-\x7f]")
# Characters per call of sentencex, whose time is quadratic for paragraphs of over some 100,000.
_WINDOW = 1 << 15


def check_splitting(mode: str, language: str) -> None:
    """Checks the two options of sentence splitting.

    Languages that sentencex has no rules for use its default rules, which know the sentence ends of
    all scripts but no abbreviations.

    Args:
      mode: `config.data.sentences`, one of `MODES`.
      language: `config.data.language`, a code such as "en" or "pt-br".

    Raises:
      UsageError: The mode is unknown, or the language is not a language code.
    """
    if mode not in MODES:
        raise UsageError(
            f"--config.data.sentences is {mode!r}, but it must be 'split' (find the sentences) or "
            f"'lines' (each line of a document is a sentence)."
        )
    if mode == "split" and not re.fullmatch(r"[a-z]{2,3}([-_][A-Za-z0-9]+)*", language):
        raise UsageError(
            f"--config.data.language is {language!r}, but it must be a code of two or three "
            f"lowercase letters, such as 'en', 'de' or 'zh'."
        )


def split_sentences(text: str, mode: str, language: str) -> list[str]:
    """Splits a document into stripped, non-empty sentences without line breaks.

    Args:
      text: The document.
      mode: "split", or "lines" if each line is a sentence already.
      language: The language code, for "split".
    """
    if mode == "lines":
        sentences = (line.strip() for line in text.replace("\r", "\n").split("\n"))
    else:
        sentences = (
            sentence.strip()
            for paragraph in _paragraphs(text)
            for sentence in _segment(paragraph, language)
        )
    return [sentence for sentence in sentences if sentence]


def _paragraphs(text: str) -> Iterator[str]:
    """Yields paragraphs without line breaks; wrapped lines are joined by spaces."""
    block: list[str] = []
    for line in text.splitlines():
        if line and not line.isspace():
            block.append(line.rstrip())
        elif block:
            yield from _unwrap(block)
            block = []
    if block:
        yield from _unwrap(block)


def _unwrap(lines: list[str]) -> Iterator[str]:
    """Joins the wrapped lines of a block of non-blank lines."""
    width = max(map(len, lines)) if len(lines) > 1 else 0
    if not _MIN_WIDTH <= width <= _MAX_WIDTH:
        yield from lines
        return
    joined = [lines[0]]
    for line, next_line in itertools.pairwise(lines):
        is_wrap = len(line) + 1 + len(next_line.split(None, 1)[0]) > width - _SLACK
        if not is_wrap:
            yield " ".join(joined)
            joined = []
        joined.append(next_line.lstrip())
    yield " ".join(joined)


def _segment(paragraph: str, language: str) -> Iterator[str]:
    """Yields the sentences of a paragraph, in time linear in its length."""
    start = 0
    while len(paragraph) - start > _WINDOW:
        sentences = _call_sentencex(paragraph[start : start + _WINDOW], language)
        # The last sentence may continue after the window. A window of one sentence is used whole.
        complete = sentences[:-1] or sentences
        yield from complete
        start += sum(map(len, complete))
    yield from _call_sentencex(paragraph[start:], language)


def _call_sentencex(text: str, language: str) -> list[str]:
    """Splits a text with sentencex. The concatenated sentences are the text."""
    # sentencex 1.0.32 assumes that each space is one byte and panics on "I\u202f.". It therefore
    # gets the text with plain spaces, and the lengths of its sentences are used to cut the text.
    plain = text if text.isascii() else _WIDE_SPACE.sub(" ", text)
    try:
        sentences = sentencex.segment(language, plain)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of pyo3; it cannot be imported
            raise
        return [text]  # one long sentence does less harm than an aborted run
    if plain is text:
        return sentences
    ends = list(itertools.accumulate(map(len, sentences), initial=0))
    return [text[start:end] for start, end in itertools.pairwise(ends)]
