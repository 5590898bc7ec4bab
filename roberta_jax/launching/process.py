"""A supervised process: its output is passed on, and the end of it is kept."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import BinaryIO

from roberta_jax.launching.tail import Tail

JOIN_SECONDS = 5.0  # to wait for the rest of the output of a process that has ended

_printing = threading.Lock()
# Looked up before any fork: nothing may be imported between fork and exec.
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class Process:
    """A process in a process group of its own, so that its children can be ended with it.

    Attributes:
      index: its number among the processes of the machine.
      outputs: how many pieces of output it has written.
      stdout: the end of what it wrote to stdout.
      stderr: the end of what it wrote to stderr.
    """

    def __init__(
        self,
        command: Sequence[str],
        variables: Mapping[str, str],
        index: int = 0,
        prefix: str = "",
        on_closed_output: Callable[[], None] = lambda: None,
    ):
        """Starts the process.

        Args:
          command: its command line.
          variables: environment variables that it gets besides the supervisor's.
          index: its number.
          prefix: written before each line of its output.
          on_closed_output: called if the supervisor's own stdout cannot be written.
        """
        self.index = index
        self.outputs = 0
        self._prefix = prefix.encode()
        self._on_closed_output = on_closed_output
        self.stdout, self.stderr = Tail(), Tail()
        self._process = subprocess.Popen(
            list(command),
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches the supervisor only, which passes it on
            preexec_fn=_end_with_parent,
        )
        streams = (
            (self._process.stdout, sys.stdout, self.stdout),
            (self._process.stderr, sys.stderr, self.stderr),
        )
        self._threads = [
            threading.Thread(target=self._pass_on, args=stream, daemon=True) for stream in streams
        ]
        for thread in self._threads:
            thread.start()

    @property
    def status(self) -> int | None:
        """The return code, None while it runs; the negative number of the signal that ended it."""
        return self._process.poll()

    def send(self, number: int) -> None:
        """Sends a signal to the process, not to its children."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def end(self) -> None:
        """Kills what is left of the process and its group, and reads the rest of its output."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for thread in self._threads:
            # A child that has left the group may still hold the pipe.
            thread.join(JOIN_SECONDS)

    def _pass_on(self, source: BinaryIO, target: object, tail: Tail) -> None:
        """Copies a stream of the process to one of the supervisor's until it ends."""
        with source:
            read = source.readline if self._prefix else (lambda: source.read1(1 << 16))
            while piece := read():
                self.outputs += 1
                tail.add(piece)
                if not _write(target, self._prefix + piece):
                    self._on_closed_output()


def _write(stream: object, data: bytes) -> bool:
    """Writes to stdout or stderr; False if it cannot be written."""
    if stream is None:
        return True
    try:
        with _printing:
            buffer = getattr(stream, "buffer", None)
            if buffer is None:  # replaced by a stream of text
                stream.write(data.decode("utf-8", "replace"))
            else:
                buffer.write(data)
            stream.flush()
    except (OSError, ValueError):
        return stream is not sys.stdout
    return True


def say(text: str) -> None:
    """Prints a line of the supervisor on stderr."""
    _write(sys.stderr, f"launch: {text}\n".encode("utf-8", "replace"))


def _end_with_parent() -> None:
    """Makes the system send SIGTERM to the process when the supervisor ends. Linux only."""
    if _libc is not None:
        set_death_signal = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>
        _libc.prctl(set_death_signal, signal.SIGTERM)
