"""Runs a command until it has finished, restarting it after crashes."""

import contextlib
import dataclasses
import pathlib
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence

from roberta_jax.errors import RESTART_FILE, counted
from roberta_jax.launching import crashes, environment
from roberta_jax.launching.command import newest_step
from roberta_jax.launching.endings import (
    MISTAKE_STATUS,
    End,
    Kind,
    described,
    exit_status,
    judge,
)
from roberta_jax.launching.process import Process, say
from roberta_jax.launching.progress import Watch
from roberta_jax.training import heartbeat
from roberta_jax.training.preemption import INTERRUPTED, OUTPUT_CLOSED, TERMINATED

# The lines of a crash that are printed when the supervisor gives up.
SHOWN_STDOUT, SHOWN_STDERR = 5, 30
_BEATS = "heartbeat"
_STOP = (signal.SIGTERM, signal.SIGINT)
STOP_STATUSES = (INTERRUPTED, TERMINATED)  # of a run that was told to stop


@dataclasses.dataclass(frozen=True, kw_only=True)
class Policy:
    """When to restart, and how long to wait. Times are in seconds.

    Attributes:
      max_restarts: restarts in a row without a newer checkpoint, after which it gives up.
      backoff: wait before the first restart in a row; each further one waits twice as long.
      max_backoff: the longest wait.
      stalled_after: time without progress after which the processes are killed and restarted; 0
        waits for ever.
      stalled_at_start: the same before the first step, without output: a host may wait long for
        another one that prepares the text.
      ending: how long the other processes may take to end by themselves after one has crashed.
      agreeing: the same after one has ended with a message, which the others print as well.
      saving: the same after one was told to stop: the others save with it.
      poll: time between two looks at the processes.
    """

    max_restarts: int = 5
    backoff: float = 5.0
    max_backoff: float = 300.0
    stalled_after: float = 1800.0
    stalled_at_start: float = 14400.0
    ending: float = 10.0
    agreeing: float = 60.0
    saving: float = 300.0
    poll: float = 0.1


class Supervisor:
    """Supervises the processes of one command on this machine; `run` is called once."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        policy: Policy,
        processes: int = 1,
        variables: Mapping[str, str] | None = None,
        gpus: int = 0,
        workdir: str | None = None,
        log_folder: pathlib.Path | None = None,
    ):
        """Prepares to run.

        Args:
          command: the command line of each process.
          policy: when to restart.
          processes: how many processes of it to start. They find each other; when one crashes, all
            are restarted.
          variables: environment variables that they get besides the supervisor's.
          gpus: how many GPUs several processes share.
          workdir: the run's folder, whose newest checkpoint shows the progress.
          log_folder: where crashes are described. Default: `launch` in the workdir.
        """
        self._command = list(command)
        self._policy = policy
        self._processes = processes
        self._variables = dict(variables or {})
        self._gpus = gpus
        self._workdir = workdir
        self._log_folder = log_folder or crashes.default_folder(workdir)
        self._signals: list[int] = []
        self._output_closed = False

    def run(self) -> int:
        """Runs the command to its end.

        Returns:
          The exit status: 0 if it finished, 2 after a mistake, 130 or 143 if it was stopped by
          Ctrl-C or SIGTERM, 141 if the output cannot be written, else that of the last crash.
        """
        with self._receiving(), tempfile.TemporaryDirectory(prefix="roberta_jax_launch_") as folder:
            return self._run(pathlib.Path(folder))

    def _run(self, folder: pathlib.Path) -> int:
        """Runs the command; `folder` is for the files by which its processes report to this one."""
        restarts = in_a_row = 0
        best = newest_step(self._workdir)
        while True:
            started = time.monotonic()
            kind, end, ends = self._attempt(folder)
            seconds = time.monotonic() - started
            if kind is Kind.FINISHED:
                if restarts:
                    say(f"finished after {counted(restarts, 'restart')}")
                return 0
            if kind is Kind.MISTAKE:
                return MISTAKE_STATUS
            if kind is Kind.STOPPED:
                return self._stop_status(end.status)
            step = newest_step(self._workdir)
            if step is not None and (best is None or step > best):
                best, in_a_row = step, 0
            what = self._what(kind, end)
            path = crashes.write(
                self._log_folder, self._command, what, ends, seconds=seconds, step=step
            )
            if in_a_row >= self._policy.max_restarts:
                self._give_up(what, end, in_a_row, path)
                return exit_status(end.status) or 1
            wait = min(self._policy.backoff * 2**in_a_row, self._policy.max_backoff)
            in_a_row, restarts = in_a_row + 1, restarts + 1
            say(
                f"{what} after {seconds:.0f} s"
                + (f"; the newest checkpoint is of step {step}" if step is not None else "")
                + (f"; details in {path}" if path else "")
            )
            say(f"restart {in_a_row} of {self._policy.max_restarts} in {wait:.3g} s")
            if self._stopped_within(wait):
                return self._stop_status(0)

    def _attempt(self, folder: pathlib.Path) -> tuple[Kind, End, list[End]]:
        """Runs the processes once, until all have ended."""
        for file in folder.iterdir():
            file.unlink()
        watch = Watch(folder / _BEATS, self._workdir)
        running: list[Process] = []
        ends: list[Process] = []
        try:
            port = environment.free_port() if self._processes > 1 else 0
            for index in range(self._processes):
                running.append(self._start(index, port, folder))
            stalled = self._watch(running, ends, watch)
        finally:
            for process in [*ends, *running]:
                process.end()
        records = [
            End(
                each.index,
                each.status,
                stdout=each.stdout.lines(),
                stderr=each.stderr.lines(),
                partner_lost=_restart_file(folder, each.index).exists(),
            )
            for each in [*ends, *running]
        ]
        kind, end = judge(records, stop_signal=self._stop_signal, stalled=stalled)
        return kind, end, records

    def _start(self, index: int, port: int, folder: pathlib.Path) -> Process:
        variables = {
            **self._variables,
            heartbeat.VARIABLE: str(folder / _BEATS),
            RESTART_FILE: str(_restart_file(folder, index)),
        }
        prefix = ""
        if self._processes > 1:
            variables |= environment.process_variables(index, self._processes, port, self._gpus)
            prefix = f"[{index}] "
        return Process(self._command, variables, index, prefix, self._close_output)

    def _watch(self, running: list[Process], ended: list[Process], watch: Watch) -> bool:
        """Waits until all processes have ended, or others must not wait for the rest any longer.

        Moves the processes that end from `running` to `ended`, in the order of time. What is left
        in `running` is to be killed.

        Returns:
          Whether the processes were stopped because they made no progress.
        """
        policy, passed_on, deadline = self._policy, 0, None
        while True:
            while passed_on < len(self._signals):
                for process in running:
                    process.send(self._signals[passed_on])
                passed_on += 1
            # Of several that are found at once, a message explains more than a crash.
            done = [each for each in running if each.status is not None]
            for process in sorted(done, key=lambda each: each.status != MISTAKE_STATUS):
                running.remove(process)
                ended.append(process)
                if process.status != 0 and deadline is None:
                    deadline = time.monotonic() + self._patience(process.status)
            if not running or (deadline is not None and time.monotonic() > deadline):
                return False
            idle = watch.idle_seconds(sum(each.outputs for each in [*running, *ended]))
            limit = policy.stalled_after if watch.started else policy.stalled_at_start
            if limit and idle > limit:
                say(f"no progress for {idle:.0f} s: stopping the processes")
                self._abort(running, ended)
                return True
            time.sleep(policy.poll)

    def _patience(self, status: int) -> float:
        """How long to wait for the other processes after one has ended with a status."""
        if status == MISTAKE_STATUS:
            return self._policy.agreeing
        return self._policy.saving if status in STOP_STATUSES else self._policy.ending

    def _abort(self, running: list[Process], ended: list[Process]) -> None:
        """Ends processes that hang, after their Python stacks, which faulthandler writes."""
        for process in running:
            process.send(signal.SIGABRT)
        deadline = time.monotonic() + self._policy.ending
        while running and time.monotonic() < deadline:
            for process in [each for each in running if each.status is not None]:
                running.remove(process)
                ended.append(process)
            time.sleep(self._policy.poll)

    @contextlib.contextmanager
    def _receiving(self) -> Iterator[None]:
        """Records SIGTERM and Ctrl-C inside the context; they are passed on to the processes."""
        former = {
            number: signal.signal(number, lambda number, frame: self._signals.append(number))
            for number in _STOP
        }
        # Where `roberta-jax` itself would end at a second Ctrl-C, without its processes.
        watcher = signal.set_wakeup_fd(-1)
        try:
            yield
        finally:
            signal.set_wakeup_fd(watcher)
            for number, handler in former.items():
                signal.signal(number, handler)

    def _close_output(self) -> None:
        """Stops the run when nobody reads its output any more, as the run itself would."""
        if not self._output_closed:
            self._output_closed = True
            self._signals.append(signal.SIGTERM)

    @property
    def _stop_signal(self) -> int | None:
        return self._signals[0] if self._signals else None

    def _stop_status(self, status: int) -> int:
        if self._output_closed:
            return OUTPUT_CLOSED
        return status if status > 0 else 128 + self._signals[0]

    def _stopped_within(self, seconds: float) -> bool:
        """Waits, and returns whether a signal arrived before the time was over."""
        deadline = time.monotonic() + seconds
        while not self._signals and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, self._policy.poll))
        return bool(self._signals)

    def _what(self, kind: Kind, end: End) -> str:
        process = "the process" if self._processes == 1 else f"process {end.process}"
        if kind is Kind.STALLED:
            return f"{process} made no progress"
        return f"{process} {described(end.status)}"

    def _give_up(self, what: str, end: End, restarts: int, path: pathlib.Path | None) -> None:
        say(f"{what}. The end of what it printed:")
        for line in [*end.stdout[-SHOWN_STDOUT:], *end.stderr[-SHOWN_STDERR:]]:
            say(f"  {line}")
        since = "without a new checkpoint" if self._workdir else "in a row"
        say(
            f"error: gave up after {counted(restarts, 'restart')} {since}. "
            + (f"What is known of the crash is in {path}. " if path else "")
            + "Correct the cause and run the same command again; it continues from the newest "
            "checkpoint."
        )


def _restart_file(folder: pathlib.Path, index: int) -> pathlib.Path:
    return folder / f"restart-{index}"
