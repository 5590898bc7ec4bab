"""Words and spans of words, the units of whole-word and span masking.

The words of all rows and inputs are in one list, in reading order, and so are the spans. A group is
one input of one row. A flat index is row * L + position.

Letters in array names: B rows, L positions in a row, M inputs in a row, K slots for masked
positions, W words, U units (words or spans), T tokens.
"""

from typing import NamedTuple

import numpy as np

_SHIFT = np.uint64(32)


class Units(NamedTuple):
    """Units of consecutive tokens.

    Attributes:
      starts: int64 [U], flat index of each unit's first token.
      lengths: int64 [U], number of tokens.
      groups: int64 [U], row * M + input.
    """

    starts: np.ndarray
    lengths: np.ndarray
    groups: np.ndarray

    def where(self, chosen_U: np.ndarray) -> "Units":
        """The units for which a boolean array is True."""
        indices = np.flatnonzero(chosen_U)  # faster than a boolean index for each array
        return Units(*(np.take(array, indices) for array in self))


def find_words(
    ids_BL: np.ndarray,
    inputs_BL: np.ndarray,
    maskable_BL: np.ndarray,
    max_inputs: int,
    word_starts: np.ndarray,
    is_special: np.ndarray,
) -> tuple[Units, np.ndarray]:
    """Lists the words whose first token may be masked.

    A special token is a word by itself, and a new word starts after it and at the start of an
    input. (fairseq treats the `</s>` before a line and the line's first word, which has no space in
    front, as one word.)

    Args:
      ids_BL: Token ids.
      inputs_BL: The number of the input at each position, max_inputs for padding.
      maskable_BL: bool, True for tokens that may be masked.
      max_inputs: M.
      word_starts: bool [vocab_size], True for tokens that start a word.
      is_special: bool [vocab_size], True for special tokens.

    Returns:
      The words in ascending order, and breaks bool [W]: True for a word that does not continue the
      text of the previous word, because it is at the start of an input, is a special token or
      follows one. A span never extends across a break.
    """
    special_BL = is_special[ids_BL]
    breaks_BL = special_BL.copy()
    breaks_BL[:, 0] = True
    breaks_BL[:, 1:] |= special_BL[:, :-1] | (inputs_BL[:, 1:] != inputs_BL[:, :-1])
    starts_W = np.flatnonzero(word_starts[ids_BL] | breaks_BL)
    groups_W = starts_W // ids_BL.shape[1] * max_inputs + np.take(inputs_BL, starts_W)
    words = Units(starts_W, np.diff(starts_W, append=ids_BL.size), groups_W)
    maskable_W = np.take(maskable_BL, starts_W)
    return words.where(maskable_W), np.take(breaks_BL, starts_W)[maskable_W]


def span_lengths(
    p: float, max_length: int, noise_W: np.ndarray, breaks_W: np.ndarray
) -> np.ndarray:
    """Draws the length of the span that would start at each word.

    The lengths follow Geo(p), truncated at `max_length`: P(n) is proportional to p * (1 - p)^(n-1).

    At a break the rest of a span that started earlier is drawn instead, with P(r words left)
    proportional to P(length >= r). If a whole span started at each break, the words after a break
    would have fewer possible spans than other words and would be masked more often.

    Args:
      p: In (0, 1].
      max_length: The maximum length.
      noise_W: uint32, uniform.
      breaks_W: bool, see `find_words`.

    Returns:
      int64 [W], lengths in words.
    """
    whole = np.cumprod(np.r_[p, np.full(max_length - 1, 1 - p)])
    rest = np.cumsum(whole[::-1])[::-1]
    lengths_W = np.empty(len(noise_W), np.int64)
    for weights, selected_W in ((whole, ~breaks_W), (rest, breaks_W)):
        cumulative = np.cumsum(weights)
        limits = np.array([round(x * 2**32) for x in cumulative[:-1] / cumulative[-1]], np.uint64)
        lengths_W[selected_W] = 1 + np.searchsorted(limits, noise_W[selected_W], side="right")
    return lengths_W


def join_words(words: Units, breaks_W: np.ndarray, lengths_W: np.ndarray) -> Units:
    """Divides the words into consecutive spans; each word is in exactly one span.

    Args:
      words: See `find_words`.
      breaks_W: bool, see `find_words`.
      lengths_W: For each word, the number of words in a span that starts there. The span is shorter
        if a break comes earlier.

    Returns:
      The spans in ascending order.
    """
    # A span's length says where the next span starts. The loop follows all breaks in parallel.
    starts_span_W = breaks_W.copy()
    current = np.flatnonzero(breaks_W)
    ends = np.append(current[1:], len(breaks_W))
    while len(current):
        starts_span_W[current] = True
        current = current + lengths_W[current]
        inside = current < ends
        current, ends = current[inside], ends[inside]
    first_U = np.flatnonzero(starts_span_W)
    token_offsets = np.append(0, np.cumsum(words.lengths))
    lengths_U = np.diff(token_offsets[first_U], append=token_offsets[-1])
    return Units(words.starts[first_U], lengths_U, words.groups[first_U])


def draw(
    units: Units,
    keys_BL: np.ndarray,
    position_mask: np.uint32,
    counts_BM: np.ndarray,
    *,
    truncate: bool,
) -> Units:
    """Chooses each group's units in random order while they fit into the group's token count.

    Args:
      units: The units to choose from.
      keys_BL: uint32, a random number for each token, with its position in the low bits.
      position_mask: Bit mask of these low bits.
      counts_BM: Maximum number of tokens of each group.
      truncate: Whether the first unit that does not fit is truncated to what does, or left out.

    Returns:
      The chosen units, by group and in random order within a group.
    """
    seq_len, max_inputs = keys_BL.shape[1], counts_BM.shape[1]
    length_at = np.zeros(keys_BL.size, np.int64)
    length_at[units.starts] = units.lengths
    order_U = (units.groups.astype(np.uint64) << _SHIFT) | np.take(keys_BL, units.starts)
    order_U.sort()
    groups_U = (order_U >> _SHIFT).astype(np.int64)
    starts_U = groups_U // max_inputs * seq_len + (order_U & position_mask).astype(np.int64)
    lengths_U = length_at[starts_U]

    # Number of tokens in the earlier units of the same group.
    before_U = np.cumsum(lengths_U) - lengths_U
    is_first_U = np.diff(groups_U, prepend=-1) != 0
    sizes = np.diff(np.flatnonzero(is_first_U), append=len(groups_U))
    before_U -= np.repeat(before_U[is_first_U], sizes)
    remaining_U = np.take(counts_BM, groups_U) - before_U
    if truncate:
        truncated = Units(starts_U, np.minimum(lengths_U, remaining_U), groups_U)
        return truncated.where(remaining_U > 0)
    return Units(starts_U, lengths_U, groups_U).where(lengths_U <= remaining_U)


def fill_slots(
    units: Units, num_rows: int, seq_len: int, num_slots: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lists the units' tokens by row.

    Returns:
      (positions int32, positions of their units' first tokens int32, used bool), each [B, K]. The
      positions are ascending; unused slots come last.
    """
    unit_T = np.repeat(units.starts, units.lengths)
    first_T = np.repeat(np.cumsum(units.lengths) - units.lengths, units.lengths)
    flat_T = unit_T + np.arange(len(unit_T)) - first_T
    order_T = np.argsort(flat_T, kind="stable")
    flat_T, unit_T = flat_T[order_T], unit_T[order_T]
    row_T = flat_T // seq_len
    slot_T = np.arange(len(row_T)) - np.searchsorted(row_T, row_T)
    positions_BK, units_BK = np.zeros((2, num_rows, num_slots), np.int32)
    used_BK = np.zeros((num_rows, num_slots), bool)
    positions_BK[row_T, slot_T] = flat_T % seq_len
    units_BK[row_T, slot_T] = unit_T % seq_len
    used_BK[row_T, slot_T] = True
    return positions_BK, units_BK, used_BK
