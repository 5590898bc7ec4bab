"""Checks of the workdir: written and shared by all hosts, appended to, locked and large enough."""

import contextlib
import os
import pathlib
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from roberta_jax.diagnostics.report import Result, ok, problem, warning
from roberta_jax.errors import UsageError
from roberta_jax.storage.atomic import is_local
from roberta_jax.storage.locks import exclusive_lock, is_locked
from roberta_jax.storage.objects import check_bucket
from roberta_jax.training.agreement import exchange
from roberta_jax.training.checkpoints import Checkpoints

WORKDIR, APPEND, LOCK, CHECKPOINT, DISK = "workdir", "append", "lock", "checkpoint", "free disk"
LOW_BYTES = 20 << 30  # a workdir with less free space gets a warning
CHECKPOINT_ROWS, CHECKPOINT_COLUMNS = 4_096, 1_024  # of the array that is saved, 16 MiB
SEEN_SECONDS = 10.0  # until a file of another host must be visible


@contextlib.contextmanager
def probe_folder(workdir: str) -> Iterator[epath.Path]:
    """Yields the name of a folder in the workdir, the same on all processes, and removes it.

    Folders above it that did not exist are removed as well. Errors while removing are ignored. On
    an object store that cannot be used nothing is removed, so that no library tries it for minutes.
    """
    root = epath.Path(workdir)
    folder = root / exchange("the name of a folder", f".doctor-{secrets.token_hex(4)}")[0]
    local = pathlib.Path(workdir).absolute()
    # `os.path.exists` is False for names that are too long, which `shared` then reports.
    missing = [each for each in (local, *local.parents) if not os.path.exists(each)]
    created = missing if is_local(workdir) else []
    exchange("looking at the workdir", None)  # before anything is created
    try:
        yield folder
    finally:
        exchange("the checks of the workdir", None)
        if jax.process_index() == 0:
            with contextlib.suppress(Exception):  # each kind of object store has its own
                _check_store(workdir)
                folder.rmtree()
                for each in created:
                    each.rmdir()


def shared(workdir: str, folder: epath.Path) -> list[Result]:
    """Writes a file on every process, and looks for those of the others.

    Args:
      workdir: as the user named it.
      folder: from `probe_folder`.
    """
    index = jax.process_index()
    error = refused = ""
    try:
        _check_store(workdir)  # in seconds, and before a library tries it for minutes
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"probe-{index}").write_text(str(index))
        if (folder / f"probe-{index}").read_text() != str(index):
            error = "a file reads back with other contents"
    except UsageError as caught:  # it says what to do
        refused = error = str(caught)
    except Exception as caught:  # each kind of object store raises errors of its own
        error = _reason(caught)
    errors = exchange("writing to the workdir", error)
    written = [index for index, failed in enumerate(errors) if not failed]
    if refused:
        return [problem(WORKDIR, refused, "put that right, and run doctor again.")]
    if error:
        return [
            problem(
                WORKDIR,
                f"{workdir} cannot be written: {error}.",
                "give the user of the run permission to write there, or choose another --workdir.",
            )
        ]
    missing = _missing(folder, written)
    if missing:
        return [
            problem(
                WORKDIR,
                f"{workdir} is not shared: files of process {', '.join(map(str, missing[:6]))} are "
                f"not seen here after {SEEN_SECONDS:.0f} s.",
                "choose a --workdir that all hosts see under the same path: an object store "
                "(gs://...) or a file system that is mounted on all.",
            )
        ]
    count = jax.process_count()
    shared_by = f", and seen by {count} processes" if count > 1 else ""
    return [ok(WORKDIR, f"{workdir} can be written{shared_by}")]


def append(workdir: str, folder: epath.Path) -> list[Result]:
    """Appends to a file twice and replaces another one, as metrics and configs are written."""
    if not is_local(workdir):
        return [ok(APPEND, "on an object store nothing is appended to")]
    path = pathlib.Path(folder) / f"append-{jax.process_index()}"
    try:
        for text in ("one\n", "two\n"):
            with path.open("a") as file:
                file.write(text)
        temporary = path.with_suffix(".tmp")
        temporary.write_text("three\n")
        found = path.read_text()
        temporary.replace(path)
        found += path.read_text()
    except OSError as error:
        found = _reason(error)
    if found != "one\ntwo\nthree\n":
        return [
            problem(
                APPEND,
                f"files in {workdir} cannot be appended to and replaced: {found!r}.",
                "choose a --workdir on another file system, or on an object store without a mount "
                "(gs://...).",
            )
        ]
    return [ok(APPEND, "files can be appended to and replaced")]


def lock(workdir: str, folder: epath.Path) -> list[Result]:
    """Locks a file on the first process, and looks from all whether it is locked.

    On an object store it is a lease, and the check waits until it is renewed.
    """
    path = folder / "lock"
    with contextlib.ExitStack() as stack:
        error = ""
        if jax.process_index() == 0:
            try:
                stack.enter_context(exclusive_lock(path))
            except (OSError, UsageError) as caught:
                error = _reason(caught)
        error = exchange("locking", error)[0]
        locked = bool(error) or is_locked(path)
        exchange("looking at the lock", None)
    if not is_local(workdir):
        advice = (
            "the account needs the role Storage Object User (roles/storage.objectUser) on the "
            "bucket: a run holds a lease there, so that no other one writes to its workdir."
        )
        if error:
            return [problem(LOCK, f"no lease can be taken in {workdir}: {error}.", advice)]
        if not locked:
            return [problem(LOCK, f"a lease in {workdir} is not renewed in time.", advice)]
        return [ok(LOCK, "a lease is taken, renewed and seen by all processes")]
    advice = (
        "use another file system (a mount without locks is often an old NFS or a FUSE mount), or "
        "make sure yourself that only one run at a time uses the workdir."
    )
    if error:
        return [problem(LOCK, f"a file in {workdir} cannot be locked: {error}.", advice)]
    if not locked:
        return [warning(LOCK, f"a lock in {workdir} is not seen by other processes.", advice)]
    return [ok(LOCK, "a lock is seen by all processes")]


def checkpoint(workdir: str | None, folder: epath.Path | None) -> list[Result]:
    """Writes a checkpoint, reads it back and compares its digests, as training does.

    Args:
      workdir: as the user named it; None uses a temporary folder of this machine.
      folder: from `probe_folder`; None without a workdir.
    """
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.asarray(jax.devices()), ("all",))
    rows = CHECKPOINT_ROWS // len(jax.devices()) * len(jax.devices())
    split = NamedSharding(mesh, PartitionSpec("all"))
    make = jax.jit(
        lambda: jnp.arange(rows * CHECKPOINT_COLUMNS, dtype=jnp.int32).reshape(rows, -1),
        out_shardings=split,
    )
    state = {"array": make()}
    like = {"array": jax.ShapeDtypeStruct(state["array"].shape, jnp.int32, sharding=split)}
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = epath.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        try:
            started = time.perf_counter()
            with Checkpoints(folder / "checkpoints", keep=1) as checkpoints:
                checkpoints.save(1, state, {})
                checkpoints.wait()
                written = time.perf_counter()
                restored, _ = checkpoints.restore(like)
                jax.block_until_ready(restored)
                read = time.perf_counter()
        except (UsageError, OSError) as error:
            return [
                problem(
                    CHECKPOINT,
                    f"a checkpoint cannot be written and read in {workdir or folder}: "
                    f"{_reason(error)}.",
                    "choose a --workdir on another file system; a full disk and missing "
                    "permissions are the usual causes.",
                )
            ]
    size = state["array"].nbytes / 2**20
    where = "" if workdir else " in a temporary folder"
    return [
        ok(
            CHECKPOINT,
            f"{size:.0f} MiB{where}: written in {written - started:.2f} s, read with equal "
            f"digests in {read - written:.2f} s",
        )
    ]


def disk(folders: dict[str, str]) -> list[Result]:
    """Says how much space is free.

    Args:
      folders: {what is stored: folder}; folders on an object store are left out.
    """
    results = []
    for what, folder in folders.items():
        if not is_local(folder):
            continue
        path = pathlib.Path(folder).expanduser().absolute()
        existing = next(each for each in (path, *path.parents) if os.path.exists(each))
        free = shutil.disk_usage(existing).free
        text = f"{free / 2**30:.1f} GiB for {what} in {folder}"
        if free < LOW_BYTES:
            advice = (
                f"make room, or choose another folder: less than {LOW_BYTES >> 30} GiB is little "
                "for prepared text and checkpoints of 12 bytes a parameter."
            )
            results.append(warning(DISK, text + ".", advice))
        else:
            results.append(ok(DISK, text))
    return results


def _check_store(workdir: str) -> None:
    """Checks that an object store can be used, and makes the checkpoints use the same server."""
    check_bucket(workdir, writes=True, option="--workdir")


def _missing(folder: epath.Path, written: list[int]) -> list[int]:
    """The processes whose files are not seen in time."""
    deadline = time.monotonic() + SEEN_SECONDS
    while True:
        missing = [index for index in written if not (folder / f"probe-{index}").exists()]
        if not missing or time.monotonic() > deadline:
            return missing
        time.sleep(0.2)


def _reason(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(reason.split())[:300].rstrip(".")
