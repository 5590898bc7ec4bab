"""Lets processes that save a checkpoint together wait for each other, and notice a failed one.

Orbax waits at barriers while it saves. A process that cannot write its part leaves the others there
until a long timeout, and then waits itself for them. `SaveBarrier` takes the place of the barriers
of the background save: a process that comes to one because of an error says so, and nobody waits
for it any longer.
"""

import sys
import threading
import time
from typing import Any

import jax

from roberta_jax.training import agreement

_PREFIX = f"{agreement.KEYS}/save"
_PAUSE = 0.02  # seconds between two looks at the coordination service, at first
_LONGEST_PAUSE = 0.5


class SaveFailed(RuntimeError):
    """A process could not write its part of a checkpoint."""


class SaveBarrier:
    """A barrier between all processes, for `ocp.AsyncOptions(barrier_sync_fn=...)`.

    Orbax calls it from one thread at a time, and in the same order on all processes. The number of
    such objects that have been made before must be the same on all processes, too.
    """

    _objects = 0

    def __init__(self):
        self._folder = f"{_PREFIX}/{SaveBarrier._objects}"
        SaveBarrier._objects += 1
        self._arrivals = 0

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        """Waits until all processes have called it.

        Raises:
          SaveFailed: the save failed on this process, which the others are told, or on another.
          TimeoutError: a process did not come in time.
        """
        del key
        # Orbax also comes here to clean up after an error.
        if sys.exception() is not None:
            self._announce_failure()
            raise SaveFailed("a part of the checkpoint could not be written")
        service, index = agreement.client(), jax.process_index()
        number = self._arrivals
        self._arrivals += 1
        folder = f"{self._folder}/arrived/{number}"
        service.key_value_set(f"{folder}/{index}", "1")
        end, pause = time.monotonic() + timeout_ms / 1000, _PAUSE
        while len(service.key_value_dir_get(folder)) < jax.process_count():
            if self.has_failed():
                raise SaveFailed("another process could not write its part of the checkpoint")
            if time.monotonic() > end:
                raise TimeoutError("the other processes did not finish the checkpoint in time")
            time.sleep(pause)
            pause = min(1.5 * pause, _LONGEST_PAUSE)
        if number:  # all processes have left the barrier before this one
            service.key_value_delete(f"{self._folder}/arrived/{number - 1}/{index}")

    def has_failed(self) -> bool:
        """Whether a process has said that its save failed."""
        return bool(agreement.client().key_value_dir_get(f"{self._folder}/failed"))

    def _announce_failure(self) -> None:
        agreement.client().key_value_set(
            f"{self._folder}/failed/{jax.process_index()}", "1", allow_overwrite=True
        )

    def join(self, manager: Any, timeout: float | None = None) -> bool:
        """Waits for the background save of a manager, unless it fails on another process.

        Args:
          manager: an `ocp.CheckpointManager`.
          timeout: seconds to wait at most; None is without a limit.

        Returns:
          Whether the save has ended, and well. If not, its threads may still be waiting.

        Raises:
          Exception: that of the save, if it failed on this process.
        """
        errors: list[BaseException] = []

        def wait() -> None:
            try:
                manager.wait_until_finished()
            except BaseException as error:
                errors.append(error)

        waiting = threading.Thread(target=wait, name="wait_for_save", daemon=True)
        waiting.start()
        end = None if timeout is None else time.monotonic() + timeout
        elsewhere = False
        while waiting.is_alive() and not elsewhere:
            waiting.join(0.1)
            elsewhere = waiting.is_alive() and self.has_failed()
            if end is not None and time.monotonic() > end:
                return False
        if elsewhere:
            waiting.join(2.0)  # a failure of this process itself says more
        failures = [error for error in errors if not _is_of_another_process(error)]
        if failures:
            raise failures[0]
        return not elsewhere and not errors


def _is_of_another_process(error: BaseException) -> bool:
    """Whether nothing failed here: the error is a `SaveFailed` that follows no other error."""
    while isinstance(error, SaveFailed):
        if error.__context__ is None:
            return True
        error = error.__context__
    return False
