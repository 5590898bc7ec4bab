"""Watches the other processes of a run, and ends this one with a message when one is lost.

A process that waits for another one waits inside the runtime, where no exception reaches it: a
collective has no timeout, and JAX's own coordination service aborts the process. So each process
has two threads. One writes a heartbeat to the key-value store of the coordination service and reads
those of the others; the second one judges them. If a process sends none any more, has ended with an
error, or stays behind the others for too long, the run cannot go on: the message of the loss is
printed on stderr and the process ends with status 2. The last checkpoint is intact, because
checkpoints are written under temporary names.

The same store carries the request to stop (see `preemption`): all processes stop at the same poll.
"""

import contextlib
import dataclasses
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax

from roberta_jax.training import agreement
from roberta_jax.training.ending import flush, report

_FOLDER = f"{agreement.KEYS}/processes"
_STOP_FOLDER = f"{agreement.KEYS}/stop"
_JUDGE_EVERY = 0.5  # seconds
_COMPILING = 6  # times as late as otherwise may be the first step
_GRACE = 6.0  # seconds in which this process may end by itself after another one has ended
_LAST_WORDS = 5.0  # seconds that it may take to tell the others of the end of this process


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timeouts:
    """How long to wait for other processes, in seconds.

    Attributes:
      start: until all processes have started.
      heartbeat: without a sign of life of a process.
      late: for a process that is alive but behind the others.
    """

    start: float = 300.0
    heartbeat: float = 40.0
    late: float = 600.0


@dataclasses.dataclass
class _Other:
    """What is known of another process; the times are of this process's clock."""

    heard: float
    moved: float
    beat: int = -1
    polls: int = 0
    host: str = "a host that has not answered"
    doing: str = "starting"
    ended: dict[str, Any] | None = None
    ended_at: float = 0.0

    @property
    def patience(self) -> int:
        """By which factor it may be later: one host may compile what another has in its cache."""
        return 1 if self.polls else _COMPILING

    def hear(self, now: float, beat: int, polls: int, doing: str, host: str) -> None:
        """Takes note of a heartbeat."""
        if beat != self.beat:
            self.heard = now
        if polls != self.polls:
            self.moved = now
        self.beat, self.polls, self.doing, self.host = beat, polls, doing, host


class Partners:
    """The other processes of the run, as seen by the threads that watch them.

    What the processes post stays in the coordination service for as long as it runs. A process may
    watch several times in a row, so each time has keys of its own, by its number.

    Attributes:
      doing: () -> what this process is at, for the messages of the others: "step 12".
      on_stop: called with the number of the signal and the host's name when a stop was requested.
    """

    _objects = 0

    def __init__(
        self,
        timeouts: Timeouts,
        *,
        client: Any = None,
        index: int | None = None,
        count: int | None = None,
        interval: float | None = None,
        number: int | None = None,
    ):
        """Prepares to watch; `start` starts it. Call it after `jax.distributed.initialize`.

        Args:
          timeouts: how long to wait for the others.
          client: of the coordination service; by default this process's.
          index, count: the number of this process, and how many there are; by default JAX's.
          interval: seconds between heartbeats; by default 1, more with more than 64 processes.
          number: the same on all processes, and another one each time; by default how many such
            objects this process has made before.
        """
        if number is None:
            number = Partners._objects
            Partners._objects += 1
        self._folder = f"{_FOLDER}/{number}"
        self._stop_folder = f"{_STOP_FOLDER}/{number}"
        self._timeouts = timeouts
        self._client = client or agreement.client()
        self._index = jax.process_index() if index is None else index
        self._count = jax.process_count() if count is None else count
        # All processes read what all processes write: less often where there are many.
        self._interval = interval or max(1.0, self._count / 64)
        now = time.monotonic()
        self._others = {
            number: _Other(now, now) for number in range(self._count) if number != self._index
        }
        self.doing: Callable[[], str] = lambda: "preparing"
        self.on_stop: Callable[[int, str], None] = lambda number, host: None
        self._beats, self._polls, self._runs = 0, 0, 0
        self._lock = threading.Lock()  # held while the processes agree where to stop
        self._polls_of: dict[int, int] = {}  # run -> polls
        self._stops: dict[int, tuple[int, int]] = {}  # run -> (poll, signal)
        self._requested: tuple[int, int] | None = None  # (run, signal)
        self._answered = now  # when the coordination service answered last
        self._moved = now  # when this process polled last
        self._leaving = self._closed = False
        self._wake = threading.Event()
        self._verdict = threading.Lock()

    def start(self) -> None:
        """Starts the threads."""
        for function in (self._beat, self._judge):
            threading.Thread(
                target=function, name=f"partners{function.__name__}", daemon=True
            ).start()

    def close(self) -> None:
        """Ends the threads. All processes must have come to their end."""
        self._closed = True
        self._wake.set()

    # Requests to stop

    def enter_run(self) -> None:
        """Begins the polls of a run; all processes call it equally often."""
        with self._lock:
            self._runs += 1
            self._polls = 0
            self._moved = time.monotonic()

    def poll(self) -> int | None:
        """Returns the signal to stop for; all processes get it at the same call, or none does."""
        with self._lock:
            self._polls += 1
            self._polls_of[self._runs] = self._polls
            self._moved = time.monotonic()
            last, number = self._stops.get(self._runs, (None, None))
            return number if last is not None and self._polls >= last else None

    @contextlib.contextmanager
    def telling_of_stops(self, on_stop: Callable[[int, str], None]) -> Iterator[None]:
        """Calls a function with the signal and the host of a request, inside the context."""
        former, self.on_stop = self.on_stop, on_stop
        try:
            yield
        finally:
            self.on_stop = former

    def request_stop(self, number: int) -> None:
        """Asks all processes to stop this run. It may be called in a signal handler."""
        self._requested = (self._runs, number)
        self._wake.set()

    def _post_request(self) -> None:
        if self._requested is not None:
            (run, number), self._requested = self._requested, None
            request = json.dumps({"signal": number, "host": socket.gethostname()})
            try:
                self._client.key_value_set(f"{self._folder}/stop/{run}", request)
            except jax.errors.JaxRuntimeError as error:
                if "ALREADY_EXISTS" not in str(error):  # else another one was first
                    self._requested = self._requested or (run, number)
                    raise

    def _agree_to_stop(self, run: int, request: dict[str, Any]) -> None:
        """Finds the poll at which all stop: the first one that none has made yet.

        The threads of the processes find it, while no process makes a poll. They do not wait for
        computations, so no process can keep the others waiting. A request that the service does not
        answer is made again: the others may have counted the polls of this process already.
        """
        folder = f"{self._stop_folder}/{run}"
        with contextlib.suppress(Exception):  # of whatever announces it: no reason not to stop
            self.on_stop(request["signal"], request["host"])
        with self._lock:
            polls = self._polls_of.get(run, 0)
            answers: list[tuple[str, str]] = []
            while True:
                with contextlib.suppress(jax.errors.JaxRuntimeError):
                    self._client.key_value_set(f"{folder}/{self._index}", str(polls), True)
                    answers = self._client.key_value_dir_get(folder)
                    if len(answers) == self._count:
                        break
                    self._listen()  # to know who is alive
                if self._closed:
                    return
                time.sleep(min(0.1, self._interval))
            last = max(int(polls) for _, polls in answers)
            self._stops[run] = (last + 1, request["signal"])

    # The end of this process

    def leave(self, status: int, cause: str, *, restart: bool | None = None) -> NoReturn:
        """Ends this process at once, and tells the others why.

        Args:
          status: the exit status.
          cause: why, for the messages of the others.
          restart: whether it may help to start all processes again; by default not where the status
            is 2, that of a mistake of the user.
        """
        self._leaving = True
        with self._verdict:
            self._tell_the_end(status, cause, status != 2 if restart is None else restart)
            flush()
            os._exit(status)

    def _tell_the_end(self, status: int, cause: str, restart: bool) -> None:
        value = json.dumps({"status": status, "cause": cause, "restart": restart})
        done = threading.Event()

        def tell() -> None:
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self._client.key_value_set(f"{self._folder}/ended/{self._index}", value, True)
            if self._index == 0:  # the others read it here
                self._await_readers()
            done.set()

        # The service may never answer, so not in this thread.
        threading.Thread(target=tell, daemon=True).start()
        patience = max(_LAST_WORDS, 4 * self._interval)
        done.wait(patience if self._index else 2 * patience)

    def _await_readers(self) -> None:
        """Waits until the processes that are alive have read what this one has posted."""
        # At the next beat a process may have read already, and at the one after it may be reading.
        awaited = {number: other.beat + 3 for number, other in self._others.items()}
        while any(
            other.ended is None
            and other.beat < awaited[number]
            and time.monotonic() - other.heard < self._timeouts.heartbeat / 2
            for number, other in self._others.items()
        ):
            time.sleep(0.1 * self._interval)

    # Heartbeats

    def _beat(self) -> None:
        while not self._closed:
            try:
                self._post_request()
                for run, request in self._listen().items():
                    if run not in self._stops:
                        self._agree_to_stop(run, request)
            except jax.errors.JaxRuntimeError:
                pass  # the judge sees that there was no answer
            self._wake.wait(self._interval)
            self._wake.clear()

    def _listen(self) -> dict[int, dict[str, Any]]:
        """Exchanges heartbeats; returns the requests to stop by the number of the run."""
        self._beats += 1
        beat = json.dumps([self._beats, self._polls, self._doing(), socket.gethostname()])
        self._client.key_value_set(
            f"{self._folder}/alive/{self._index}", beat, allow_overwrite=True
        )
        values = self._client.key_value_dir_get(self._folder)
        now = self._answered = time.monotonic()
        requests = {}
        for key, text in values:
            kind, number = key.removeprefix(f"{self._folder}/").split("/")
            value, other = json.loads(text), self._others.get(int(number))
            if kind == "stop":
                requests[int(number)] = value
            elif kind == "alive" and other is not None:
                other.hear(now, *value)
            elif kind == "ended" and other is not None and other.ended is None:
                other.ended, other.ended_at = value, now
        return requests

    def _doing(self) -> str:
        try:
            return self.doing()
        except Exception:  # of whatever describes it: no reason to end
            return "running"

    # Verdicts

    def _judge(self) -> None:
        last = time.monotonic()
        while not self._closed:
            time.sleep(_JUDGE_EVERY)
            now = time.monotonic()
            if now - last > 5 + _JUDGE_EVERY:  # this process was stopped itself for a while
                paused = now - last
                self._answered += paused
                for other in self._others.values():
                    other.heard += paused
                    other.moved += paused
            last = now
            loss = self._loss(now)
            if loss is not None and not self._leaving and not self._closed:
                self._end(*loss)

    def _loss(self, now: float) -> tuple[str, bool] | None:
        """The message of what makes it impossible to go on, and whether a restart may help."""
        timeouts = self._timeouts
        silent = now - self._answered
        if silent > timeouts.heartbeat:
            return self._coordinator_lost(f"has not answered for {silent:.0f} s")
        for number, other in self._others.items():
            name = f"host {other.host} (process {number})"
            if other.ended is not None:
                if now - other.ended_at > _GRACE:
                    return f"{name} ended: {other.ended['cause']}", other.ended["restart"]
            # By the service's last answer: while it is silent, nobody's heartbeats arrive.
            elif self._answered - other.heard > timeouts.heartbeat:
                return (
                    f"lost {name}: no sign of life for {now - other.heard:.0f} s; its last one was "
                    f"at {other.doing}. Its process was killed or stopped, or its machine or the "
                    "network failed.",
                    True,
                )
            elif (
                other.polls < self._polls
                and min(now - other.moved, now - self._moved) > timeouts.late * other.patience
            ):
                return (
                    f"{name} is late: for {now - other.moved:.0f} s it has been at {other.doing}, "
                    f"while this process waits for it ({self._doing()}). See what it waits for, or "
                    "raise --config.distributed.late_timeout.",
                    True,
                )
        return None

    def _coordinator_lost(self, what: str) -> tuple[str, bool]:
        if self._index == 0:
            return f"lost the coordination service of this process: it {what}.", True
        host, ended = self._others[0].host, self._others[0].ended
        if ended is not None:
            return f"host {host} (process 0) ended: {ended['cause']}", ended["restart"]
        return (
            f"lost host {host} (process 0), which coordinates the run: it {what}. Its process was "
            "killed or stopped, or its machine or the network failed.",
            True,
        )

    def _end(self, message: str, restart: bool) -> None:
        if not self._verdict.acquire(blocking=False):
            return  # another thread is ending this process
        advice = "\nStart all processes again; the run continues from its last checkpoint."
        report(f"error: {message}{advice if restart else ''}", restart=restart)
        if time.monotonic() - self._answered < self._timeouts.heartbeat / 2:
            self._tell_the_end(2, message, restart)
        flush()
        os._exit(2)

    def wait_for_verdict(self) -> None:
        """Waits until a lost process must have been noticed; then this process has ended."""
        time.sleep(self._timeouts.heartbeat + 3 * self._interval + _GRACE)

    def check_coordinator(self) -> None:
        """Ends this process if the coordination service does not answer any more.

        Call it where the runtime aborts this process, or a call of the service has failed. It
        returns if the service still answers.
        """
        answered, coordinator = self._answered, self._others.get(0)
        deadline = time.monotonic() + max(5.0, 4 * self._interval)
        while time.monotonic() < deadline and (coordinator is None or coordinator.ended is None):
            time.sleep(0.1)
            if self._answered > answered + 2 * self._interval:
                return  # the service still answers: something else is wrong
        if not self._leaving:
            self._end(*self._coordinator_lost("has ended or cannot be reached"))
        time.sleep(10)  # whoever ends this process does so meanwhile


_current: Partners | None = None


def current() -> Partners | None:
    """Returns who watches the other processes, or None if nobody does."""
    return _current


@contextlib.contextmanager
def made_current(partners: Partners) -> Iterator[None]:
    """Makes `current` return these partners inside the context."""
    global _current
    _current, agreement.watched = partners, True
    try:
        yield
    finally:
        _current, agreement.watched = None, False
