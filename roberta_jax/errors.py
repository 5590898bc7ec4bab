"""The exceptions for wrong user input, and a helper that lists names in its messages."""

from collections.abc import Sequence


class UsageError(ValueError):
    """Wrong user input: a flag, a config value, a file or a model that cannot be used.

    The message says what is wrong and how to correct it. Commands print the message without a
    traceback and exit with status 2. In Python it is an ordinary `ValueError`. All other exceptions
    are bugs and keep their traceback.
    """


class NotFoundError(UsageError, FileNotFoundError):
    """A folder, a file or a hub id that does not exist.

    It is an `OSError` as well, which is what transformers' `from_pretrained` raises.
    """


def listed(names: Sequence[str], most: int = 8) -> str:
    """Joins the first `most` names with commas and appends how many are left out."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
