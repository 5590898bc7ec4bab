"""Which short inputs share a row, so that every format trains on about as many tokens a batch.

The paper grows the batch where a format's inputs are short (Liu et al. 2019, section 4.2); in
arrays of one shape the same is done by putting several inputs into a row.

A row begins with the longest input that is left, goes on with the next ones in the text while there
is much room, and ends with the longest that still fit. (Best fit with the longest first, the usual
rule, would leave the shortest for last: rows that are full by their number of inputs, not by their
tokens.)
"""

import numpy as np

# So many inputs are looked at together: neighbours in the text, to bound the memory.
WINDOW = 1 << 16


def share_rows(lengths: np.ndarray, seq_len: int, max_inputs: int) -> tuple[np.ndarray, np.ndarray]:
    """Puts inputs into rows.

    Args:
      lengths: int [N], each input's tokens with its `<s>` and separators; none above seq_len.
      seq_len: L, tokens in a row.
      max_inputs: M, the most inputs in a row.

    Returns:
      (order int64 [N], ends int64 [R]): row r holds the inputs order[ends[r - 1]:ends[r]], in the
      order of the text. Rows take the inputs of one window of `WINDOW` neighbours.
    """
    orders, ends = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for start in range(0, len(lengths), WINDOW):
        rows = _fill_rows(lengths[start : start + WINDOW], seq_len, max_inputs)
        orders.append(np.concatenate(rows) + start)
        ends.append(np.cumsum([len(row) for row in rows]) + start)
    return np.concatenate(orders), np.concatenate(ends)


def _fill_rows(lengths: np.ndarray, seq_len: int, max_inputs: int) -> list[list[int]]:
    longest_first = np.argsort(-np.asarray(lengths, np.int64), kind="stable").tolist()
    much = 2 * int(lengths.mean())
    lengths = lengths.tolist()
    left: list[list[int]] = [[] for _ in range(seq_len + 1)]  # by length, the last ones first
    for number in range(len(lengths) - 1, -1, -1):
        left[lengths[number]].append(number)
    there = sum(1 << length for length, numbers in enumerate(left) if numbers)
    used = bytearray(len(lengths))

    rows: list[list[int]] = []
    in_text = 0  # the first that may be left, in the order of the text
    for seed in longest_first:
        if used[seed]:
            continue
        row, room, number = [], seq_len, seed
        while True:
            used[number] = True
            row.append(number)
            room -= lengths[number]
            fitting = there & ((2 << room) - 1)
            # What is used was taken from the order of the text or from the lengths; the other of
            # the two forgets it here.
            while fitting:
                length = fitting.bit_length() - 1
                numbers = left[length]
                while numbers and used[numbers[-1]]:
                    numbers.pop()
                if numbers:
                    break
                there ^= 1 << length
                fitting ^= 1 << length
            if not fitting or len(row) == max_inputs:
                break
            number = numbers[-1]
            if room > much and len(row) < max_inputs - 1:
                while used[in_text]:
                    in_text += 1
                if lengths[in_text] <= room:
                    number = in_text
        row.sort()
        rows.append(row)
    return rows
