"""Lazy tensors: views, types and layouts."""

import numpy as np
import pytest

from roberta_jax.errors import UsageError
from roberta_jax.weights.tensors import ByteRange, LazyTensor


def test_views_agree_with_numpy(tmp_path):
    numbers = np.random.default_rng(0).normal(size=300 * 140).astype(np.float32)
    (tmp_path / "x").write_bytes(b"12345678" + numbers.tobytes())
    whole = LazyTensor((300, 140), "float32", tmp_path / "x", (ByteRange(8, numbers.nbytes),))
    expected = numbers.reshape(300, 140)
    strided = LazyTensor((2, 3), "float32", tmp_path / "x", (ByteRange(8 + 40, 4 * 43),), (20, 11))
    views = [
        (whole, expected),
        (whole.T, expected.T),
        (whole.rows(100, 200), expected[100:200]),
        (whole.rows(100, 200).T, expected[100:200].T),
        (strided, np.lib.stride_tricks.as_strided(numbers[10:], (2, 3), (80, 44))),
        (LazyTensor((3, 2), "float32"), np.zeros((3, 2), np.float32)),
    ]
    for view, array in views:
        np.testing.assert_array_equal(view.read(), array)
        for dtype in (np.float32, np.float64, np.float16):
            for order in "CF":
                buffer = np.empty(array.shape, dtype, order)
                view.read_into(buffer)
                np.testing.assert_array_equal(buffer, array.astype(dtype))


def test_a_file_that_was_cut_after_it_was_opened_is_an_error(tmp_path):
    (tmp_path / "x").write_bytes(bytes(40))
    tensor = LazyTensor((20,), "float32", tmp_path / "x", (ByteRange(0, 80),))
    with pytest.raises(UsageError, match="cut short"):
        tensor.read()
