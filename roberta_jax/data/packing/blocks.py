"""Inputs of consecutive lines: FULL-SENTENCES, DOC-SENTENCES and single sentences.

These are fairseq's break modes `complete`, `complete_doc` and `eos` (`token_block_utils_fast.pyx`).
An input takes whole lines until the next one does not fit. There is one difference: in fairseq a
line that is longer than an input overflows it; here the line is cut into pieces of an input's
length and a rest, and the rest is treated like any other line.

A line is a sentence with its `</s>`, or the blank line, a lone `</s>`, that ends a document. All
functions take the ends of one shard's lines and documents, and return starts and lengths in tokens
from the start of the shard.

Letters in array names: S lines, D documents, N inputs.
"""

import array
import bisect

import numpy as np


def full_sentences(line_ends_S: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs of whole lines, blank ones included, that may cross document boundaries.

    Args:
      line_ends_S: int64, ascending exclusive ends of the lines, in tokens; no line is empty.
      block: Maximum number of tokens of an input.

    Returns:
      (starts, lengths), int64 [N].
    """
    ends_S = _cut_long_lines(line_ends_S, block)
    return _fill(ends_S, np.array([len(ends_S)]), np.zeros(1, np.int64), block)


def doc_sentences(
    line_ends_S: np.ndarray, document_ends_D: np.ndarray, block: int
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs of whole lines of one document, without its final blank line, as in fairseq.

    Args:
      line_ends_S: See `full_sentences`. The last line of a document is the blank one.
      document_ends_D: int64, exclusive ends of the documents, in tokens.
      block: Maximum number of tokens of an input.

    Returns:
      (starts, lengths), int64 [N].
    """
    ends_S = _cut_long_lines(line_ends_S, block)
    blank_D = np.searchsorted(ends_S, document_ends_D)
    starts_D = np.append(0, document_ends_D[:-1])
    return _fill(ends_S, blank_D, starts_D, block)


def sentences(
    line_ends_S: np.ndarray, document_ends_D: np.ndarray, block: int
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs of one line each, without blank lines; the arguments are those of `doc_sentences`."""
    ends_S = _cut_long_lines(line_ends_S, block)
    lengths_S = np.diff(ends_S, prepend=0)
    is_text_S = np.ones(len(ends_S), bool)
    is_text_S[np.searchsorted(ends_S, document_ends_D)] = False
    return (ends_S - lengths_S)[is_text_S], lengths_S[is_text_S]


def _fill(
    ends_S: np.ndarray, stops_G: np.ndarray, starts_G: np.ndarray, block: int
) -> tuple[np.ndarray, np.ndarray]:
    """Fills inputs with the lines of each of G groups. No input crosses groups.

    Args:
      ends_S: Ends of the lines, none longer than `block`.
      stops_G: The index of the line after each group's last. Lines between groups are left out.
      starts_G: Each group's first token.
      block: Maximum number of tokens of an input.

    Returns:
      (starts, lengths), int64 [N].
    """
    view = memoryview(np.ascontiguousarray(ends_S))
    starts, stops = array.array("q"), array.array("q")
    # Each input starts where the previous one ends, so this is a loop. A line has at least one
    # token, so an input has at most `block` lines, which bounds the binary search.
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
    """Returns the line ends, with an end added after every `block` tokens of longer lines."""
    lengths_S = np.diff(line_ends_S, prepend=0)
    long = np.flatnonzero(lengths_S > block)
    if not len(long):
        return line_ends_S
    cuts = (lengths_S[long] - 1) // block
    starts = np.repeat(line_ends_S[long] - lengths_S[long], cuts)
    number = np.arange(1, len(starts) + 1) - np.repeat(np.cumsum(cuts) - cuts, cuts)
    return np.sort(np.concatenate([line_ends_S, starts + number * block]), kind="stable")
