"""Processes that a sweep starts: each with its cores, its log and a common compilation cache."""

import contextlib
import itertools
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Sequence

from experiments import worker
from experiments.study_files import ROOT


def start(
    module: str,
    arguments: Sequence[str],
    log: pathlib.Path | None,
    cores: set[int] | None,
    cache: os.PathLike | None,
) -> subprocess.Popen:
    """Starts `python -m module arguments` in a process group of its own.

    Args:
      log: the file that its output is added to; None shows it.
      cores: that it may use; None leaves it all.
      cache: for compiled programs, where the environment names none.
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
            start_new_session=True,  # Ctrl-C is the sweep's to pass on
        )
    if cores is not None:
        with contextlib.suppress(OSError):  # it has ended already
            os.sched_setaffinity(process.pid, cores)
    return process


def kill(process: subprocess.Popen) -> None:
    """Ends a process at once, with all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def core_shares(processes: int) -> list[set[int] | None]:
    """The cores of each of so many processes; None for one, or where cores cannot be given."""
    if processes == 1 or not hasattr(os, "sched_getaffinity"):
        return [None] * processes
    cores = sorted(os.sched_getaffinity(0))
    if processes > len(cores):
        return [{cores[index % len(cores)]} for index in range(processes)]
    ends = [index * len(cores) // processes for index in range(processes + 1)]
    return [set(cores[start:end]) for start, end in itertools.pairwise(ends)]
