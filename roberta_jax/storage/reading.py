"""Reads files that others wrote: refuses what is not a regular file or is larger than it can be.

Also describes files by their digests, to notice later that they have changed.
"""

import hashlib
import json
import os
import pathlib
import stat
from typing import Any

from etils import epath

from roberta_jax.errors import UsageError
from roberta_jax.storage.atomic import is_local

# Larger than the largest file of its kind: a `config.json` with a million labels has 60 MB, and a
# `tokenizer.json` with a million tokens 100 MB.
MAX_BYTES = 1 << 28

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def check_regular_file(path: os.PathLike | str) -> None:
    """Checks that a path is a regular file or a link to one; a named pipe would never end.

    On an object store nothing is checked.

    Raises:
      FileNotFoundError: There is no such file.
      UsageError: It is something else, or it cannot be read.
    """
    if not is_local(path):
        return
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "not a regular file")
        raise UsageError(f"{path} is {kind}; a file is needed there")


def read_bytes(path: os.PathLike | str, max_bytes: int = MAX_BYTES) -> bytes:
    """Reads a whole file, on a file system or an object store.

    Raises:
      FileNotFoundError: There is no such file.
      UsageError: It is not a regular file, it has more than `max_bytes`, or it cannot be read.
    """
    check_regular_file(path)
    try:
        size = epath.Path(path).stat().length
        if size > max_bytes:
            raise UsageError(
                f"{path} has {size:,} bytes, more than any file of its kind ({max_bytes:,}); "
                "fetch or write it again"
            )
        return epath.Path(path).read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error


def read_text(path: os.PathLike | str, max_bytes: int = MAX_BYTES) -> str:
    """Like `read_bytes`, decoded as UTF-8. Line ends are kept.

    Raises:
      FileNotFoundError, UsageError: As `read_bytes`; also a UsageError if it is not UTF-8.
    """
    try:
        return read_bytes(path, max_bytes).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is corrupt: it is not UTF-8 text ({error})") from None


def parse_json(text: str) -> Any:
    """Parses JSON.

    Raises:
      ValueError: It is not JSON, or nested deeper than Python's limit.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def new_hash() -> Any:
    """Returns the hash of files that are written and compared; has `update` and `hexdigest`."""
    return hashlib.blake2b(digest_size=16)


def describe_file(path: pathlib.Path) -> dict[str, Any]:
    """Reads a local file; returns {"bytes": its size, "blake2b": its hash}."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, new_hash).hexdigest()
        return {"bytes": file.tell(), "blake2b": digest}
