"""The exceptions for wrong user input, and functions that shorten what its messages name."""

from collections.abc import Sequence

# Environment variable: a file that a command writes when it ends with status 2, but may succeed if
# it is started again as it is, because another process of the run was lost or an object store could
# not be reached. Supervisors set it.
RESTART_FILE = "ROBERTA_JAX_RESTART_FILE"


class UsageError(ValueError):
    """Wrong user input: a flag, a config value, a file or a model that cannot be used.

    The message says what is wrong and how to correct it. Commands print the message without a
    traceback and exit with status 2. In Python it is an ordinary `ValueError`. All other exceptions
    are bugs and keep their traceback.

    Attributes:
      restart: whether the same command may succeed if it is started again (see `RESTART_FILE`).
    """

    restart = False


class NotFoundError(UsageError, FileNotFoundError):
    """A folder, a file or a hub id that does not exist.

    It is an `OSError` as well, which is what transformers' `from_pretrained` raises.
    """


class StoreUnavailable(UsageError):
    """An object store that cannot be reached, or failed, at the moment."""

    restart = True


def listed(names: Sequence[str], most: int = 8) -> str:
    """Joins the first `most` names with commas and appends how many are left out."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def shortened(text: str, most: int = 80) -> str:
    """Returns the text, or its beginning and its length if it has more than `most` characters."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def counted(number: int, singular: str, plural: str = "") -> str:
    """A number with its noun: "1 chip", "8,192 rows". The plural is by default that with an s."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def spelled(value: object) -> str:
    """Returns a config value as it is typed: `none`, `true`, `3`, `a/*.txt`."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and abs(value) >= 10**1000:  # Python refuses to print them
        return f"a number of {value.bit_length()} bits"
    return str(value)
