"""Words, and spans of words: what masking may choose in place of single tokens.

All words of a batch stand in one list, in reading order, whatever row or input they are from; so
do the spans. A group is one input of one row. Letters in array names: B rows, L positions in a
row, M inputs in a row, K slots for masked positions, W words, U units (words or spans), T tokens.
"""

from typing import NamedTuple

import numpy as np

_SHIFT = np.uint64(32)


class Units(NamedTuple):
    """Runs of tokens, one after the other.

    Attributes:
      starts: int64 [U], flat index of the first token, ascending.
      lengths: int64 [U], tokens.
      groups: int64 [U], row * M + input.
    """

    starts: np.ndarray
    lengths: np.ndarray
    groups: np.ndarray

    def where(self, chosen_U: np.ndarray) -> "Units":
        """Those that a boolean array marks."""
        places = np.flatnonzero(chosen_U)  # found once: faster than a boolean index for each array
        return Units(*(np.take(array, places) for array in self))


def find_words(
    ids_BL: np.ndarray,
    inputs_BL: np.ndarray,
    usable_BL: np.ndarray,
    max_inputs: int,
    word_starts: np.ndarray,
    is_special: np.ndarray,
) -> tuple[Units, np.ndarray]:
    """Lists the words whose first token is usable.

    fairseq glues a line's first word, which has no space before it, to the `</s>` in front; here a
    special token is a word of its own, and what follows it or opens an input starts another.

    Args:
      ids_BL: token ids.
      inputs_BL: which of the row's inputs, max_inputs for padding.
      usable_BL: bool, whether a token may be masked.
      max_inputs: M.
      word_starts, is_special: bool, by token id.

    Returns:
      The words, and bool [W], True where a word does not go on from the one before it: at the start
      of an input, at a special token and after one.
    """
    special_BL = is_special[ids_BL]
    breaks_BL = special_BL.copy()
    breaks_BL[:, 0] = True
    breaks_BL[:, 1:] |= special_BL[:, :-1] | (inputs_BL[:, 1:] != inputs_BL[:, :-1])
    starts_W = np.flatnonzero(word_starts[ids_BL] | breaks_BL)
    groups_W = starts_W // ids_BL.shape[1] * max_inputs + np.take(inputs_BL, starts_W)
    words = Units(starts_W, np.diff(starts_W, append=ids_BL.size), groups_W)
    usable_W = np.take(usable_BL, starts_W)
    return words.where(usable_W), np.take(breaks_BL, starts_W)[usable_W]


def span_lengths(p: float, longest: int, noise_W: np.ndarray, breaks_W: np.ndarray) -> np.ndarray:
    """int64 [W]: draws of Geo(p), which is 1 with probability p, given that it is at most longest.

    At a break stands what is left of a span that began before it: were a whole span to start at
    each break, the words after it would be covered by fewer spans than others, and masked more
    often. P(r left) is proportional to P(length >= r).

    Args:
      p: in (0, 1].
      longest: the largest length.
      noise_W: uint32, uniform.
      breaks_W: bool, see `join_words`.
    """
    whole = np.cumprod(np.r_[p, np.full(longest - 1, 1 - p)])
    left = np.cumsum(whole[::-1])[::-1]
    lengths_W = np.empty(len(noise_W), np.int64)
    for weights, mine in ((whole, ~breaks_W), (left, breaks_W)):
        up_to = np.cumsum(weights)
        limits = np.array([round(x * 2**32) for x in up_to[:-1] / up_to[-1]], np.uint64)
        lengths_W[mine] = 1 + np.searchsorted(limits, noise_W[mine], side="right")
    return lengths_W


def join_words(words: Units, breaks_W: np.ndarray, lengths_W: np.ndarray) -> Units:
    """Lays words into consecutive spans that together hold every word once.

    Args:
      words: as `find_words` lists them.
      breaks_W: bool, words that no span may join with the one before.
      lengths_W: how many words a span has that starts at this one; it ends earlier at a break.
    """
    # From each break on, a span's length says where the next one starts: all chains at once.
    opens_W = breaks_W.copy()
    here = np.flatnonzero(breaks_W)
    ends = np.append(here[1:], len(breaks_W))
    while len(here):
        opens_W[here] = True
        here = here + lengths_W[here]
        inside = here < ends
        here, ends = here[inside], ends[inside]
    first_U = np.flatnonzero(opens_W)
    total_W = np.append(0, np.cumsum(words.lengths))
    lengths_U = np.diff(total_W[first_U], append=total_W[-1])
    return Units(words.starts[first_U], lengths_U, words.groups[first_U])


def draw(
    units: Units, keys_BL: np.ndarray, position_bits: np.uint32, counts_BM: np.ndarray, *, cut: bool
) -> Units:
    """Takes each group's units in random order while they fit into the group's count of tokens.

    Args:
      units: to choose from.
      keys_BL: uint32, a random number for each token, with its position in the low bits.
      position_bits: which bits these are.
      counts_BM: the most tokens of each group.
      cut: whether the first unit that does not fit is taken as far as it does.

    Returns:
      The chosen units, in no particular order.
    """
    seq_len, max_inputs = keys_BL.shape[1], counts_BM.shape[1]
    length_at = np.zeros(keys_BL.size, np.int64)
    length_at[units.starts] = units.lengths
    order_U = (units.groups.astype(np.uint64) << _SHIFT) | np.take(keys_BL, units.starts)
    order_U.sort()
    groups_U = (order_U >> _SHIFT).astype(np.int64)
    starts_U = groups_U // max_inputs * seq_len + (order_U & position_bits).astype(np.int64)
    lengths_U = length_at[starts_U]

    # Tokens of the group's units before each one.
    before_U = np.cumsum(lengths_U) - lengths_U
    is_first_U = np.diff(groups_U, prepend=-1) != 0
    sizes = np.diff(np.flatnonzero(is_first_U), append=len(groups_U))
    before_U -= np.repeat(before_U[is_first_U], sizes)
    left_U = np.take(counts_BM, groups_U) - before_U
    if cut:
        drawn = Units(starts_U, np.minimum(lengths_U, left_U), groups_U)
        return drawn.where(left_U > 0)
    return Units(starts_U, lengths_U, groups_U).where(lengths_U <= left_U)


def fill_slots(
    units: Units, num_rows: int, seq_len: int, num_slots: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lists the units' tokens by row.

    Returns:
      (positions int32, starts of their units int32, used bool), each [B, K]: positions ascending,
      unused slots last.
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
