"""Turns SIGTERM and Ctrl-C into a request to stop after the current step."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether the run was asked to stop.

    Call it after every training step and every evaluation batch. Inside the context, SIGTERM (sent
    by a scheduler that preempts the job) and Ctrl-C set a flag and do not end the process. A second
    Ctrl-C raises KeyboardInterrupt. The former signal handlers are restored at the end.

    With several processes, JAX's preemption service makes all of them stop at the same call, so all
    processes must call the function equally often. Outside the main thread, which alone receives
    signals, the function always returns False.
    """
    if jax.process_count() > 1:
        calls, stopped = 0, False

        def all_processes_stop() -> bool:
            nonlocal calls, stopped
            calls += 1
            stopped = stopped or multihost_utils.reached_preemption_sync_point(calls)
            return stopped

        yield all_processes_stop
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    stop_requested = threading.Event()

    def handle(number, frame):
        if stop_requested.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop_requested.set()

    handlers = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop_requested.is_set
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
