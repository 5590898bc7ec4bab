"""Tests of rows shared by inputs: each input is in one row, and rows are nearly full."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from roberta_jax.data.packing import row_sharing
from roberta_jax.data.packing.row_sharing import share_rows

SEQ_LEN = 32
lengths = st.lists(st.integers(1, SEQ_LEN), max_size=120)


def rows_of(lengths, max_inputs=16):
    order, ends = share_rows(np.array(lengths, np.int64), SEQ_LEN, max_inputs)
    assert order.dtype == ends.dtype == np.int64
    return [row.tolist() for row in np.split(order, ends[:-1])] if len(ends) else []


def reference_rows(lengths, max_inputs):
    """The rule of `share_rows` in plain Python."""
    left, rows = list(range(len(lengths))), []

    def longest(numbers):
        return max(numbers, key=lambda number: (lengths[number], -number))

    while left:
        number, row = longest(left), []
        while number is not None:
            left.remove(number)
            row.append(number)
            room = SEQ_LEN - sum(lengths[i] for i in row)
            fitting = [i for i in left if lengths[i] <= room]
            number = None
            if fitting and len(row) < max_inputs:
                number = longest(fitting)
                is_last = len(row) == max_inputs - 1
                if room > 2 * (sum(lengths) // len(lengths)) and not is_last and left[0] in fitting:
                    number = left[0]
        rows.append(sorted(row))
    return rows


@given(lengths, st.integers(1, 16))
@settings(max_examples=300, deadline=None)
def test_every_input_is_in_one_row_that_fits(lengths, max_inputs):
    rows = rows_of(lengths, max_inputs)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    for row in rows:
        assert 1 <= len(row) <= max_inputs
        assert sum(lengths[i] for i in row) <= SEQ_LEN
        assert row == sorted(row)  # in the order of the text


@given(lengths, st.integers(1, 16))
@settings(max_examples=300, deadline=None)
def test_rows_equal_the_reference(lengths, max_inputs):
    assert rows_of(lengths, max_inputs) == reference_rows(lengths, max_inputs)


def test_by_hand():
    # The mean is 7.6, so more than 14 is much room. The first row is 20, which leaves 12, and the
    # input of 12. The second is 9, then 3, 4 and 6 in the order of the text, which leave 10, and
    # then the longest that fit, 5 and 2.
    assert rows_of([3, 4, 20, 9, 6, 12, 5, 2]) == [[2, 5], [0, 1, 3, 4, 6, 7]]
    assert rows_of([1] * 20, max_inputs=8) == [[*range(8)], [*range(8, 16)], [*range(16, 20)]]
    assert rows_of([32, 32]) == [[0], [1]]
    assert rows_of([]) == []


def test_rows_do_not_cross_windows(monkeypatch):
    monkeypatch.setattr(row_sharing, "WINDOW", 10)
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 20, 95)
    rows = rows_of(lengths)
    assert sorted(i for row in rows for i in row) == list(range(95))
    assert all(len({i // 10 for i in row}) == 1 for row in rows)
    assert [i // 10 for row in rows for i in row] == sorted(i // 10 for i in range(95))


@pytest.mark.parametrize(("most", "bound"), [(32, 0.01), (16, 0.002), (4, 0.01)])
def test_rows_have_little_padding(most, bound):
    lengths = np.random.default_rng(1).integers(1, most + 1, 20_000)
    rows = rows_of(lengths)
    assert 0 <= 1 - lengths.sum() / (len(rows) * SEQ_LEN) < bound
