"""Starts and ends child processes, shares CPU cores among them, and handles requests to stop."""

import contextlib
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

from experiments.running import worker
from experiments.study.loading import ROOT


def start(
    module: str,
    arguments: Sequence[str],
    log: pathlib.Path | None,
    cores: set[int] | None,
    cache: os.PathLike | None,
) -> subprocess.Popen:
    """Starts `python -m module arguments` in a process group of its own.

    Args:
      module: the dotted name of the module.
      arguments: its command-line arguments.
      log: the file that its output is appended to. None leaves the output on the terminal.
      cores: the CPU cores that it may use. None does not restrict them.
      cache: the folder of JAX's compilation cache, unless the environment already names one.
    """
    environment = {**os.environ, worker.PARENT: str(os.getpid())}
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    if cache is not None:
        environment.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.abspath(cache))
        environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    with contextlib.nullcontext() if log is None else open(log, "ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=None if file is None else subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the sweep only, which passes it on
        )
    if cores is not None:
        with contextlib.suppress(OSError):  # the process has already ended
            os.sched_setaffinity(process.pid, cores)
    return process


def kill(process: subprocess.Popen) -> None:
    """Kills a process and all processes of its group, and waits for its end."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def core_shares(processes: int) -> list[set[int] | None]:
    """Divides the CPU cores among processes.

    Returns:
      The cores of each process; None for a single process, and on systems without CPU affinity.
    """
    if processes == 1 or not hasattr(os, "sched_getaffinity"):
        return [None] * processes
    cores = sorted(os.sched_getaffinity(0))
    if processes > len(cores):
        return [{cores[index % len(cores)]} for index in range(processes)]
    ends = [index * len(cores) // processes for index in range(processes + 1)]
    return [set(cores[start:end]) for start, end in itertools.pairwise(ends)]


def signal_name(status: int) -> str:
    """Describes what ended a process, given its return code, which is zero or negative."""
    return signal.Signals(-status).name if status else "a request to stop"


class StopRequests:
    """Counts SIGTERM and Ctrl-C in a `with` block; the second one raises KeyboardInterrupt.

    Only the main thread receives signals; in another thread nothing is counted.
    """

    def __init__(self):
        self.signal: int | None = None  # the first one that was received
        self._count = 0
        self._handlers = {}

    def __bool__(self) -> bool:
        return self._count > 0

    def __enter__(self) -> "StopRequests":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._handlers[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _receive(self, number, frame) -> None:
        self._count += 1
        self.signal = self.signal or number
        if self._count > 1:
            raise KeyboardInterrupt
