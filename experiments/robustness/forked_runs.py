"""Runs commands as a shell would, but in forks of a process that has imported everything.

Importing JAX and the package takes seconds, so that hundreds of commands would take an hour. A fork
of this process runs a module as `__main__` at once. No JAX backend may be initialized before the
forks, because its threads do not exist in a fork.
"""

import atexit
import contextlib
import dataclasses
import os
import pathlib
import resource
import runpy
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence

TIME_LIMIT = 60.0
MEMORY_LIMIT = 12 << 30
POLL_SECONDS = 0.02

# What is not a file: a pipe whose reader has gone.
CLOSED_PIPE = "a closed pipe"


@dataclasses.dataclass(frozen=True)
class Run:
    """How a command ended.

    Attributes:
      status: its exit status; negative is the number of the signal that ended it; None if it was
        killed because its time was over.
      stdout, stderr: what it printed.
      seconds: processor time.
    """

    status: int | None
    stdout: str
    stderr: str
    seconds: float


def import_everything() -> None:
    """Imports what the commands import, so that no fork has to."""
    import matplotlib.pyplot  # noqa: F401

    from roberta_jax.exporting import stablehlo  # noqa: F401
    from roberta_jax.inference import fill_mask  # noqa: F401
    from roberta_jax.language_modeling import report  # noqa: F401
    from roberta_jax.planning import search  # noqa: F401
    from roberta_jax.pretraining import datasets, evaluation, text  # noqa: F401
    from roberta_jax.tokenizer import RobertaTokenizer  # noqa: F401
    from roberta_jax.weights import load, save  # noqa: F401


@dataclasses.dataclass(eq=False)
class Running:
    """A command that is running, see `start`."""

    process: int
    folder: pathlib.Path
    deadline: float

    def poll(self) -> Run | None:
        """Returns how the command ended, or None while it is running.

        When its time is over, the command and its children are killed.
        """
        late = time.monotonic() > self.deadline
        if late:
            os.killpg(self.process, signal.SIGKILL)
        ended, status, usage = os.wait4(self.process, 0 if late else os.WNOHANG)
        if not ended:
            return None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process, signal.SIGKILL)  # children that it may have left behind
        return Run(
            None if late else os.waitstatus_to_exitcode(status),
            _text(self.folder / "stdout"),
            _text(self.folder / "stderr"),
            usage.ru_utime + usage.ru_stime,
        )


def start(
    module: str,
    arguments: Sequence[str],
    folder: pathlib.Path,
    *,
    stdin: bytes = b"",
    stdout: str | None = None,
    environment: Mapping[str, str] | None = None,
    time_limit: float = TIME_LIMIT,
    memory_limit: int = MEMORY_LIMIT,
) -> Running:
    """Starts `python -m MODULE ARGUMENTS` in a fork of this process.

    Args:
      module: the dotted name of the module.
      arguments: the command line after it.
      folder: an existing folder for what the command reads and prints (`stdin`, `stdout`,
        `stderr`), and for its current folder.
      stdin: what it can read from standard input.
      stdout: a file to print to in place of one in `folder`, or `CLOSED_PIPE`.
      environment: changes of the environment.
      time_limit: seconds after which the command and its children are killed.
      memory_limit: bytes of address space.
    """
    (folder / "stdin").write_bytes(stdin)
    (folder / "current").mkdir()
    files = {0: folder / "stdin", 1: folder / "stdout", 2: folder / "stderr"}
    for stream in (1, 2):
        files[stream].write_bytes(b"")
    if stdout not in (None, CLOSED_PIPE):
        files[1] = pathlib.Path(stdout)
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():  # JAX warns of any fork
        warnings.simplefilter("ignore")
        process = os.fork()
    if process == 0:
        status = 1
        try:
            os.setsid()
            _redirect(files, closed_pipe=stdout == CLOSED_PIPE)
            os.chdir(folder / "current")
            resource.setrlimit(resource.RLIMIT_AS, (memory_limit, memory_limit))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.environ.update(environment or {})
            sys.argv = [module, *arguments]
            status = _run_as_main(module)
        except BaseException:
            traceback.print_exc()
        os._exit(status)
    return Running(process, folder, time.monotonic() + time_limit)


def run(*arguments, **options) -> Run:
    """Runs a command to its end; takes the arguments of `start`."""
    running = start(*arguments, **options)
    while (ended := running.poll()) is None:
        time.sleep(POLL_SECONDS)
    return ended


def _redirect(files: Mapping[int, pathlib.Path], *, closed_pipe: bool) -> None:
    for stream, path in files.items():
        flags = os.O_RDONLY if stream == 0 else os.O_WRONLY
        descriptor = os.open(path, flags)
        os.dup2(descriptor, stream)
        os.close(descriptor)
    if closed_pipe:
        reader, writer = os.pipe()
        os.dup2(writer, 1)
        os.close(writer)
        os.close(reader)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(
        2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False
    )


def _run_as_main(module: str) -> int:
    """Runs a module as the interpreter does, and returns its exit status."""
    status: object = 0
    try:
        with warnings.catch_warnings():  # that the module was imported before
            warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")
            warnings.filterwarnings("ignore", message=".*found in sys.modules")
            runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        status = ended.code
    except KeyboardInterrupt:
        traceback.print_exc()
        status = 130
    except BaseException:
        traceback.print_exc()
        status = 1
    if isinstance(status, str):
        print(status, file=sys.stderr)
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except OSError as error:
        print(f"Exception ignored while flushing sys.stdout: {error!r}", file=sys.stderr)
        status = 120  # as the interpreter does
    return int(status or 0)


def _text(path: pathlib.Path) -> str:
    return path.read_bytes().decode("utf-8", errors="backslashreplace")
