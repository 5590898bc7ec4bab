"""Files that grow while a process runs, in a folder that may be on an object store.

Objects cannot be appended to. There the files grow in a temporary local folder, and `publish`
writes those that have changed as whole objects.
"""

import os
import pathlib
import shutil
import tempfile
import time

from etils import epath

from roberta_jax.storage.atomic import is_local
from roberta_jax.storage.leases import check_held
from roberta_jax.storage.objects import explained


class PublishedFolder:
    """A folder to write files in.

    Attributes:
      local: where to write them. On a file system it is the folder itself.
    """

    def __init__(self, folder: os.PathLike | str, lease: os.PathLike | str):
        """Opens the folder; on a file system it is created if it does not exist.

        Args:
          folder: the folder.
          lease: the lease that the process holds on the folder, see `storage.leases`. One that has
            lost it writes no more.
        """
        self._lease = lease
        self._target = None if is_local(folder) else epath.Path(folder)
        self._published: dict[str, tuple[int, int]] = {}  # name: size and time of the last change
        self._last_time = time.monotonic()
        self._failed = False
        if self._target is None:
            self.local = pathlib.Path(folder)
            self.local.mkdir(parents=True, exist_ok=True)
        else:
            self.local = pathlib.Path(tempfile.mkdtemp(prefix="roberta_jax_"))

    @property
    def seconds_behind(self) -> float:
        """The time since the last `publish`; 0 on a file system, which shows everything at once."""
        return 0.0 if self._target is None else time.monotonic() - self._last_time

    def publish(self) -> None:
        """Writes the files that have changed to the object store.

        Raises:
          StoreUnavailable: the object store cannot be reached.
          UsageError: it cannot be written, or the lease was lost.
        """
        if self._target is None:
            return
        self._last_time = time.monotonic()
        self._failed = True
        check_held(self._lease)  # also if nothing has changed: a checkpoint is written next
        for path in sorted(self.local.rglob("*")):
            if path.is_file():
                name, stat = path.relative_to(self.local).as_posix(), path.stat()
                state = (stat.st_size, stat.st_mtime_ns)
                if self._published.get(name) != state:
                    check_held(self._lease)  # the file before it may have taken long
                    with explained("write", self._target / name):
                        (self._target / name).write_bytes(path.read_bytes())
                    self._published[name] = state
        self._failed = False

    def close(self, after_error: bool = False) -> None:
        """Publishes the files and removes the temporary folder.

        Args:
          after_error: whether the process ends with an error. The files are then published only if
            they could be at the last attempt, which may have taken a minute.

        Raises:
          UsageError: as for `publish`.
        """
        try:
            if not (after_error and self._failed):
                self.publish()
        finally:
            if self._target is not None:
                shutil.rmtree(self.local, ignore_errors=True)
