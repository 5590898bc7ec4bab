"""The exception for wrong input, and how its messages list names."""

from collections.abc import Sequence


class UsageError(ValueError):
    """Wrong input, with a message that says what is wrong and what to do about it.

    The commands print it on its own and exit with status 2; from Python it is an ordinary
    `ValueError`. Everything else that goes wrong keeps its traceback, because it is a bug.
    """


def listed(names: Sequence[str], most: int = 8) -> str:
    """Joins names for a message: the first `most` of them, and how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
