"""A cache of prepared text on an object store, `--config.data.cache_dir=gs://BUCKET/FOLDER`.

Stores are memory-mapped, so they have to be on a local disk. Each machine has a cache there, in the
user's cache folder, and the object store has copies of its entries: a trained tokenizer, or the two
stores of a corpus. An entry that a machine lacks is copied from the object store and compared with
the digests that were written beside it. If the object store lacks it, too, one process makes it on
its machine, while it holds a lease on the object store, and copies it there; all others wait and
then copy it. An entry on the object store is complete once it has its last object, which holds the
digests, so that after a kill at any moment the next process continues.

Packing indices are not copied: each machine packs its own, at some 15 GB of tokens per CPU-minute.
"""

import contextlib
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator

import tqdm.auto

from roberta_jax.data.store.build import folder_lock
from roberta_jax.data.store.digests import CHECKED
from roberta_jax.data.store.shards import BUILDING
from roberta_jax.storage.locks import AlreadyLocked, exclusive_lock
from roberta_jax.storage.objects import (
    check_bucket,
    download_folder,
    is_uploaded,
    list_files,
    upload_folder,
)

_POLL_SECONDS = 10.0


class RemoteCache:
    """The copies of a local cache on an object store.

    Args:
      url: The folder on the object store. None is no object store: then nothing is copied.
      local: The local cache.
      progress: Whether to show progress bars.
    """

    def __init__(self, url: str | None, local: pathlib.Path, progress: bool):
        self._url, self._local, self._progress = url, local, progress

    def check(self) -> None:
        """Checks in seconds that the object store can be used.

        Raises:
          UsageError: It cannot be used.
        """
        if self._url is not None:
            check_bucket(self._url, writes=True, option="--config.data.cache_dir")

    @contextlib.contextmanager
    def entry(self, folder: pathlib.Path, is_complete: Callable[[], bool]) -> Iterator[None]:
        """Makes a block run with an entry of the cache that was copied, if any machine has made it.

        If none has, the block makes the entry, and it is copied to the object store afterwards.

        Args:
          folder: The entry in the local cache.
          is_complete: Whether the local entry is complete.

        Raises:
          UsageError: The object store cannot be used, or its copy is damaged; the message says
            what to do.
        """
        if self._url is None:
            yield
            return
        target = f"{self._url}/{folder.relative_to(self._local).as_posix()}"
        with contextlib.ExitStack() as stack:
            if self._await_turn(folder, target, is_complete, stack):
                yield
                if not is_uploaded(target):
                    self._upload(folder, target)
                return
        yield

    def _await_turn(
        self,
        folder: pathlib.Path,
        target: str,
        is_complete: Callable[[], bool],
        stack: contextlib.ExitStack,
    ) -> bool:
        """Waits until the entry is here or is to be made here; in that case the lease is held."""
        has_waited = False

        def report_wait() -> None:
            nonlocal has_waited
            if self._progress and not has_waited:
                print(f"Waiting for another process that prepares {target}", file=sys.stderr)
            has_waited = True

        while True:
            if is_uploaded(target):
                if not is_complete():
                    self._download(target, folder, is_complete)
                return False
            try:
                stack.enter_context(exclusive_lock(f"{target}.lock", on_wait=report_wait))
            except AlreadyLocked:
                report_wait()
                if is_complete():  # by a process of this machine, which is copying it now
                    return False
                time.sleep(_POLL_SECONDS)
                continue
            if is_uploaded(target):  # meanwhile
                stack.close()
                continue
            return True

    def _download(self, target: str, folder: pathlib.Path, is_complete: Callable[[], bool]) -> None:
        with folder_lock(folder, self._progress):
            if is_complete():  # by another process of this machine
                return
            if folder.exists():  # what is left of an interrupted build
                shutil.rmtree(folder)
            with self._bar(f"Copying {target}", None) as bar:
                download_folder(target, folder, on_bytes=bar.update)

    def _upload(self, folder: pathlib.Path, target: str) -> None:
        size = sum(n for name, n in list_files(folder).items() if not _is_left_out(name))
        with self._bar(f"Copying to {target}", size) as bar:
            upload_folder(folder, target, skip=_is_left_out, on_bytes=bar.update)

    def _bar(self, title: str, size: int | None) -> tqdm.auto.tqdm:
        return tqdm.auto.tqdm(
            desc=title, total=size, unit="B", unit_scale=True, disable=not self._progress
        )


def _is_left_out(name: str) -> bool:
    """Whether a file of an entry is of use only where it was written."""
    parts = pathlib.PurePosixPath(name).parts
    return (
        parts[-1] == CHECKED
        or parts[-1].endswith((".lock", ".tmp"))
        or bool({"packed", BUILDING} & set(parts[:-1]))
    )
