"""How a process ends that can no longer work with the other processes of the run."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from roberta_jax.errors import RESTART_FILE

_on_abort: Any = None  # keeps the handler from being garbage collected


@contextlib.contextmanager
def handled_aborts(aborted: Callable[[], None]) -> Iterator[None]:
    """Calls a function when the runtime aborts this process (SIGABRT), before the process ends.

    JAX's distributed runtime aborts a process that loses the coordination service, in a thread of
    C++ where Python's own signal handlers do not run. If the function returns, the signal does what
    it did before: faulthandler prints the stacks, if it is enabled, and the process ends.
    """
    global _on_abort

    def handle(number: int) -> None:
        try:
            aborted()
        finally:
            # A signal that another process has sent would be over with this handler.
            set_handler(number, previous)
            signal.raise_signal(number)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)
    set_handler = ctypes.CDLL(None).signal
    set_handler.restype = ctypes.c_void_p
    set_handler.argtypes = [ctypes.c_int, ctypes.c_void_p]
    former, _on_abort = _on_abort, handler
    previous = set_handler(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        set_handler(signal.SIGABRT, previous)
        _on_abort = former


def report(message: str, *, restart: bool) -> None:
    """Prints a message on stderr, also while other threads print.

    Args:
      message: what to print.
      restart: whether `ask_for_restart` is called as well.
    """
    with contextlib.suppress(OSError):
        os.write(2, f"{message}\n".encode("utf-8", "backslashreplace"))
    if restart:
        ask_for_restart(message)


def ask_for_restart(message: str) -> None:
    """Tells a supervisor that the command may succeed if all processes are started again.

    It writes the message to the file that the environment variable `RESTART_FILE` names, if any. A
    supervisor then starts this process again, which otherwise ends with the same status as after a
    mistake of the user.
    """
    path = os.environ.get(RESTART_FILE)
    if path:
        with contextlib.suppress(OSError), open(path, "w", encoding="utf-8") as file:
            file.write(message)


def flush() -> None:
    """Writes out what was printed, before an exit without cleaning up."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def ends_within(function: Callable[[], Any], seconds: float) -> bool:
    """Calls a function in another thread; returns whether it has ended in time.

    If not, the thread goes on; it does not keep the process from ending. Exceptions are ignored.
    """

    def call() -> None:
        with contextlib.suppress(Exception):
            function()

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def end_within(seconds: float, status: int) -> None:
    """Ends this process with a status so long after the interpreter begins to exit.

    The exit waits for the threads of executors, which may wait for a store that is gone. Nothing
    happens before it, such as in a notebook that goes on after an error.
    """
    exiting = threading.Event()

    def end() -> None:
        exiting.wait()
        time.sleep(seconds)
        flush()
        os._exit(status)

    # As executors do it. The functions of `atexit`, and the end of the main thread, come only after
    # the threads of executors have ended. The last function that was registered is called first.
    threading._register_atexit(exiting.set)
    threading.Thread(target=end, daemon=True).start()
