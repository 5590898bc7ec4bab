"""Exclusive locks on files, which the operating system releases when the process ends.

Object stores have no locks; there, a lease takes their place (see `storage.leases`).
"""

import contextlib
import os
from collections.abc import Callable, Iterator

import filelock

from roberta_jax.storage import leases
from roberta_jax.storage.atomic import is_local


class AlreadyLocked(OSError):
    """Another process holds the lock."""


@contextlib.contextmanager
def exclusive_lock(
    path: os.PathLike | str, *, on_wait: Callable[[], None] | None = None
) -> Iterator[None]:
    """Holds an exclusive lock on the file `path`, which is created if needed.

    Args:
      path: the lock file. Its folder must exist, unless it is on an object store.
      on_wait: called once before waiting for another process. None does not wait. (On an object
        store, only until it is clear whether the other process still runs.)

    Raises:
      AlreadyLocked: another process holds the lock and `on_wait` is None; or it is on an object
        store.
    """
    if not is_local(path):
        wait = (lambda owner: None) if on_wait is None else (lambda owner: on_wait())
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(leases.lease(path, on_wait=wait))
            except leases.Held as error:
                raise AlreadyLocked(str(error)) from None
            yield
        return
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if on_wait is None:
            raise AlreadyLocked(f"another process holds the lock {os.fspath(path)}") from None
        on_wait()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def is_locked(path: os.PathLike | str) -> bool:
    """Whether a process holds the lock `path` at this moment."""
    if not is_local(path):
        return leases.is_held(path)
    if not os.path.exists(path):
        return False
    try:
        with exclusive_lock(path):
            return False
    except AlreadyLocked:
        return True
