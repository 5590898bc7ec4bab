"""Leases: locks on object stores, which a process holds while it renews them.

A lease is an object that names its owner. A thread of the owner writes it again every
`RENEW_SECONDS`, each time on the condition that nobody else has (the object's generation, which the
store changes at each write). A process that was killed renews nothing: another one takes the lease
over when it has not changed for `EXPIRE_SECONDS`, or at once where it can see that the owner, on
the same machine, no longer runs. Clocks are not compared: the one that waits measures the time.

An owner that was cut off for that long, or suspended, has lost its lease. `check_held` tells it so
before it writes anything: it renews a lease of which nothing is known for half of that time.
"""

import contextlib
import json
import os
import pathlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from roberta_jax.errors import UsageError
from roberta_jax.storage import objects
from roberta_jax.storage.store_errors import reason, store_error

RENEW_SECONDS = 10.0
EXPIRE_SECONDS = 45.0
_TIMEOUT_SECONDS = 10.0
_INSIST_SECONDS = 30.0  # for which `check_held` tries to renew a lease


class Held(OSError):
    """Another process holds the lease."""


class ConditionalObject(Protocol):
    """An object of which a write can depend on its generation; 0 stands for no object."""

    def read(self) -> tuple[bytes, int] | None:
        """Returns the contents and their generation, or None if there is no object."""

    def write(self, data: bytes, generation: int) -> int | None:
        """Replaces `generation`; returns the new one, or None if it is another one by now."""

    def delete(self, generation: int) -> None:
        """Deletes `generation`, unless it is another one by now."""


class _GoogleObject:
    """An object of Google Cloud Storage."""

    def __init__(self, path: str):
        self._path = path

    def read(self) -> tuple[bytes, int] | None:
        from google.api_core.exceptions import NotFound
        from google.cloud.storage.retry import DEFAULT_RETRY

        blob = self._blob()
        options = {"timeout": _TIMEOUT_SECONDS, "retry": DEFAULT_RETRY.with_timeout(30)}
        try:
            blob.reload(**options)
            return blob.download_as_bytes(**options), blob.generation
        except NotFound:
            return None

    def write(self, data: bytes, generation: int) -> int | None:
        from google.api_core.exceptions import PreconditionFailed

        blob = self._blob()
        try:
            # Without retries: the repetition of a write that had succeeded would fail.
            blob.upload_from_string(
                data, if_generation_match=generation, timeout=_TIMEOUT_SECONDS, retry=None
            )
        except PreconditionFailed:
            return None
        return blob.generation

    def delete(self, generation: int) -> None:
        from google.api_core.exceptions import NotFound, PreconditionFailed

        with contextlib.suppress(NotFound, PreconditionFailed):
            self._blob().delete(
                if_generation_match=generation, timeout=_TIMEOUT_SECONDS, retry=None
            )

    def _blob(self) -> Any:
        return objects.google_blob(self._path)  # a new one, since it remembers its generation


def open_object(path: str) -> ConditionalObject:
    """Returns the object at a path, gs://BUCKET/NAME."""
    return _GoogleObject(path)


class _Lease:
    """A lease that this process holds.

    Attributes:
      path: of its object.
      lost: whether another process has taken it over.
    """

    def __init__(self, path: str, stored: ConditionalObject, generation: int, renewed: float):
        self.path = path
        self.lost = False
        self._object, self._generation = stored, generation
        self._count = 0
        self._renewed = renewed
        self._renewing = threading.Lock()
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew_regularly, name="lease", daemon=True)
        self._thread.start()

    def _renew_regularly(self) -> None:
        while not self.lost and not self._released.wait(RENEW_SECONDS):
            with contextlib.suppress(Exception):  # the store may be reached at the next attempt
                self._renew(older_than=0.0)

    def renew_if_old(self) -> None:
        """Renews the lease if it was last renewed so long ago that it may expire soon.

        Raises:
          StoreUnavailable: the object store cannot be reached.
          UsageError: it cannot be written.
        """
        deadline = time.monotonic() + _INSIST_SECONDS
        while True:
            try:
                self._renew(older_than=EXPIRE_SECONDS / 2)
                return
            except Exception as error:
                if time.monotonic() > deadline:
                    raise store_error(
                        f"cannot write {self.path}: {reason(error)}", error
                    ) from error
            time.sleep(min(1.0, _INSIST_SECONDS / 10))

    def _renew(self, older_than: float) -> None:
        """Renews the lease, unless it is lost or was renewed less than `older_than` seconds ago."""
        with self._renewing:
            started = time.monotonic()
            if self.lost or started - self._renewed < older_than:
                return
            self._count += 1
            data = _owner(self._count)
            generation = self._object.write(data, self._generation)
            if generation is None:
                # The previous write may have succeeded although its answer was lost.
                found = self._object.read()
                is_ours = found is not None and _same_owner(found[0], data)
                generation = found[1] if is_ours else None
            if generation is None:
                self.lost = True
            else:
                self._generation, self._renewed = generation, started

    def release(self) -> None:
        self._released.set()
        self._thread.join()
        if not self.lost:
            with contextlib.suppress(Exception):  # if it fails, the lease expires
                self._object.delete(self._generation)


_held: dict[str, _Lease] = {}


@contextlib.contextmanager
def lease(
    path: os.PathLike | str, *, on_wait: Callable[[str], None] = lambda owner: None
) -> Iterator[None]:
    """Holds the lease `path`, an object on an object store.

    Args:
      path: the object.
      on_wait: called with the owner's description before waiting whether it still runs.

    Raises:
      Held: another process holds the lease and renews it.
      StoreUnavailable: the object store cannot be reached.
      UsageError: it cannot be written.
    """
    path = os.fspath(path)
    try:
        held = _acquire(path, on_wait)
    except (Held, UsageError):
        raise
    except Exception as error:
        raise store_error(f"cannot write {path}: {reason(error)}", error) from error
    _held[path] = held
    try:
        yield
    finally:
        del _held[path]
        held.release()


def check_held(path: os.PathLike | str) -> None:
    """Checks that this process has not lost a lease that it took; call it before each write.

    It asks the store only if the lease was not renewed for `EXPIRE_SECONDS` / 2: this process may
    have been suspended, and another one may have taken the lease over.

    Raises:
      StoreUnavailable: the lease was not renewed for that long, and the store cannot be reached.
      UsageError: another process has taken it over, because this one could not renew it.
    """
    held = _held.get(os.fspath(path))
    if held is None:
        return
    held.renew_if_old()
    if held.lost:
        raise UsageError(
            f"this process could not renew its lease {held.path} for {EXPIRE_SECONDS:.0f} s, and "
            "another one has taken it over. It stops, so that not both of them write."
        )


def is_held(path: os.PathLike | str) -> bool:
    """Whether a process holds the lease at this moment. It may take some seconds to tell."""
    stored = open_object(os.fspath(path))
    found = stored.read()
    return found is not None and not _has_ended(found[0]) and _is_renewed(stored, found[1])


def _acquire(path: str, on_wait: Callable[[str], None]) -> _Lease:
    stored = open_object(path)
    for _ in range(3):  # others may take it at the same moment
        found = stored.read()
        data, generation = (b"", 0) if found is None else found
        if found is not None and not _has_ended(data):
            on_wait(_describe(data))
            if _is_renewed(stored, generation):
                raise Held(f"{_describe(data)} holds the lease {path}")
        started = time.monotonic()
        written = stored.write(_owner(0), generation)
        if written is not None:
            return _Lease(path, stored, written, renewed=started)
    raise Held(f"several processes try to take the lease {path}")


def _is_renewed(stored: ConditionalObject, generation: int) -> bool:
    """Whether the lease changes before it expires."""
    deadline = time.monotonic() + EXPIRE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(min(1.0, EXPIRE_SECONDS / 10))
        found = stored.read()
        if found is None:
            return False
        if found[1] != generation:
            return True
    return False


def _owner(count: int) -> bytes:
    owner = {
        "host": socket.gethostname(),
        "machine": _machine(),
        "process": os.getpid(),
        "started": _start_time(os.getpid()),
        "renewed": count,
    }
    return json.dumps(owner).encode()


def _parse(data: bytes) -> dict[str, Any]:
    try:
        owner = json.loads(data)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _same_owner(data: bytes, other: bytes) -> bool:
    return {**_parse(data), "renewed": 0} == {**_parse(other), "renewed": 0}


def _describe(data: bytes) -> str:
    owner = _parse(data)
    return f"process {owner.get('process', '?')} on {owner.get('host', '?')}"


def _has_ended(data: bytes) -> bool:
    """Whether the owner ran on this machine and runs no longer; False if that cannot be told."""
    owner = _parse(data)
    machine = _machine()
    if machine is None or owner.get("machine") != machine:
        return False
    process, started = owner.get("process"), owner.get("started")
    return isinstance(process, int) and _start_time(process) != started


def _machine() -> str | None:
    """What tells apart machines and containers whose process numbers are their own, on Linux."""
    if sys.platform != "linux":
        return None
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _start_time(process: int) -> str | None:
    """When a process started, in ticks since the boot; None if it does not run."""
    try:
        fields = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]  # a zombie has ended
