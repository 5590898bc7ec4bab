"""From a document to its sentences: paragraphs first, then sentencex within each.

What a line break means differs. An encyclopedia's dump has a paragraph on each line, a headline on
a line of its own; books and docstrings break prose at some 70 to 80 columns, and put verse, tables
and code between. Joining all lines would glue headlines to prose, splitting at all of them would
cut sentences. So a line break is taken as a mere wrap where it was needed: where the next line's
first word would not have fit. Lines longer than any hard wrap are paragraphs of their own.
"""

import itertools
import re
from collections.abc import Iterator

import sentencex

from roberta_jax.errors import UsageError

HOW = ("split", "lines")

# Hard-wrapped text has its longest line in this range of columns.
_NARROWEST, _WIDEST = 40, 120
# People wrap by hand, up to so many columns early. Of the breaks inside sentences in the standard
# library's docstrings 97% are then seen as wraps; 0 would see 90%, 20 would join much code as well.
_SLACK = 8
_WIDE_SPACE = re.compile(r"[^\S\x00-\x7f]")
# sentencex's time grows with the square of a paragraph's length, from some 100 thousand characters.
_WINDOW = 1 << 15


def check_splitting(how: str, language: str) -> None:
    """Checks the two settings that decide how documents are split.

    A well-formed language that sentencex has no rules for is split by its default ones, which know
    the sentence ends of all scripts but no abbreviations of that language.

    Raises:
      UsageError: `how` is none of `HOW`, or `language` is no code such as "en" or "pt-br".
    """
    if how not in HOW:
        raise UsageError(
            f"config.data.sentences is {how!r}; it takes 'split' (find the sentences) or 'lines' "
            f"(each line of a document is a sentence)."
        )
    if how == "split" and not re.fullmatch(r"[a-z]{2,3}([-_][A-Za-z0-9]+)*", language):
        raise UsageError(
            f"config.data.language is {language!r}; it takes a code of two or three small letters, "
            f"such as 'en', 'de' or 'zh'."
        )


def split_sentences(text: str, how: str, language: str) -> list[str]:
    """Splits a document into stripped, non-empty sentences without line breaks.

    Args:
      text: The document.
      how: "split", or "lines" where each line is a sentence already.
      language: Code of the language, for "split".
    """
    if how == "lines":
        sentences = (line.strip() for line in text.replace("\r", "\n").split("\n"))
    else:
        sentences = (
            sentence.strip()
            for paragraph in _paragraphs(text)
            for sentence in _segment(paragraph, language)
        )
    return [sentence for sentence in sentences if sentence]


def _paragraphs(text: str) -> Iterator[str]:
    """Yields paragraphs: no line breaks inside, wrapped lines joined by a space."""
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
    """Joins those lines of a block (no blank ones among them) that were one before wrapping."""
    width = max(map(len, lines)) if len(lines) > 1 else 0
    if not _NARROWEST <= width <= _WIDEST:
        yield from lines
        return
    joined = [lines[0]]
    for line, following in itertools.pairwise(lines):
        needed = len(line) + 1 + len(following.split(None, 1)[0]) > width - _SLACK
        if not needed:
            yield " ".join(joined)
            joined = []
        joined.append(following.lstrip())
    yield " ".join(joined)


def _segment(paragraph: str, language: str) -> Iterator[str]:
    """Yields the sentences of a paragraph of any length in time linear in it."""
    start = 0
    while len(paragraph) - start > _WINDOW:
        found = _find(paragraph[start : start + _WINDOW], language)
        # The last sentence may go on behind the window; a window without an end is cut as it is.
        complete = found[:-1] or found
        yield from complete
        start += sum(map(len, complete))
    yield from _find(paragraph[start:], language)


def _find(text: str, language: str) -> list[str]:
    """Calls sentencex; the sentences, end to end, are the text again."""
    # sentencex 1.0.32 takes each space for one byte: "I\u202f." makes it panic. So it sees the text
    # with plain spaces, and the sentences are cut from the text by their lengths.
    plain = text if text.isascii() else _WIDE_SPACE.sub(" ", text)
    try:
        found = sentencex.segment(language, plain)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # pyo3's; it cannot be imported
            raise
        return [text]  # one long sentence is better than days of preparing lost
    if plain is text:
        return found
    ends = list(itertools.accumulate(map(len, found), initial=0))
    return [text[start:end] for start, end in itertools.pairwise(ends)]
