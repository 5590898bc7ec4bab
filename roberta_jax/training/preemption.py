"""Turns SIGTERM and Ctrl-C into a request to stop after the current step.

Python calls a signal handler only between two instructions of the main thread, which can be minutes
later if that is compiling or waiting for a device. What is said about a signal, and what a second
Ctrl-C does to a command, is therefore done in a thread of its own.
"""

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from roberta_jax.training import heartbeat

if TYPE_CHECKING:
    from roberta_jax.training.partners import Partners

SIGPIPE = 13  # not every system defines it

# Exit statuses of a command that ended because of a signal, as shells report it.
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
OUTPUT_CLOSED = 128 + SIGPIPE

# Of a write to a pipe whose reader has ended, to a full disk, or to a terminal that is gone.
_OF_OUTPUT = (errno.EPIPE, errno.ENOSPC, errno.EIO)

_END = 0  # ends the thread that watches signals; no signal has this number

_receiver: Callable[[int], None] | None = None  # of the innermost `_watch_signals`
_commands = 0  # how many `interruptible_command` contexts are active


if hasattr(os, "register_at_fork"):
    # A signal that a forked process receives is not one of this process.
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


class StopRequests:
    """Whether a run was asked to stop. Call it after every training step and evaluation batch.

    Attributes:
      signal: the number of the first signal that asked for it, None before. With several processes
        all have the same number once the call has returned True.
    """

    def __init__(
        self,
        poll: Callable[[], int | bool | None] | None = None,
        ask_all: Callable[[int], None] = lambda number: None,
    ):
        """Creates the requests of one run.

        Args:
          poll: whether to stop: the number of the signal, or True without one. By default that of
            `request`.
          ask_all: asks all processes to stop, by the number of the signal.
        """
        self.signal: int | None = None
        self._poll = poll
        self._ask_all = ask_all

    def __call__(self) -> bool:
        heartbeat.beat()
        if self._poll is None:
            return self.signal is not None
        stop = self._poll()
        if stop and stop is not True:
            self.signal = int(stop)
        return bool(stop)

    def request(self, number: int) -> bool:
        """Asks for a stop as if the signal had been received; False if one was asked for before."""
        first = self.signal is None
        if first:
            self.signal = number
            self._ask_all(number)
        return first


@contextlib.contextmanager
def stop_requests(
    notice: Callable[[int], str] = lambda number: "",
    quit_notice: Callable[[], str] = lambda: "",
    partners: "Partners | None" = None,
) -> Iterator[StopRequests]:
    """Yields a function that returns whether the run was asked to stop.

    Call it after every training step and every evaluation batch. Inside the context, SIGTERM (sent
    by a scheduler that preempts the job) and Ctrl-C set a flag and do not end the process. A second
    Ctrl-C ends a command (see `interruptible_command`) at once with status 130; elsewhere it raises
    KeyboardInterrupt. The former signal handlers are restored at the end.

    With several processes, a signal to one of them stops all, at the same call: all processes must
    call the function equally often. Outside the main thread, which alone receives signals, the
    function returns True only after `StopRequests.request`, or a signal to another process.

    Args:
      notice: number of the first signal -> what is printed on stderr at once.
      quit_notice: () -> what is printed when a second Ctrl-C ends the command.
      partners: the other processes of the run, None if there is only this one.
    """
    if partners is None:
        requests = StopRequests()
    else:
        partners.enter_run()
        requests = StopRequests(partners.poll, partners.request_stop)
    received: list[int] = []  # by the thread that prints, at once
    handled: list[int] = []  # by the main thread, between two of its instructions
    others: list[int] = []  # by other processes

    def announce(number: int) -> None:
        if number not in (signal.SIGTERM, signal.SIGINT):
            return
        received.append(number)
        if len(received) == 1:
            if not others:
                _print(notice(number))
            if partners is not None:  # the main thread may wait for a device
                partners.request_stop(number)
        elif number == signal.SIGINT and _commands:
            _quit(quit_notice())

    def announce_of_others(number: int, host: str) -> None:
        if not received and number != SIGPIPE:
            others.append(number)
            _print(f"On host {host}: {notice(number)}")

    def handle(number, frame):
        handled.append(number)
        # Ctrl-C in a terminal reaches all its processes, some of them after the request of another.
        repeated = not requests.request(number) and (partners is None or len(handled) > 1)
        if repeated and number == signal.SIGINT:
            raise KeyboardInterrupt

    with contextlib.ExitStack() as stack:
        if partners is not None:
            stack.enter_context(partners.telling_of_stops(announce_of_others))
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                former = signal.signal(number, handle)
                # None: it was not set by Python.
                stack.callback(signal.signal, number, former or signal.SIG_DFL)
            stack.enter_context(_watch_signals(announce))
        yield requests


@contextlib.contextmanager
def terminated_by(end: Callable[[], None]) -> Iterator[None]:
    """Calls a function at SIGTERM, also while the main thread is busy outside of Python.

    It is called in another thread and ends the process. Inside `stop_requests` SIGTERM means
    something else. The context does nothing outside the main thread, or where SIGTERM has a handler
    or is ignored.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return
    others = _receiver

    def received(number: int) -> None:
        if number == signal.SIGTERM:
            end()
        elif others is not None:
            others(number)

    signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        with _watch_signals(received):
            yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def interruptible_command(notice: str) -> Iterator[None]:
    """Makes Ctrl-C end a command without a traceback, with exit status 130.

    The first one prints a notice at once and raises KeyboardInterrupt in the main thread, which
    ends the context with SystemExit. A second one ends the process, whatever it is doing. Where
    Ctrl-C is ignored (a background job of a shell script) or has another handler, only the exit
    changes.

    Args:
      notice: what the first Ctrl-C prints on stderr.
    """
    global _commands
    received: list[int] = []
    repeated: list[int] = []
    hook = sys.unraisablehook

    def raise_again(unraisable) -> None:
        # Raised in a callback of the garbage collector, KeyboardInterrupt is reported and lost.
        if unraisable.exc_type is KeyboardInterrupt:
            repeated.append(signal.SIGINT)
            # A real signal, which also ends a wait, unlike `_thread.interrupt_main`.
            main = threading.main_thread().ident
            threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT)).start()
        else:
            hook(unraisable)

    def announce(number: int) -> None:
        if number != signal.SIGINT:
            return
        if repeated:
            repeated.pop()
            return
        received.append(number)
        if len(received) == 1:
            _print(notice)
        else:
            _quit("Quit.")

    watched = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    _commands += 1
    if watched:
        sys.unraisablehook = raise_again
    try:
        with _watch_signals(announce) if watched else contextlib.nullcontext():
            yield
    except KeyboardInterrupt:
        if watched:  # nothing of what follows needs an orderly end
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        sys.exit(INTERRUPTED)
    finally:
        _commands -= 1
        if watched:
            sys.unraisablehook = hook


def end_quietly() -> None:
    """Makes Ctrl-C at the exit of the interpreter do nothing, and a second one end the process.

    The work is done. KeyboardInterrupt in what still runs then is reported, and changes nothing.
    Register it with `atexit`, since a process may also go on after a command, as a test does.
    """
    if (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):
        signal.signal(
            signal.SIGINT, lambda number, frame: signal.signal(signal.SIGINT, signal.SIG_DFL)
        )


@contextlib.contextmanager
def checked_output() -> Iterator[None]:
    """Exits with status 141 if stdout cannot be written: its reader has ended, or a disk is full.

    The status is that of programs that SIGPIPE ends, as in `... | head`.
    """
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        if not discard_failed_output(error):
            raise  # of another file
        if not isinstance(error, BrokenPipeError):
            _print(f"error: cannot write the output: {error.strerror or error}")
        sys.exit(OUTPUT_CLOSED)


def discard_failed_output(error: OSError) -> bool:
    """Discards further output if stdout cannot be written.

    Args:
      error: raised by what may have been printing.

    Returns:
      Whether it is stdout that cannot be written.
    """
    if error.errno not in _OF_OUTPUT or error.filename is not None or sys.stdout is None:
        return False  # errors of open files, as stdout is, name no file
    try:
        stdout = sys.stdout.fileno()
        os.write(stdout, b"\n")
        return False
    except ValueError:  # stdout is not a file of the system: a notebook's, a test's
        return False
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stdout)
        os.close(null)
        return True


@contextlib.contextmanager
def _watch_signals(received: Callable[[int], None]) -> Iterator[None]:
    """Calls a function with the number of each signal that has a handler, from a thread."""
    global _receiver
    reading, writing = os.pipe()
    os.set_blocking(writing, False)  # the C-level handler must never wait
    former = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def watch() -> None:
        while True:
            for number in os.read(reading, 64):
                if number == _END:
                    return
                received(number)

    thread = threading.Thread(target=watch, name="signals", daemon=True)
    thread.start()
    outer, _receiver = _receiver, received
    try:
        yield
    finally:
        _receiver = outer
        signal.set_wakeup_fd(former)
        os.write(writing, bytes([_END]))  # a forked process may keep the pipe open
        thread.join()
        os.close(writing)
        os.close(reading)


def _print(text: str) -> None:
    """Writes a line to stderr at once, also while another thread is printing."""
    if text:
        with contextlib.suppress(OSError):
            os.write(2, f"\n{text}\n".encode())


def _quit(text: str) -> None:
    """Ends the process. What it was writing has a temporary name, as if it had been killed."""
    _print(text)
    os._exit(INTERRUPTED)
