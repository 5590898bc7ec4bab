"""Trains and evaluates the points of a study in child processes, several at a time."""

import contextlib
import pathlib
import signal
import subprocess
import time
from collections.abc import Sequence

from etils import epath

from experiments.running import child_processes, worker
from experiments.running.display import Display, format_seconds
from experiments.running.evaluations import BadOutput, accept_output, evaluation_command
from experiments.running.jobs import Job, Outcome, Stage, make_job
from experiments.study.definition import Point
from experiments.study.progress import EVALUATIONS, Progress
from roberta_jax.errors import UsageError
from roberta_jax.storage.atomic import is_local
from roberta_jax.storage.locks import is_locked
from roberta_jax.training.workdir import in_use

WORKER = "experiments.running.worker"  # the module that the child processes run
LOG = "log.txt"  # in a workdir: the output of its processes
RETRIES = 2  # of a point whose process was ended by a signal
POLL_SECONDS = 0.05  # between two checks whether a process has ended
PROGRESS_SECONDS = 2.0  # between two readings of the workdirs' progress


class Runner:
    """Runs the points of one sweep; `run` is called once."""

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
          study_arguments: the command-line arguments that name the study to the workers.
          out: the folder of the workdirs.
          processes: the number of points to run at a time.
          patience: how many seconds to wait, once nothing else is left to do, for points that other
            processes have locked: the workers of a killed sweep first save their checkpoints.
        """
        self._arguments, self._out = list(study_arguments), epath.Path(out)
        self._patience = patience
        self._cores = child_processes.core_shares(processes)
        self._free_slots = list(range(processes))
        self._waiting: list[Job] = []
        self._running: list[Stage] = []
        self._finished: list[Job] = []
        self._failed: list[Job] = []
        self._elsewhere: list[Job] = []
        self._stop = child_processes.StopRequests()

    def prepare(self, points: Sequence[Point]) -> int:
        """Checks the points and prepares their text, in a child process that prints any errors.

        Returns:
          The exit status of that process; negative if a signal ended it.
        """
        names = ",".join(point.name for point in points)
        with self._stop:
            process = self._spawn(["prepare", *self._arguments, f"--points={names}"], None)
            asked = False
            try:
                while process.poll() is None:
                    if self._stop and not asked:
                        asked = True
                        process.send_signal(signal.SIGTERM)
                    time.sleep(POLL_SECONDS)
            finally:
                child_processes.kill(process)
        return process.returncode

    @property
    def stop_signal(self) -> int | None:
        """The signal that asked to stop, SIGINT or SIGTERM; None if there was none."""
        return self._stop.signal

    def run(self, points: Sequence[Point]) -> Outcome:
        """Runs the points that are not finished.

        SIGTERM and Ctrl-C stop the run after the processes have saved checkpoints; a second one
        ends everything immediately.
        """
        if not points:
            return Outcome([], [], [], [])
        jobs = []
        for point in points:
            job = make_job(point)
            jobs.append(job)
            progress = self._read_progress(job)
            (self._finished if progress.finished else self._waiting).append(job)
        self._display = Display(jobs)
        if self._finished:
            self._display.write(f"{len(self._finished)} of {len(jobs)} points were finished before")
        try:
            with self._stop:
                self._loop()
        finally:
            for stage in self._running:
                child_processes.kill(stage.process)
            self._display.close()
        lists = (self._finished, self._failed, self._elsewhere, self._waiting)
        return Outcome(*([job.name for job in each] for each in lists))

    def _loop(self) -> None:
        """Starts processes and handles their ends until nothing is left to do."""
        last_progress = idle_since = time.monotonic()
        stopping = announced_wait = False
        while self._running or (self._waiting and not self._stop):
            if self._stop and not stopping:
                stopping = True
                self._display.write(
                    f"Stopping: waiting for {len(self._running)} points to save checkpoints. "
                    "Interrupt again to stop at once."
                )
                for stage in self._running:
                    stage.process.send_signal(signal.SIGTERM)
            for stage in [each for each in self._running if each.process.poll() is not None]:
                self._running.remove(stage)
                self._free_slots.append(stage.slot)
                self._handle_end(stage)
            if not self._stop:
                self._fill_slots()
            now = time.monotonic()
            if self._running or not self._waiting or self._stop:
                idle_since, announced_wait = now, False
            elif now - idle_since > self._patience:
                self._give_up_waiting()
            elif not announced_wait:
                announced_wait = True
                self._display.write(
                    f"other processes are working on {len(self._waiting)} points; waiting for them"
                )
            if now - last_progress > PROGRESS_SECONDS:
                last_progress = now
                for stage in self._running:
                    with contextlib.suppress(UsageError):  # of a file that is being written
                        self._read_progress(stage.job)
                self._display.update(len(self._finished))
            time.sleep(POLL_SECONDS)

    def _read_progress(self, job: Job) -> Progress:
        progress = job.point.progress(self._out)
        job.step = progress.step or 0
        if progress.steps is not None:
            job.steps = progress.steps
        return progress

    def _fill_slots(self) -> None:
        """Starts waiting jobs that no other process is working on in the free slots."""
        for job in list(self._waiting):
            if not self._free_slots:
                return
            workdir = self._out / job.name
            if in_use(workdir) or is_locked(workdir / EVALUATIONS / worker.LOCK):
                continue
            self._waiting.remove(job)
            try:
                progress = self._read_progress(job)
            except UsageError as error:
                self._fail(job, f"failed {job.point}: {error}")
                continue
            if progress.finished:  # by another sweep, since this one started
                self._finish(job, progress, "finished elsewhere")
            else:
                self._start(job, self._free_slots.pop(0), progress)

    def _start(self, job: Job, slot: int, progress: Progress) -> None:
        """Starts the next process of a job in a slot; the job fails if that is impossible."""
        try:
            self._start_process(job, slot, progress)
        except OSError as error:  # a full disk, a missing permission
            self._free_slots.append(slot)
            path = error.filename or self._out / job.name
            self._fail(job, f"failed {job.point}: cannot write {path}: {error.strerror or error}")

    def _start_process(self, job: Job, slot: int, progress: Progress) -> None:
        """Starts the training of a job, or its first evaluation that is missing, in a slot."""
        if job.started is None:
            job.started = time.monotonic()
        workdir = self._out / job.name
        evaluation = progress.missing[0] if progress.missing else None
        if evaluation is None:
            arguments = ["train", *self._arguments, f"--points={job.name}", f"--out={self._out}"]
            action = f"from step {progress.step}" if progress.step else "from the beginning"
        else:
            command = evaluation_command(job.point, evaluation, workdir)
            arguments = ["evaluate", str(workdir / EVALUATIONS), *command]
            action = f"evaluation {evaluation}"
        log, log_start = None, 0
        if is_local(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
            log = pathlib.Path(workdir) / LOG
            log_start = log.stat().st_size if log.exists() else 0
        process = self._spawn(arguments, log, self._cores[slot])
        self._running.append(Stage(job, slot, evaluation, process, log, log_start))
        self._display.write(f"started {job.point}, {action}")

    def _spawn(
        self, arguments: Sequence[str], log: pathlib.Path | None, cores: set[int] | None = None
    ) -> subprocess.Popen:
        # The points of a study compile mostly the same programs, so they share a cache of them.
        cache = self._out / ".jax_cache" if is_local(self._out) else None
        return child_processes.start(WORKER, arguments, log, cores, cache)

    def _handle_end(self, stage: Stage) -> None:
        """Decides what follows a process that has ended."""
        job, status = stage.job, stage.process.returncode
        child_processes.kill(stage.process)  # and the processes that it may have left behind
        if status == 0 and stage.evaluation is not None:
            status = self._accept_output(stage)
        try:
            progress = self._read_progress(job)
        except UsageError as error:
            self._fail(job, f"failed {job.point}: {error}")
            return
        if status == worker.BUSY:
            self._waiting.append(job)
        elif status > 0:
            self._fail(job, stage.failure(f"status {status}"))
        elif progress.finished:
            self._finish(job, progress, f"in {format_seconds(time.monotonic() - job.started)}")
        elif self._stop:
            self._waiting.append(job)
        elif status == 0 and (stage.evaluation is not None or progress.metrics is not None):
            self._free_slots.remove(stage.slot)
            self._start(job, stage.slot, progress)
        elif job.retries < RETRIES:
            job.retries += 1
            self._display.write(
                f"{job.point} was ended by {child_processes.signal_name(status)}; retrying"
            )
            self._waiting.insert(0, job)
        else:
            self._fail(job, stage.failure(child_processes.signal_name(status)))

    def _accept_output(self, stage: Stage) -> int:
        """Accepts the output of an evaluation that exited with 0; returns 1 if it is not valid."""
        try:
            accept_output(self._out / stage.job.name, stage.evaluation)
        except BadOutput as error:
            if stage.log is not None:
                with contextlib.suppress(OSError), open(stage.log, "a") as file:
                    file.write(f"{error}\n")
            return 1
        return 0

    def _finish(self, job: Job, progress: Progress, how: str) -> None:
        self._finished.append(job)
        metrics = ", ".join(
            f"{heading} {progress.metrics[metric]:.4g}"
            for heading, metric in job.point.study.columns.items()
            if metric in progress.metrics
        )
        self._display.write(f"finished {job.point}, {how}: {metrics}")
        self._display.update(len(self._finished), force=True)

    def _fail(self, job: Job, message: str) -> None:
        self._failed.append(job)
        self._display.write(message)

    def _give_up_waiting(self) -> None:
        for job in self._waiting:
            self._display.write(f"{job.point} is running elsewhere")
        self._elsewhere += self._waiting
        self._waiting = []
