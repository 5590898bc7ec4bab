"""Notices changed files in the cache: their sizes and hashes are recorded when they are written.

`check_files` compares files with what was recorded. Reading and hashing takes some 0.9 s per GB
(BLAKE2b, one thread; several files are read at the same time). A store of 160 GB of text has 80 GB,
so files are not read at each start: what `stat` says of a file that was read is remembered beside
it, in `checked.json`, and the file is read again only if its size, its number (inode), or one of
its times differs. Every write sets the time of the last change (ctime), and no program can set it
back. Files are also remembered when they are written, because they are hashed then. What goes
unnoticed is damage without a write, such as that of a failing disk, which
`prepare --verify` finds: it reads all files. In a folder that cannot be written nothing is
remembered, and each process reads the files once, when it opens the folder.

`with_digest` and `without_digest` protect a small JSON object by a hash within it.
"""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from roberta_jax.storage.reading import describe_file, new_hash

CHECKED = "checked.json"
_KEY = "blake2b"
_MAX_THREADS = 8
_ANNOUNCED_BYTES = 4 << 30  # reading more than this takes long enough to say so


class DamagedError(Exception):
    """A file is not what was written; the message names it and says what is wrong."""


def check_files(
    folder: pathlib.Path,
    expected: Mapping[str, Mapping[str, Any]],
    *,
    remember: bool = True,
    read_all: bool = False,
) -> list[str]:
    """Compares files with what was recorded when they were written.

    Args:
      folder: Their folder.
      expected: {name: {"bytes": size, "blake2b": hash}}, see `storage.reading.describe_file`.
      remember: Whether to read only the files that have changed since they were last read, and to
        remember those that were read.
      read_all: Whether to read all files, whatever is remembered.

    Returns:
      The names of the files that were read.

    Raises:
      DamagedError: A file is missing, cannot be read, or has other contents.
    """
    remembered = _read_remembered(folder) if remember else {}
    states = {name: _state(folder, name, expected[name]) for name in expected}
    to_read = [name for name in expected if read_all or remembered.get(name) != states[name]]
    size = sum(expected[name]["bytes"] for name in to_read)
    if size > _ANNOUNCED_BYTES:
        print(f"Reading {size / 1e9:.0f} GB in {folder} to check it", file=sys.stderr)
    threads = min(_MAX_THREADS, os.cpu_count() or 1)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        paths = (folder / name for name in to_read)
        for name, digest in zip(to_read, pool.map(_hash_or_error, paths), strict=True):
            if isinstance(digest, OSError):
                raise DamagedError(f"{name} cannot be read ({digest.strerror})")
            if digest != expected[name]["blake2b"]:
                raise DamagedError(f"the contents of {name} have changed")
    if remember and remembered != states:
        _remember(folder, states)
    return to_read


def remember_files(folder: pathlib.Path, expected: Mapping[str, Mapping[str, Any]]) -> None:
    """Remembers files whose hashes were computed while they were written, so as not to read them.

    Args:
      folder: Their folder.
      expected: As for `check_files`.

    Raises:
      DamagedError: A file is missing, or has another size.
    """
    _remember(folder, {name: _state(folder, name, expected[name]) for name in expected})


def with_digest(value: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a JSON object with its hash as a further entry."""
    return {**value, _KEY: _digest(value)}


def without_digest(value: Any) -> tuple[dict[str, Any], bool]:
    """Checks an object of `with_digest`.

    Returns:
      (the object without its hash, whether it had one).

    Raises:
      DamagedError: It has a hash that does not fit, or is no JSON object.
    """
    if not isinstance(value, dict):
        raise DamagedError("it does not hold a JSON object")
    rest = {key: item for key, item in value.items() if key != _KEY}
    if _KEY in value and value[_KEY] != _digest(rest):
        raise DamagedError("its contents have changed")
    return rest, _KEY in value


def read_json(path: pathlib.Path) -> tuple[dict[str, Any], bool]:
    """Reads and checks a file of `with_digest`; see `without_digest`.

    Raises:
      DamagedError: The file is missing, cannot be read, or is not what was written; the message
        names it.
    """
    try:
        return without_digest(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise DamagedError(f"{path.name} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path.name} is not readable as JSON") from error
    except DamagedError as error:
        raise DamagedError(f"{path.name}: {error}") from None


def _digest(value: Mapping[str, Any]) -> str:
    hasher = new_hash()
    hasher.update(json.dumps(value, sort_keys=True).encode())
    return hasher.hexdigest()


def _hash_of(path: pathlib.Path) -> str:
    return describe_file(path)["blake2b"]


def _hash_or_error(path: pathlib.Path) -> str | OSError:
    try:
        return _hash_of(path)
    except OSError as error:
        return error


def _state(folder: pathlib.Path, name: str, expected: Mapping[str, Any]) -> list[Any]:
    """What is remembered of a file that has been read; checks its size."""
    path = folder / name
    try:
        stat = path.stat()
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        problem = "is missing" if missing else f"cannot be read ({error.strerror})"
        raise DamagedError(f"{name} {problem}") from None
    if not path.is_file():
        raise DamagedError(f"{name} is not a file")
    if stat.st_size != expected["bytes"]:
        raise DamagedError(f"{name} has {stat.st_size} bytes, not {expected['bytes']}")
    return [expected["blake2b"], stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]


def _remember(folder: pathlib.Path, states: Mapping[str, Any]) -> None:
    # A file that is cut short when the process is killed is no JSON, so nothing is remembered.
    with contextlib.suppress(OSError):  # such as in a read-only folder
        (folder / CHECKED).write_text(json.dumps(states), encoding="utf-8")


def _read_remembered(folder: pathlib.Path) -> dict[str, Any]:
    try:
        remembered = json.loads((folder / CHECKED).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return remembered if isinstance(remembered, dict) else {}
