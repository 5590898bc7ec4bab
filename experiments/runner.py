"""Runs the points of a study as processes of their own, some at a time, until all are done."""

import contextlib
import dataclasses
import datetime
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

from etils import epath
from tqdm import tqdm

from experiments import child_processes, worker
from experiments.study import EVALUATIONS, Point, Progress, numbers_in
from roberta_jax.training.workdir import in_use

WORKER = "experiments.worker"
LOG = "log.txt"  # in a workdir: what its processes printed
RETRIES = 2  # of a process that a signal ended
LOG_LINES = 15  # of a failed process, shown
REPORT_EVERY = 60.0  # seconds, where there is no progress bar
LOOK_EVERY = 2.0  # seconds, at the workdirs


@dataclasses.dataclass
class Job:
    """A point on its way.

    Attributes:
      point: what is to be done.
      number: its place in the study, by which its processes are told.
      name: of its workdir.
      tokens_per_step: the weight of its steps in the estimate of the time left.
      steps, step: of its training, and how many of them are done.
      retries: so often a signal ended its process.
      began: when its first process started here.
    """

    point: Point
    number: int
    name: str
    tokens_per_step: int
    steps: int
    step: int = 0
    retries: int = 0
    began: float | None = None

    @property
    def tokens_left(self) -> int:
        return (self.steps - self.step) * self.tokens_per_step


@dataclasses.dataclass
class Stage:
    """A process at work for a job: its training, or one of its evaluations (named)."""

    job: Job
    slot: int
    evaluation: str | None
    process: subprocess.Popen
    log: pathlib.Path | None
    log_start: int


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a sweep ended: the names of the points that are finished, that failed, that another
    process works on, and that wait because the sweep was told to stop."""

    finished: list[str]
    failed: list[str]
    elsewhere: list[str]
    left: list[str]

    @property
    def status(self) -> int:
        """The exit status of the command."""
        return 1 if self.failed or self.left else 0


class Runner:
    """Works off points; `run` does it."""

    def __init__(
        self,
        study_arguments: Sequence[str],
        out: epath.PathLike,
        *,
        processes: int = 1,
        patience: float = 60.0,
    ):
        """Prepares to run.

        Args:
          study_arguments: the command line's part that names the study, for the workers.
          out: the folder of the workdirs.
          processes: at a time.
          patience: seconds to wait, at the end, for points that other processes hold: those of a
            killed sweep are still saving.
        """
        self._arguments, self._out = list(study_arguments), epath.Path(out)
        self._patience = patience
        self._cores = child_processes.core_shares(processes)
        self._free = list(range(processes))
        self._waiting: list[Job] = []
        self._running: list[Stage] = []
        self._finished: list[Job] = []
        self._failed: list[Job] = []
        self._elsewhere: list[Job] = []
        self._stops = 0  # requests to stop
        self._bar: tqdm | None = None

    def prepare(self, points: Sequence[Point]) -> int:
        """Checks the points and prepares their text, in a process of its own.

        Returns:
          Its exit status; it has printed what is wrong.
        """
        order = [str(point) for point in points[0].study.points()]
        numbers = ",".join(str(order.index(str(point))) for point in points)
        process = self._spawn(["prepare", *self._arguments, f"--points={numbers}"], None)
        with self._stop_requests():
            while process.poll() is None:
                if self._stops:
                    process.send_signal(signal.SIGTERM)
                time.sleep(0.05)
        child_processes.kill(process)
        return process.returncode

    def run(self, points: Sequence[Point]) -> Outcome:
        """Runs what is not finished of the points. SIGTERM and Ctrl-C stop it, everything saved."""
        if not points:
            return Outcome([], [], [], [])
        order = {str(point): number for number, point in enumerate(points[0].study.points())}
        jobs = []
        for point in points:
            config = point.config()
            tokens = config.seq_len * config.train.batch_size
            job = Job(point, order[str(point)], point.name, tokens, config.train.steps)
            jobs.append(job)
            progress = self._look(job)
            (self._finished if progress.finished else self._waiting).append(job)
        self._jobs, self._started = jobs, time.monotonic()
        self._tokens_at_start = sum(job.tokens_left for job in jobs)
        if sys.stderr.isatty():
            total = sum(job.steps for job in jobs)
            done = sum(job.step for job in jobs)
            self._bar = tqdm(total=total, initial=done, unit="step", dynamic_ncols=True)
        if self._finished:
            self._say(f"{len(self._finished)} of {len(jobs)} points were finished before")
        try:
            with self._stop_requests():
                self._work()
        finally:
            for stage in self._running:
                child_processes.kill(stage.process)
            if self._bar is not None:
                self._bar.close()
        lists = (self._finished, self._failed, self._elsewhere, self._waiting)
        return Outcome(*([job.name for job in each] for each in lists))

    def _work(self) -> None:
        looked = reported = idle_since = time.monotonic()
        told_to_stop = patient = False
        while self._running or (self._waiting and not self._stops):
            if self._stops and not told_to_stop:
                told_to_stop = True
                self._say(f"stopping: {len(self._running)} points save what they have")
                for stage in self._running:
                    stage.process.send_signal(signal.SIGTERM)
            for stage in [each for each in self._running if each.process.poll() is not None]:
                self._running.remove(stage)
                self._free.append(stage.slot)
                self._ended(stage)
            if not self._stops:
                self._start_what_can()
            now = time.monotonic()
            if self._running or not self._waiting:
                idle_since, patient = now, False
            elif now - idle_since > self._patience:
                self._give_up_waiting()
            elif not patient:
                patient = True
                self._say(f"other processes hold {len(self._waiting)} points; waiting a while")
            if now - looked > LOOK_EVERY:
                looked = now
                for stage in self._running:
                    self._look(stage.job)
                self._move_bar()
            if self._bar is None and now - reported > REPORT_EVERY:
                reported = now
                self._say(self._standing())
            time.sleep(0.05)

    def _look(self, job: Job) -> Progress:
        """Reads how far a job is."""
        progress = job.point.progress(self._out)
        job.step = progress.step or 0
        return progress

    def _start_what_can(self) -> None:
        """Fills free slots with points that no other process holds."""
        for job in list(self._waiting):
            if not self._free:
                return
            workdir = self._out / job.name
            if in_use(workdir) or in_use(workdir / EVALUATIONS):
                continue
            self._waiting.remove(job)
            progress = self._look(job)
            if progress.finished:  # by another sweep, meanwhile
                self._end(job, progress, "finished elsewhere")
            else:
                self._start(job, self._free.pop(0), progress)

    def _start(self, job: Job, slot: int, progress: Progress) -> None:
        """Starts the next stage of a job in a slot."""
        job.began = job.began or time.monotonic()
        workdir = self._out / job.name
        evaluation = progress.missing[0] if progress.missing else None
        if evaluation is None:
            arguments = ["train", *self._arguments, f"--points={job.number}", f"--out={self._out}"]
            doing = f"from step {progress.step}" if progress.step else "from the beginning"
        else:
            output = _output(workdir, evaluation)
            output.unlink(missing_ok=True)
            values = {
                "{workdir}": str(workdir),
                "{output}": str(output),
                "{seed}": str(job.point.seed),
                "{python}": sys.executable,
            }
            command = [
                _filled(argument, values) for argument in job.point.study.evaluations[evaluation]
            ]
            arguments = ["evaluate", str(workdir / EVALUATIONS), *command]
            doing = f"evaluation {evaluation}"
        log, start = None, 0
        if "://" not in str(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
            log = pathlib.Path(workdir) / LOG
            start = log.stat().st_size if log.exists() else 0
        process = self._spawn(arguments, log, self._cores[slot])
        self._running.append(Stage(job, slot, evaluation, process, log, start))
        self._say(f"started {job.point}, {doing}")

    def _spawn(
        self, arguments: Sequence[str], log: pathlib.Path | None, cores: set[int] | None = None
    ) -> subprocess.Popen:
        # The points of a study share most of their programs.
        cache = None if "://" in str(self._out) else self._out / ".jax_cache"
        return child_processes.start(WORKER, arguments, log, cores, cache)

    def _ended(self, stage: Stage) -> None:
        """Decides what follows a process that has ended."""
        job, status = stage.job, stage.process.returncode
        child_processes.kill(stage.process)  # what it may have left behind
        if status == 0 and stage.evaluation is not None:
            status = self._keep_output(stage)
        progress = self._look(job)
        if status == worker.BUSY:
            self._waiting.append(job)
        elif status > 0:
            self._fail(stage, f"status {status}")
        elif progress.finished:
            self._end(job, progress, f"in {_time(time.monotonic() - job.began)}")
        elif self._stops:
            self._waiting.append(job)
        elif status == 0 and (stage.evaluation is not None or progress.metrics is not None):
            self._free.remove(stage.slot)
            self._start(job, stage.slot, progress)
        elif job.retries < RETRIES:
            job.retries += 1
            self._say(f"{job.point} was ended by {_signal_name(status)}; it goes on")
            self._waiting.insert(0, job)
        else:
            self._fail(stage, _signal_name(status))

    def _keep_output(self, stage: Stage) -> int:
        """Puts what an evaluation has written in its place; returns the status to go by."""
        workdir = self._out / stage.job.name
        output = _output(workdir, stage.evaluation)
        try:
            numbers_in(output.read_text())
        except (OSError, ValueError) as error:
            if stage.log is not None:
                with open(stage.log, "a") as file:
                    file.write(f"{output} is to hold a JSON object of numbers: {error}\n")
            return 1
        output.replace(workdir / EVALUATIONS / f"{stage.evaluation}.json")
        return 0

    def _end(self, job: Job, progress: Progress, how: str) -> None:
        self._finished.append(job)
        shown = ", ".join(
            f"{heading} {progress.metrics[metric]:.4g}"
            for heading, metric in job.point.study.columns.items()
            if metric in progress.metrics
        )
        self._say(f"finished {job.point}, {how}: {shown}")
        if self._bar is None:
            self._say(self._standing())
        self._move_bar()

    def _fail(self, stage: Stage, why: str) -> None:
        self._failed.append(stage.job)
        what = "" if stage.evaluation is None else f", evaluation {stage.evaluation}"
        lines = [f"failed {stage.job.point}{what} ({why})"]
        if stage.log is not None:
            with open(stage.log, "rb") as file:
                file.seek(stage.log_start)
                text = file.read().decode(errors="replace")
            lines[0] += f"; the end of {stage.log}:"
            # Of a progress bar only its last state.
            log = [each.rstrip("\r").rpartition("\r")[2] for each in text.rstrip().split("\n")]
            first = max(len(log) - LOG_LINES, 0)
            if stage.process.returncode == 2:  # libraries' threads may complain after our sentence
                said = [number for number, each in enumerate(log) if each.startswith("error: ")]
                first = said[-1] if said else first
            lines += [f"    {each}" for each in log[first : first + LOG_LINES]]
        self._say("\n".join(lines))

    def _give_up_waiting(self) -> None:
        for job in self._waiting:
            self._say(f"{job.point} is running elsewhere")
        self._elsewhere += self._waiting
        self._waiting = []

    def _standing(self) -> str:
        left = sum(job.tokens_left for job in self._jobs)
        spent, done = time.monotonic() - self._started, self._tokens_at_start - left
        estimate = f", about {_time(spent / done * left)} left" if done > 0 and left else ""
        step, steps = (sum(getattr(job, key) for job in self._jobs) for key in ("step", "steps"))
        return (
            f"{len(self._finished)}/{len(self._jobs)} points, {step}/{steps} steps, "
            f"{_time(spent)} so far{estimate}"
        )

    def _move_bar(self) -> None:
        if self._bar is not None:
            self._bar.n = sum(job.step for job in self._jobs)
            self._bar.set_postfix_str(f"{len(self._finished)}/{len(self._jobs)} points")

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, flush=True)

    @contextlib.contextmanager
    def _stop_requests(self) -> Iterator[None]:
        """Counts SIGTERM and Ctrl-C; the second one ends everything at once."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals reach the main thread alone
            return

        def ask(number, frame):
            self._stops += 1
            if self._stops > 1:
                raise KeyboardInterrupt

        before = {each: signal.signal(each, ask) for each in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)


def _output(workdir: epath.Path, evaluation: str) -> epath.Path:
    """Where an evaluation writes; its place is only taken by a whole file."""
    return workdir / EVALUATIONS / f"{evaluation}.json.tmp"


def _filled(argument: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        argument = argument.replace(name, value)
    return argument


def _signal_name(status: int) -> str:
    """What ended a process whose status is not positive."""
    return signal.Signals(-status).name if status else "a request to stop"


def _time(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
