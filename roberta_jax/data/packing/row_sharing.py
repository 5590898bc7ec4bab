"""Assigns short inputs to shared rows, so that batches of all formats hold about as many tokens.

The paper uses larger batches for formats with short inputs (Liu et al. 2019, section 4.2). With
arrays of a fixed shape, several inputs share a row instead.

A row starts with the longest remaining input. While much room is left, it takes the next inputs in
the order of the text. Then it takes the longest inputs that still fit. (The usual rule, best-fit
decreasing, would leave the shortest inputs for the last rows, which would reach the maximum number
of inputs while much of the row is padding.)
"""

import numpy as np

WINDOW = 1 << 16  # inputs, consecutive in the text, that are packed together; this bounds memory


def share_rows(lengths: np.ndarray, seq_len: int, max_inputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Assigns inputs to rows.

    Args:
      lengths: int [N], number of tokens of each input with its special tokens; at most seq_len.
      seq_len: L, tokens in a row.
      max_inputs: M, the maximum number of inputs in a row.

    Returns:
      (order int64 [N], ends int64 [R]): row r holds the inputs order[ends[r - 1]:ends[r]], in the
      order of the text. All inputs of a row are from the same window of `WINDOW` inputs.
    """
    orders, ends = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for start in range(0, len(lengths), WINDOW):
        rows = _fill_rows(lengths[start : start + WINDOW], seq_len, max_inputs)
        orders.append(np.concatenate(rows) + start)
        ends.append(np.cumsum([len(row) for row in rows]) + start)
    return np.concatenate(orders), np.concatenate(ends)


def _fill_rows(lengths: np.ndarray, seq_len: int, max_inputs: int) -> list[list[int]]:
    """Returns the indices of the inputs of each row."""
    longest_first = np.argsort(-np.asarray(lengths, np.int64), kind="stable").tolist()
    much_room = 2 * int(lengths.mean())
    lengths = lengths.tolist()
    # The remaining inputs by length, and a bit mask of the lengths that have any. Each list is
    # reversed, so that its last element is the first in the text.
    by_length: list[list[int]] = [[] for _ in range(seq_len + 1)]
    for index in range(len(lengths) - 1, -1, -1):
        by_length[lengths[index]].append(index)
    available = sum(1 << length for length, indices in enumerate(by_length) if indices)
    used = bytearray(len(lengths))

    rows: list[list[int]] = []
    next_in_text = 0  # no input before this one remains
    for first in longest_first:
        if used[first]:
            continue
        row, room, index = [], seq_len, first
        while True:
            used[index] = True
            row.append(index)
            room -= lengths[index]
            fitting = available & ((2 << room) - 1)
            # Find the longest input that fits. Used inputs are removed from `by_length` only here.
            while fitting:
                length = fitting.bit_length() - 1
                indices = by_length[length]
                while indices and used[indices[-1]]:
                    indices.pop()
                if indices:
                    break
                available ^= 1 << length
                fitting ^= 1 << length
            if not fitting or len(row) == max_inputs:
                break
            index = indices[-1]
            if room > much_room and len(row) < max_inputs - 1:
                while used[next_in_text]:
                    next_in_text += 1
                if lengths[next_in_text] <= room:
                    index = next_in_text
        row.sort()
        rows.append(row)
    return rows
