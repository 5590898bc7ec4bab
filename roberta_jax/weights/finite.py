"""Finds weights that are not finite, such as those of a run that diverged.

The check is exact and costs little more than reading the memory once: the sum of numbers is NaN or
infinite if one of them is. Sums can overflow as well, so that only where one is not finite the
numbers are looked at one by one.
"""

import numpy as np

from roberta_jax.errors import UsageError

# Bits of the exponents of the 16-bit types. If all are set, the number is NaN or infinite.
_EXPONENTS = {"float16": 0x7C00, "bfloat16": 0x7F80}
_CHUNK = 1 << 20  # elements; the temporary arrays stay in the cache


def count_not_finite(array: np.ndarray) -> int:
    """The number of NaN and infinite elements of a floating array, in any memory layout."""
    flat = array.ravel(order="K")  # a view, unless the array has gaps
    return sum(_count(flat[i : i + _CHUNK]) for i in range(0, flat.size, _CHUNK))


def check_before_saving(name: str, array: np.ndarray) -> None:
    """Raises a UsageError if the parameters of this name are not finite."""
    count = count_not_finite(array)
    if count:
        raise UsageError(
            f"the parameters are not saved: {count} of the {array.size} values of {name} are NaN "
            "or infinite. The training that made them has diverged, or a conversion to a narrower "
            "type has overflowed"
        )


def _count(chunk: np.ndarray) -> int:
    exponent = _EXPONENTS.get(chunk.dtype.name)
    if exponent is not None:
        # Integers: NumPy converts each number of these types to float32, which takes far longer.
        return int(np.count_nonzero((chunk.view(np.uint16) & exponent) == exponent))
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.add.reduce(chunk)
    return 0 if np.isfinite(total) else int(np.count_nonzero(~np.isfinite(chunk)))
