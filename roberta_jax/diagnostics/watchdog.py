"""Ends the process with a message if a check does not return."""

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator


def _exit() -> None:
    os._exit(1)  # the main thread waits in native code and cannot be interrupted


@contextlib.contextmanager
def time_limit(
    check: str, seconds: float, advice: str, exit_process: Callable[[], None] = _exit
) -> Iterator[None]:
    """Ends the process with status 1 if the block takes longer.

    Args:
      check: what is checked, for the message.
      seconds: how long it may take.
      advice: what to do then.
      exit_process: ends the process.
    """

    def end() -> None:
        with contextlib.suppress(OSError, ValueError):
            text = f"problem  {check:<17}no answer after {seconds:.0f} s.\n{'':26}-> {advice}\n"
            sys.stdout.write(text)
            sys.stdout.flush()
        exit_process()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
