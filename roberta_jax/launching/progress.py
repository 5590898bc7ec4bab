"""Whether a run makes progress: heartbeat, workdir, and before the first step its output."""

import os
import pathlib
import time
from collections.abc import Callable

from roberta_jax.storage import is_local

_WATCHED = ("metrics.jsonl", "checkpoints")  # in the workdir


class Watch:
    """Measures how long a run has shown no sign of progress.

    Signs are: its heartbeat file is touched (see `roberta_jax.training.heartbeat`), which every
    process does at every step; `metrics.jsonl` or the checkpoints in its workdir change; and, until
    one of them happens for the first time, any output: preparing a corpus takes hours without them.

    Attributes:
      started: whether there was a sign other than output.
    """

    def __init__(
        self,
        heartbeat: os.PathLike | str,
        workdir: str | None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Starts to watch an attempt.

        Args:
          heartbeat: the file that its processes touch.
          workdir: the run's folder, None if it is not known. One on an object store is not read.
          clock: returns seconds.
        """
        self._heartbeat = pathlib.Path(heartbeat)
        self._workdir = pathlib.Path(workdir) if workdir and is_local(workdir) else None
        self._clock = clock
        self.started = False
        self._first = self._last = self._signs()
        self._outputs = 0
        self._changed = clock()

    def idle_seconds(self, outputs: int) -> float:
        """Returns for how long there was no sign of progress.

        Args:
          outputs: how many pieces of output the processes have written.
        """
        signs = self._signs()
        self.started = self.started or signs != self._first
        if signs != self._last or (not self.started and outputs != self._outputs):
            self._changed = self._clock()
        self._last, self._outputs = signs, outputs
        return self._clock() - self._changed

    def _signs(self) -> tuple:
        paths = [self._heartbeat]
        if self._workdir is not None:
            paths += [self._workdir / name for name in _WATCHED]
        return tuple(_state(path) for path in paths)


def _state(path: pathlib.Path) -> tuple[int, int] | None:
    """The time of the last change and the size of a file or folder; None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
