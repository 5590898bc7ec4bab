"""The folder of a run: one run in it at a time, and one config for the whole of that run.

config.json     what the run was started with
checkpoints/    one folder a step
metrics.jsonl   what the run reported
tensorboard/    the same, for TensorBoard
hf/             the exported model and tokenizer, written at the end
"""

import contextlib
import errno
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from etils import epath

from roberta_jax.errors import UsageError

try:
    import fcntl
except ImportError:  # not Unix
    fcntl = None

CONFIG = "config.json"
LOCK = ".lock"
_MENDABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)


class WorkdirInUse(UsageError):
    """Another process is writing to the workdir."""


@contextlib.contextmanager
def open_workdir(
    folder: epath.PathLike,
    settings: Mapping[str, Any],
    may_change: Collection[str],
    primary: bool = True,
) -> Iterator[epath.Path]:
    """Opens a new workdir, or the one of a run that goes on.

    Args:
      folder: made if it does not exist.
      settings: the config as nested dictionaries of what JSON can hold; written to `config.json`.
      may_change: dotted keys whose value may differ from what is there ("train.steps"); a key that
        ends in a dot stands for all below it ("mesh.").
      primary: whether this process writes; of several one does.

    Yields:
      The folder. A file system that refuses to write while the context is open is told in a
      sentence.

    Raises:
      WorkdirInUse: another run is using it.
      UsageError: the folder cannot be written, or is of another config.
    """
    folder = epath.Path(folder)
    with _told(folder):
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"--workdir={folder} is a file. Choose another name.")
        if primary:
            folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder) if primary else contextlib.nullcontext():
            _check_config(folder, settings, may_change)
            if primary:
                temporary = folder / f"{CONFIG}.tmp"
                temporary.write_text(json.dumps(settings, indent=2) + "\n")
                temporary.replace(folder / CONFIG)
            yield folder


@contextlib.contextmanager
def _told(folder: epath.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _MENDABLE:
            raise
        raise UsageError(
            f"cannot write {error.filename or folder}: {error.strerror}. Checkpoints written "
            "before are intact. Make room there, or choose a --workdir that can be written, and "
            "run the same command again."
        ) from error


@contextlib.contextmanager
def _locked(folder: epath.Path) -> Iterator[None]:
    """Holds a lock on a local folder; the system lifts it when the process ends, however it ends.

    Object stores and systems other than Unix have no such lock.
    """
    if fcntl is None or "://" in str(folder):
        yield
        return
    with open(folder / LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkdirInUse(
                f"another run is writing to {folder}. Wait for it, stop it, or choose another "
                "--workdir."
            ) from None
        yield


def read_config(folder: epath.PathLike) -> dict[str, Any] | None:
    """What a workdir's run was started with, as nested dictionaries; None where there is none.

    Raises:
      UsageError: its `config.json` is damaged.
    """
    path = epath.Path(folder) / CONFIG
    if not path.exists():
        return None
    try:
        settings = json.loads(path.read_text())
        if not isinstance(settings, dict):
            raise ValueError("no JSON object")
    except ValueError as error:
        raise UsageError(
            f"{path} is not readable as a config ({error}). Restore it, or choose another "
            "--workdir."
        ) from None
    return settings


def in_use(folder: epath.PathLike) -> bool:
    """Whether a process holds the lock of the folder at this moment."""
    path = epath.Path(folder) / LOCK
    if fcntl is None or "://" in str(folder) or not path.exists():
        return False
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _check_config(
    folder: epath.Path, settings: Mapping[str, Any], may_change: Collection[str]
) -> None:
    found = read_config(folder)
    if found is None:
        return
    there = _flat(found)
    here = _flat(json.loads(json.dumps(settings)))  # tuples read as lists
    differing = [
        key
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key) and not covered(key, may_change)
    ]
    if differing:
        lines = [f"  {key}: {there.get(key)!r} there, {here.get(key)!r} here" for key in differing]
        free = ", ".join(key + "*" if key.endswith(".") else key for key in may_change)
        raise UsageError(
            f"{folder} holds a run with another config:\n"
            + "\n".join(lines)
            + "\nTo go on with that run, use its values; for a run with these, choose another "
            f"--workdir.\nWhat may change within a run: {free}."
        )


def covered(key: str, may_change: Collection[str]) -> bool:
    """Whether a dotted key is among `may_change`, as `open_workdir` reads it."""
    return any(key == each or (each.endswith(".") and key.startswith(each)) for each in may_change)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            leaves |= _flat(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value
    return leaves
