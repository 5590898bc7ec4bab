"""The folder of a run: only one process writes to it at a time, and its config may not change.

config.json     the config of the run
checkpoints/    one folder per step
best/           the parameters of the best evaluations, where they are selected
fitted.json     the microbatch and remat that were chosen by what fits into memory, if they were
metrics.jsonl   the metrics
tensorboard/    the metrics for TensorBoard
hf/             the exported model and tokenizer, written at the end
.export.json    the digests of the files in hf/

Until there is a checkpoint or an export, nothing is lost if a run starts anew, so such a workdir
takes any config.

The folder may be on Google Cloud Storage (gs://BUCKET/FOLDER), which the extra `gcs` is for. There
`.lock` is a lease (see `storage.leases`), and `metrics.jsonl` and `tensorboard/` are written as a
whole at each checkpoint (see `storage.published`).
"""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from etils import epath

from roberta_jax.dotted_keys import flatten, key_matches
from roberta_jax.errors import UsageError, listed
from roberta_jax.storage.atomic import is_local, removal_command, write_json
from roberta_jax.storage.locks import AlreadyLocked, exclusive_lock, is_locked
from roberta_jax.storage.objects import check_bucket

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"
EXPORT = "hf"
EXPORT_DIGESTS = ".export.json"
LOCK = ".lock"
# Orbax writes it last into the folder of a checkpoint on an object store.
_COMMITTED = "commit_success.txt"
# Errors that a user can fix. Others keep their traceback.
_FILE_SYSTEM_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EFBIG,
    errno.EIO,
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
      config: the config as nested dictionaries of JSON values, to compare with that of
        `config.json`; `write_config` writes it.
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
      UsageError: the folder cannot be written, or it belongs to a run with another config that
        has trained.
    """
    check_storage(folder, writes=primary)
    with _usable_name(folder):
        folder = epath.Path(folder)
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"--workdir={folder} is a file. Choose another name.")
        if primary:
            with _file_system_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
    lock = _locked(folder) if primary else contextlib.nullcontext()
    with _file_system_errors(folder), lock:
        previous = trained_config(folder)
        if previous is not None:
            saved = present_values(previous, renamed or {}, added or {}, revalued or {})
            _check_config(folder, config, may_change, saved)
        yield folder


def remove_unused(folder: epath.PathLike) -> None:
    """Removes a local workdir in which nothing was written; called by one process of a run."""
    if not is_local(folder):
        return
    folder = pathlib.Path(folder)
    with contextlib.suppress(OSError):  # it has files, or there is none
        if [path.name for path in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink()
        folder.rmdir()


def check_storage(folder: epath.PathLike, *, writes: bool = False) -> None:
    """Checks that the object store of a workdir can be used; local folders are not checked.

    Raises:
      UsageError: it cannot be used; the message says why.
    """
    check_bucket(folder, writes=writes, option="--workdir")


@contextlib.contextmanager
def _usable_name(folder: epath.PathLike) -> Iterator[None]:
    try:
        os.fspath(folder).encode("utf-8")  # other libraries accept no other names
        yield
    except UsageError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        # Too long, a loop of links, below /proc; not UTF-8, which epath reports as a RuntimeError.
        reason = error.strerror if isinstance(error, OSError) else None
        name = os.fspath(folder).encode("utf-8", "backslashreplace").decode()
        raise UsageError(
            f"--workdir={name[:200]} cannot be used as a folder: "
            f"{reason or 'it is not a valid name'}. Choose another name."
        ) from error


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
        wait = (
            None
            if is_local(folder)
            else lambda: print(
                f"{folder} was in use. Waiting to see whether that run still goes on...", flush=True
            )
        )
        try:
            stack.enter_context(exclusive_lock(folder / LOCK, on_wait=wait))
        except AlreadyLocked:
            raise WorkdirInUse(
                f"another run is writing to {folder}. Wait for it, stop it, or choose another "
                "--workdir."
            ) from None
        yield


def write_config(folder: epath.PathLike, config: Mapping[str, Any]) -> None:
    """Writes the config of the run, unless it is there. Call it before anything else is written.

    If the workdir has the config of another run, which has not trained, it prints that it replaces
    that one.
    """
    path = epath.Path(folder) / CONFIG
    present = json.loads(json.dumps(config))  # tuples become lists, as in the file
    try:
        previous = read_config(folder)
    except UsageError:
        previous = {}
    if previous == present:
        return
    if previous is not None and trained_config(folder) is None:
        print(f"Replacing {path}: nothing was trained with it.", flush=True)
    write_json(path, config)


def read_config(folder: epath.PathLike) -> dict[str, Any] | None:
    """Returns the config of a workdir's run as nested dictionaries, or None if there is no run.

    Raises:
      UsageError: `config.json` is damaged.
    """
    path = epath.Path(folder) / CONFIG
    try:
        config = json.loads(path.read_bytes().decode("utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not a JSON object")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError, IsADirectoryError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(
            f"{path} is not readable as a config ({reason}). Restore it, or choose another "
            "--workdir."
        ) from None
    return config


def trained_config(folder: epath.PathLike) -> dict[str, Any] | None:
    """Returns the config of a workdir's run if it has a checkpoint or an export, otherwise None.

    Raises:
      UsageError: `config.json` is damaged, or missing beside checkpoints; or the folder is on an
        object store that cannot be used.
    """
    check_storage(folder)
    with _usable_name(folder):
        folder = epath.Path(folder)
        if not (folder / EXPORT).exists() and not _has_checkpoint(folder):
            return None
    config = read_config(folder)
    if config is None:
        raise UsageError(
            f"{folder} holds a run without its {CONFIG}, so that it cannot be continued. Restore "
            "the file, or choose another --workdir."
        )
    return config


def record_export(folder: epath.PathLike) -> None:
    """Records the digests of the exported files, for `check_export`."""
    folder = epath.Path(folder)
    write_json(folder / EXPORT_DIGESTS, _export_digests(folder))


def check_export(folder: epath.PathLike) -> bool:
    """Checks that the exported files are those that were written.

    Returns:
      Whether their digests were recorded; earlier versions did not.

    Raises:
      UsageError: a file is missing or differs; the message says how it is written again.
    """
    folder = epath.Path(folder)
    try:
        expected = json.loads((folder / EXPORT_DIGESTS).read_text())
        expected = {str(name): str(digest) for name, digest in expected.items()}
    except (OSError, ValueError, AttributeError):
        return False
    found = _export_digests(folder)
    differing = sorted(name for name in expected if found.get(name) != expected[name])
    if differing:
        raise damaged_export(folder, listed([f"{EXPORT}/{name}" for name in differing]))
    return True


def damaged_export(folder: epath.Path, what: str) -> UsageError:
    """Returns the error that says how an export is written again."""
    if _has_checkpoint(folder):
        advice = (
            "To write the model again from what the run has saved, delete its folder and run the "
            f"same command again:\n  {removal_command(folder / EXPORT)}"
        )
    else:
        advice = "There is no checkpoint to write it again from: restore it from a copy."
    return UsageError(
        f"the run in {folder} is finished, but its model is damaged: {what}.\n{advice}"
    )


def _has_checkpoint(folder: epath.Path) -> bool:
    steps = folder / CHECKPOINTS
    if not steps.is_dir():
        return False
    numbered = (path for path in steps.iterdir() if path.name.isdigit())
    return any(is_local(path) or (path / _COMMITTED).exists() for path in numbered)


def _export_digests(folder: epath.Path) -> dict[str, str]:
    digests = {}
    for path in sorted((folder / EXPORT).iterdir(), key=lambda path: path.name):
        if not path.is_dir():
            digest = hashlib.blake2b()
            with path.open("rb") as file:
                while chunk := file.read(1 << 23):
                    digest.update(chunk)
            digests[path.name] = digest.hexdigest()
    return digests


def in_use(folder: epath.PathLike) -> bool:
    """Returns whether a process is writing to the workdir; on an object store it takes seconds."""
    return is_locked(epath.Path(folder) / LOCK)


def present_values(
    config: Mapping[str, Any],
    renamed: Mapping[str, str],
    added: Mapping[str, Any],
    revalued: Mapping[str, Mapping[Any, Any]],
) -> dict[str, Any]:
    """The values of a config of an earlier version under their present names."""
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
    if saved.get("task") != values.get("task"):
        there, here = (_purpose(each.get("task")) for each in (saved, values))
        raise UsageError(
            f"--workdir={folder} holds a run of {there}, and this is one of {here}. Choose another "
            "--workdir."
        )
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
        changeable = ", ".join(f"{key}*" if key.endswith(".") else key for key in may_change)
        raise UsageError(
            f"{folder} holds a run with another config:\n"
            + "\n".join(lines)
            + "\nTo resume that run, use its values; to start a run with the new values, choose "
            f"another --workdir.\nWhat may change within a run, after --config.: {changeable}."
        )


def _purpose(task: object) -> str:
    return "pretraining" if task is None else f"fine-tuning on the task {task}"


def _new_name(key: str, renamed: Mapping[str, str]) -> str:
    if key in renamed:
        return renamed[key]
    for old, new in renamed.items():
        if old.endswith(".") and key.startswith(old):
            return new + key.removeprefix(old)
    return key
