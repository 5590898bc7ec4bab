"""Writes files and folders so that a reader sees the old contents or the new ones, never a part.

The contents are written beside the target under a temporary name, which is renamed at the end. A
process that is killed leaves the target as it was. Temporary names end in `.tmp` and are unique, so
processes and hosts that write the same target do not disturb each other: the last one wins.

An object store (`gs://...`) has no rename, but an object appears only when it is complete, so there
files are written under their own name.
"""

import contextlib
import itertools
import json
import os
import pathlib
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from roberta_jax.errors import UsageError, listed
from roberta_jax.storage import is_local


def removal_command(*folders: os.PathLike | str) -> str:
    """Returns what to type to delete folders that are all local, or all on an object store."""
    command = "rm -r" if all(map(is_local, folders)) else "gcloud storage rm -r"
    return " ".join([command, *map(os.fspath, folders)])


def temporary_path(path: pathlib.Path) -> pathlib.Path:
    """Returns an unused name beside `path`, to write to before renaming."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")


@contextlib.contextmanager
def replace_file(path: os.PathLike | str) -> Iterator[pathlib.Path]:
    """Yields a temporary path; on success the file written there replaces the local file `path`.

    If the block raises, `path` stays as it was and the temporary file is removed.

    Raises:
      UsageError: `path` is a device or a pipe, which a rename would remove.
    """
    path = pathlib.Path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UsageError(f"{path} is not a regular file, and would be replaced. Name another one.")
    temporary = temporary_path(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: os.PathLike | str, data: bytes) -> None:
    """Writes a file as a whole, on a file system or an object store."""
    if not is_local(path):
        epath.Path(path).write_bytes(data)
        return
    with replace_file(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: os.PathLike | str, text: str) -> None:
    """Writes a UTF-8 text file as a whole; line ends are written as they are."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: os.PathLike | str, value: Any, *, indent: int | None = 2) -> None:
    """Writes a JSON file as a whole, ending in a newline."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


@contextlib.contextmanager
def create_folder(path: os.PathLike | str) -> Iterator[pathlib.Path]:
    """Yields an empty temporary folder; on success it becomes the local folder `path`.

    For folders whose contents follow from their name, such as entries of a cache: where another
    process has created `path` in the meantime, that folder stays and the new one is removed.
    """
    path = pathlib.Path(path)
    temporary = temporary_path(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        try:
            temporary.rename(path)
        except OSError:
            if not path.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def replace_folder(target: epath.Path, last: str) -> Iterator[pathlib.Path]:
    """Yields an empty local folder; on success its contents replace the folder `target`.

    On a file system the new folder is renamed, and the old one is removed only after that. What a
    killed process leaves behind is repaired by the next call; one process at a time may write a
    target. On an object store the file named `last`, without which readers must not take a folder
    for complete, is removed first and written last.

    If the block raises, the target stays as it was. (On an object store an error while copying
    leaves it without `last`.)

    Args:
      target: the folder to replace.
      last: name of the file in it that marks it as complete.
    """
    if not is_local(target):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            yield folder
            _replace_objects(target, folder, last)
        return

    path = pathlib.Path(target).absolute()
    partial = path.with_name(f".{path.name}.partial")
    replaced = path.with_name(f".{path.name}.replaced")
    _repair(path, partial, replaced)
    partial.mkdir(parents=True)
    try:
        yield partial
        if path.exists():
            path.rename(replaced)
        partial.rename(path)
    except BaseException:
        _repair(path, partial, replaced)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


@contextlib.contextmanager
def unchanged_on_error(target: os.PathLike) -> Iterator[None]:
    """Around `replace_folder`: raises a UsageError where the file system refuses to write.

    Args:
      target: the folder that is replaced, which is unchanged then.
    """
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"cannot write {target}: {error.strerror or error}; what was there before is "
            "unchanged. Free some space or choose another folder"
        ) from error


def _replace_objects(target: epath.Path, folder: pathlib.Path, last: str) -> None:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = [path.relative_to(folder).as_posix() for path in files]
    (target / last).unlink(missing_ok=True)
    if target.is_dir():
        for old in target.iterdir():
            if old.name not in names and not old.is_dir():
                old.unlink()
    for name in sorted(names, key=lambda name: name == last):
        epath.Path(folder / name).copy(target / name, overwrite=True)


def _repair(path: pathlib.Path, partial: pathlib.Path, replaced: pathlib.Path) -> None:
    """Undoes what an interrupted `replace_folder` left."""
    if replaced.exists() and not path.exists():  # interrupted between the two renames
        replaced.rename(path)
    for leftover in (partial, replaced):
        if leftover.exists():
            shutil.rmtree(leftover)


def check_replaceable(target: epath.Path, is_ours: Callable[[str], bool]) -> None:
    """Checks that a folder can be written, and that replacing it would lose no file of the user's.

    Args:
      target: the folder to be written.
      is_ours: tells by a file's name whether it may be replaced.

    Raises:
      UsageError: `target` is a file, or holds a file that may not be replaced; it is below a file,
        or in a folder that is read-only.
    """
    if not os.fspath(target).strip("."):
        raise UsageError(f"{os.fspath(target)!r} is not the name of a folder to write")
    if is_local(target):
        _check_writable(pathlib.Path(target).absolute())
    try:
        if not target.exists():
            return
    except Exception as error:  # each kind of object store raises errors of its own
        reason = " ".join(str(error).split())
        raise UsageError(f"cannot write {os.fspath(target)}: {reason[:200]}") from error
    if not target.is_dir():
        raise UsageError(f"{target} is a file; choose another name for the model's folder")
    foreign = sorted(child.name for child in target.iterdir() if not is_ours(child.name))
    if foreign:
        raise UsageError(
            f"{target} holds other files ({listed(foreign)}) and would be replaced whole; choose "
            "another folder or move them"
        )


def _check_writable(target: pathlib.Path) -> None:
    """Raises a UsageError if no folder can be created or replaced at a path."""
    try:
        if target.is_symlink() and not target.exists():
            raise UsageError(f"{target} is a link to nothing; delete it or choose another folder")
        parent = next((path for path in target.parents if path.exists()), target)
        if not parent.is_dir():
            raise UsageError(f"cannot write {target}: {parent} is a file; choose another folder")
        # Permissions do not tell everything: some file systems have a fixed set of files.
        probe = parent / f".{target.name}.partial"
        if not probe.exists():
            probe.mkdir()
            probe.rmdir()
    except OSError as error:
        shown = str(target) if len(str(target)) <= 200 else f"{str(target)[:199]}…"
        raise UsageError(
            f"cannot write {shown}: {error.strerror or error}; choose another folder"
        ) from None


@contextlib.contextmanager
def local_copy(folder: epath.Path, endings: tuple[str, ...] = ("",)) -> Iterator[pathlib.Path]:
    """Yields a local folder itself, or a temporary copy of a remote folder's files.

    Args:
      folder: on a file system or an object store.
      endings: file name endings to copy, such as (".json", ".safetensors"). The default copies all
        files, also those in subfolders.
    """
    if is_local(folder):
        yield pathlib.Path(folder)
        return
    with tempfile.TemporaryDirectory() as name:
        _copy_files(folder, pathlib.Path(name), endings)
        yield pathlib.Path(name)


def _copy_files(folder: epath.Path, target: pathlib.Path, endings: tuple[str, ...]) -> None:
    target.mkdir(exist_ok=True)
    for file in folder.iterdir():
        if endings == ("",) and file.is_dir():
            _copy_files(file, target / file.name, endings)
        elif file.name.endswith(endings):
            file.copy(target / file.name)


def move_aside(folder: epath.Path, prefix: str) -> str:
    """Renames a folder NAME to PREFIX.NAME, or PREFIX.NAME.2, ...; returns the new name.

    On an object store, which cannot rename, the files are copied first.
    """
    names = itertools.chain([""], (f".{number}" for number in itertools.count(2)))
    target = next(
        path
        for path in (folder.parent / f"{prefix}.{folder.name}{end}" for end in names)
        if not path.exists()
    )
    if is_local(folder):
        folder.rename(target)
        return target.name
    _copy_files(folder, target, ("",))
    folder.rmtree()
    return target.name
