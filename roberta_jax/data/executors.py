"""Runs one function on many inputs: in this process, in a pool of processes, or on a cluster.

`open_executor` yields an `Executor`. Which one, and so where the function runs, makes no difference
to the results. Clusters are those of existing engines, which also run a task again after its worker
was lost: Ray and Apache Beam, see `cluster_executors`.
"""

import concurrent.futures
import contextlib
import dataclasses
import importlib.util
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

from roberta_jax.errors import UsageError

RUNNERS = ("local", "ray", "beam")
_PACKAGES = {"ray": "ray", "beam": "apache_beam"}  # the extras have the names of the runners


@dataclasses.dataclass(frozen=True)
class Runner:
    """What runs the tasks.

    Attributes:
      name: One of `RUNNERS`: "local" is a pool of processes on this machine.
      options: For "beam": pipeline options, such as "--runner=FlinkRunner". () is Beam's runner for
        a single machine.
    """

    name: str = "local"
    options: tuple[str, ...] = ()

    @property
    def is_local(self) -> bool:
        return self.name == "local"


LOCAL = Runner()


class Executor(Protocol):
    """Runs a function on inputs that are submitted one by one.

    Attributes:
      max_pending: How many inputs may wait for their results; this bounds the memory.
    """

    @property
    def max_pending(self) -> int: ...

    def submit(self, *arguments: Any) -> concurrent.futures.Future:
        """Has the function called with these arguments, which must be picklable."""
        ...

    def flush(self) -> None:
        """Called before waiting for a result."""
        ...

    def result(self, future: concurrent.futures.Future) -> Any:
        """The result of a future that is done.

        Raises:
          UsageError: What the function raised, or the engine gave up; the message says what to do.
        """
        ...


def check_runner(runner: Runner) -> None:
    """Checks that a runner is known and installed.

    Raises:
      UsageError: It is not.
    """
    if runner.name not in RUNNERS:
        raise UsageError(f"--runner={runner.name} is unknown: use one of {', '.join(RUNNERS)}.")
    if runner.options and runner.name != "beam":
        raise UsageError(
            f"--beam_options={' '.join(runner.options)} has no effect with --runner={runner.name}. "
            "Add --runner=beam, or leave it out."
        )
    package = _PACKAGES.get(runner.name)
    if package and importlib.util.find_spec(package) is None:
        raise UsageError(
            f"--runner={runner.name} needs the package {package}, which is not installed. Install "
            f"the extra `{runner.name}`: pip install 'roberta_jax[{runner.name}]'"
        )


@contextlib.contextmanager
def open_executor(
    task: Callable[..., Any], workers: int, runner: Runner = LOCAL
) -> Iterator[Executor]:
    """Yields an executor of `task`.

    Args:
      task: The function; it must be picklable.
      workers: Number of processes on this machine. 1 calls the function in this process.
      runner: What runs the tasks.

    Raises:
      UsageError: The runner is not installed, or its cluster cannot be reached.
    """
    check_runner(runner)
    if not runner.is_local:
        from roberta_jax.data.cluster_executors import open_cluster

        with open_cluster(task, workers, runner) as executor:
            yield executor
    elif workers == 1:
        yield _Inline(task)
    else:
        pool = _Pool(task, workers)
        try:
            yield pool
        finally:
            pool.close()


def usable_cores() -> int:
    """Number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Inline:
    """Calls the function at once."""

    max_pending = 0

    def __init__(self, task: Callable[..., Any]):
        self._task = task

    def submit(self, *arguments: Any) -> concurrent.futures.Future:
        future: concurrent.futures.Future = concurrent.futures.Future()
        future.set_result(self._task(*arguments))
        return future

    def flush(self) -> None:
        """Nothing waits."""

    def result(self, future: concurrent.futures.Future) -> Any:
        return future.result()


class _Pool:
    """A pool of processes on this machine."""

    def __init__(self, task: Callable[..., Any], workers: int):
        self.max_pending = 2 * workers
        # Spawn, because forking a process in which JAX or TensorFlow has started threads can hang.
        self._pool = concurrent.futures.ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), _start_worker, (task,)
        )

    def submit(self, *arguments: Any) -> concurrent.futures.Future:
        with _without_main(), _interrupts_blocked():
            return self._pool.submit(_run_in_worker, *arguments)

    def flush(self) -> None:
        """The processes have begun already."""

    def result(self, future: concurrent.futures.Future) -> Any:
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise UsageError(
                "A worker process died while preparing text, most likely because memory ran out. "
                "Finished parts are kept: run the command again with fewer processes, such as "
                "--config.data.num_workers=1 (the default is one for each core)."
            ) from error

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _without_main():
    """Hides the origin of `__main__`, so that new processes do not import the user's script.

    The script would import JAX in each process. Without this, scripts would also need the guard
    `if __name__ == "__main__"`.
    """
    main = sys.modules["__main__"]
    hidden = {name: vars(main)[name] for name in ("__file__", "__spec__") if name in vars(main)}
    try:
        for name in hidden:
            setattr(main, name, None)
        yield
    finally:
        vars(main).update(hidden)


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Blocks Ctrl-C in the processes that are started within, which inherit it.

    They would otherwise print a traceback if it reached them while they import their modules. In
    this process it arrives at the end of the block.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


_task: Callable[..., Any]  # in a worker process


def _start_worker(task: Callable[..., Any]) -> None:
    global _task
    _task = task
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """Ends a worker whose parent was killed, which would otherwise wait for work forever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _run_in_worker(*arguments: Any) -> Any:
    return _task(*arguments)
