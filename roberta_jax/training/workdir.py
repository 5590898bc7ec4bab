"""The folder of a run: only one process writes to it at a time, and its config may not change.

config.json     the config of the run
checkpoints/    one folder per step
metrics.jsonl   the metrics
tensorboard/    the metrics for TensorBoard
hf/             the exported model and tokenizer, written at the end
"""

import contextlib
import errno
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from etils import epath

from roberta_jax.dotted_keys import flatten, key_matches
from roberta_jax.errors import UsageError
from roberta_jax.storage.atomic import write_json
from roberta_jax.storage.locks import AlreadyLocked, exclusive_lock, is_locked

CONFIG = "config.json"
LOCK = ".lock"
# Errors that a user can fix. Others keep their traceback.
_FILE_SYSTEM_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
)


class WorkdirInUse(UsageError):
    """Another process is writing to the workdir."""


@contextlib.contextmanager
def open_workdir(
    folder: epath.PathLike,
    config: Mapping[str, Any],
    may_change: Collection[str],
    primary: bool = True,
    *,
    renamed: Mapping[str, str] | None = None,
    added: Mapping[str, Any] | None = None,
    revalued: Mapping[str, Mapping[Any, Any]] | None = None,
) -> Iterator[epath.Path]:
    """Opens the workdir of a new run, or of a run to resume, and locks it inside the context.

    Args:
      folder: the workdir, which is created if it does not exist.
      config: the config as nested dictionaries of JSON values; it is written to `config.json`.
      may_change: dotted keys whose values may differ from those in `config.json` ("train.steps"). A
        key that ends in a dot stands for all keys below it ("mesh.").
      primary: whether this process writes; False for all but one of several processes.
      renamed: old dotted key -> new one, for a `config.json` of an earlier version. An old key that
        ends in a dot stands for all keys below it.
      added: dotted key -> value that earlier versions, which lack the key, behaved by.
      revalued: dotted key -> {value of an earlier version: present value}.

    Yields:
      The folder. Errors of the file system inside the context that a user can fix (a full disk, a
      missing permission) are raised as a UsageError.

    Raises:
      WorkdirInUse: another run is using the workdir.
      UsageError: the folder cannot be written, or it belongs to a run with another config.
    """
    folder = epath.Path(folder)
    with _file_system_errors(folder):
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"--workdir={folder} is a file. Choose another name.")
        if primary:
            folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder) if primary else contextlib.nullcontext():
            saved = _saved_values(folder, renamed or {}, added or {}, revalued or {})
            if saved is not None:
                _check_config(folder, config, may_change, saved)
            if primary:
                write_json(folder / CONFIG, config)
            yield folder


@contextlib.contextmanager
def _file_system_errors(folder: epath.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _FILE_SYSTEM_ERRORS:
            raise
        raise UsageError(
            f"cannot write {error.filename or folder}: {error.strerror}. Earlier checkpoints are "
            "intact. Make room there, or choose a --workdir that can be written, and run the same "
            "command again."
        ) from error


@contextlib.contextmanager
def _locked(folder: epath.Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(exclusive_lock(folder / LOCK))
        except AlreadyLocked:
            raise WorkdirInUse(
                f"another run is writing to {folder}. Wait for it, stop it, or choose another "
                "--workdir."
            ) from None
        yield


def read_config(folder: epath.PathLike) -> dict[str, Any] | None:
    """Returns the config of a workdir's run as nested dictionaries, or None if there is no run.

    Raises:
      UsageError: `config.json` is damaged.
    """
    path = epath.Path(folder) / CONFIG
    if not path.exists():
        return None
    try:
        config = json.loads(path.read_text())
        if not isinstance(config, dict):
            raise ValueError("not a JSON object")
    except ValueError as error:
        raise UsageError(
            f"{path} is not readable as a config ({error}). Restore it, or choose another "
            "--workdir."
        ) from None
    return config


def in_use(folder: epath.PathLike) -> bool:
    """Returns whether a process is writing to the workdir; always False on an object store."""
    return is_locked(epath.Path(folder) / LOCK)


def _saved_values(
    folder: epath.Path,
    renamed: Mapping[str, str],
    added: Mapping[str, Any],
    revalued: Mapping[str, Mapping[Any, Any]],
) -> dict[str, Any] | None:
    """The values in `config.json` under their present names; None for a new run."""
    config = read_config(folder)
    if config is None:
        return None
    values = json.loads(json.dumps(dict(added)))
    values |= {_new_name(key, renamed): value for key, value in flatten(config).items()}
    for key, new_values in revalued.items():
        if key in values and values[key] in new_values:
            values[key] = new_values[values[key]]
    return values


def _check_config(
    folder: epath.Path,
    config: Mapping[str, Any],
    may_change: Collection[str],
    saved: Mapping[str, Any],
) -> None:
    values = flatten(json.loads(json.dumps(config)))  # tuples become lists, as in the file
    differing = [
        key
        for key in sorted(saved.keys() | values.keys())
        if saved.get(key) != values.get(key) and not key_matches(key, may_change)
    ]
    if differing:
        lines = [
            f"  --config.{key}: {saved.get(key)!r} there, {values.get(key)!r} here"
            for key in differing
        ]
        changeable = ", ".join(
            f"--config.{key}*" if key.endswith(".") else f"--config.{key}" for key in may_change
        )
        raise UsageError(
            f"{folder} holds a run with another config:\n"
            + "\n".join(lines)
            + "\nTo resume that run, use its values; to start a run with the new values, choose "
            f"another --workdir.\nWhat may change within a run: {changeable}."
        )


def _new_name(key: str, renamed: Mapping[str, str]) -> str:
    if key in renamed:
        return renamed[key]
    for old, new in renamed.items():
        if old.endswith(".") and key.startswith(old):
            return new + key.removeprefix(old)
    return key
