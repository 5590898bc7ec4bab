"""Folders that appear whole or not at all, on a local disk or an object store (`gs://…`)."""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator

from etils import epath

from roberta_jax.errors import UsageError
from roberta_jax.interchange.matching import listed


@contextlib.contextmanager
def written_whole(target: epath.Path, last: str) -> Iterator[pathlib.Path]:
    """Gives an empty local folder to fill, which takes the place of `target` at the end.

    On a local disk it lies beside the target and is renamed; what was there before is gone only
    after that, and what a killed process left is put right by the next one. One process at a time
    may write a target. An object store has no rename: there the file named `last`, without which
    readers must take no folder for complete, is removed first and written last.

    On an error the target is what it was (on an object store: without `last`, if the error came
    while copying).
    """
    if not _is_local(target):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            yield folder
            target.mkdir(parents=True, exist_ok=True)
            (target / last).unlink(missing_ok=True)
            for file in sorted(folder.iterdir(), key=lambda file: file.name == last):
                epath.Path(file).copy(target / file.name, overwrite=True)
        return

    place = pathlib.Path(target).absolute()
    folder = place.with_name(f".{place.name}.partial")
    old = place.with_name(f".{place.name}.replaced")
    _tidy_up(place, folder, old)
    folder.mkdir(parents=True)
    try:
        yield folder
        if place.exists():
            place.rename(old)
        folder.rename(place)
    except BaseException:
        _tidy_up(place, folder, old)
        raise
    shutil.rmtree(old, ignore_errors=True)


def check_free(target: epath.Path, is_ours: Callable[[str], bool]) -> None:
    """Raises a UsageError where writing a folder whole would lose a file.

    Args:
      target: The folder to be written.
      is_ours: Tells by its name whether a file in it may be replaced.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise UsageError(f"{target} is a file; choose another name for the model's folder")
    foreign = sorted(child.name for child in target.iterdir() if not is_ours(child.name))
    if foreign:
        raise UsageError(
            f"{target} holds other files ({listed(foreign)}) and would be replaced whole; choose "
            "another folder or move them"
        )


def _tidy_up(place: pathlib.Path, folder: pathlib.Path, old: pathlib.Path) -> None:
    """Undoes what a write that failed or was killed has left."""
    if old.exists() and not place.exists():  # it ended between the two renames
        old.rename(place)
    for leftover in (folder, old):
        if leftover.exists():
            shutil.rmtree(leftover)


@contextlib.contextmanager
def on_local_disk(folder: epath.Path, endings: tuple[str, ...]) -> Iterator[pathlib.Path]:
    """The folder itself, or on an object store a temporary copy of its files of these endings."""
    if _is_local(folder):
        yield pathlib.Path(folder)
        return
    with tempfile.TemporaryDirectory() as name:
        for file in folder.iterdir():
            if file.name.endswith(endings):
                file.copy(pathlib.Path(name) / file.name)
        yield pathlib.Path(name)


def _is_local(path: epath.Path) -> bool:
    return "://" not in os.fspath(path)
