"""Inputs that are one run of lines: FULL-SENTENCES, DOC-SENTENCES, and single sentences.

These are fairseq's break modes `complete`, `complete_doc` and `eos` (`token_block_utils_fast.pyx`):
take whole lines until the next one does not fit; never cut a sentence. Where fairseq lets a line
that is longer than an input overflow it, here the line is cut into pieces of an input's length and
a rest, and the rest goes on like any other line.

All functions take one shard's ends as `TokenStore` has them, and give starts and lengths within it.

Letters in array names: S lines, D documents, N inputs.
"""

import array
import bisect

import numpy as np


def full_sentences(line_ends_S: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole lines, blank ones included, until the next does not fit; across documents.

    Args:
      line_ends_S: int64, ascending exclusive ends of the lines, in tokens; no line is empty.
      block: the most tokens an input takes.

    Returns:
      (starts, lengths), int64 [N].
    """
    ends_S = _cut_long_lines(line_ends_S, block)
    return _fill(ends_S, np.array([len(ends_S)]), np.zeros(1, np.int64), block)


def doc_sentences(
    line_ends_S: np.ndarray, document_ends_D: np.ndarray, block: int
) -> tuple[np.ndarray, np.ndarray]:
    """The same within each document, whose closing blank line is left out, as in fairseq.

    Args:
      line_ends_S: as for `full_sentences`; a document's last line is the blank one.
      document_ends_D: int64, exclusive ends of the documents, in tokens.
      block: the most tokens an input takes.
    """
    ends_S = _cut_long_lines(line_ends_S, block)
    blank_D = np.searchsorted(ends_S, document_ends_D)
    starts_D = np.append(0, document_ends_D[:-1])
    return _fill(ends_S, blank_D, starts_D, block)


def sentences(
    line_ends_S: np.ndarray, document_ends_D: np.ndarray, block: int
) -> tuple[np.ndarray, np.ndarray]:
    """Each line an input of its own, blank ones left out; arguments as for `doc_sentences`."""
    ends_S = _cut_long_lines(line_ends_S, block)
    lengths_S = np.diff(ends_S, prepend=0)
    text_S = np.ones(len(ends_S), bool)
    text_S[np.searchsorted(ends_S, document_ends_D)] = False
    return (ends_S - lengths_S)[text_S], lengths_S[text_S]


def _fill(
    ends_S: np.ndarray, stops_G: np.ndarray, starts_G: np.ndarray, block: int
) -> tuple[np.ndarray, np.ndarray]:
    """Fills inputs within each of G groups of lines.

    Args:
      ends_S: ends of the lines, none longer than `block`.
      stops_G: number of the line after each group's last; what lies between two groups is left out.
      starts_G: each group's first token.
      block: the most tokens an input takes.
    """
    view = memoryview(np.ascontiguousarray(ends_S))
    starts, stops = array.array("q"), array.array("q")
    # Each input's end depends on the one before, so this is a loop; a line has a token at least,
    # which bounds how far ahead to look.
    for stop, end in zip(stops_G.tolist(), starts_G.tolist(), strict=True):
        line = bisect.bisect_right(view, end)
        while line < stop:
            line = bisect.bisect_right(view, end + block, line, min(line + block, stop))
            starts.append(end)
            end = view[line - 1]
            stops.append(end)
    starts_N, stops_N = (
        np.frombuffer(x, np.int64) if x else np.zeros(0, np.int64) for x in (starts, stops)
    )
    return starts_N, stops_N - starts_N


def _cut_long_lines(line_ends_S: np.ndarray, block: int) -> np.ndarray:
    """Adds an end after each `block` tokens of a line that is longer than that."""
    lengths_S = np.diff(line_ends_S, prepend=0)
    long = np.flatnonzero(lengths_S > block)
    if not len(long):
        return line_ends_S
    cuts = (lengths_S[long] - 1) // block
    starts = np.repeat(line_ends_S[long] - lengths_S[long], cuts)
    number = np.arange(1, len(starts) + 1) - np.repeat(np.cumsum(cuts) - cuts, cuts)
    return np.sort(np.concatenate([line_ends_S, starts + number * block]), kind="stable")
