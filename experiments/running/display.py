"""Shows how far a sweep is: a progress bar on a terminal, plain lines elsewhere."""

import datetime
import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

from experiments.running.jobs import Job

STATUS_SECONDS = 60.0  # between two status lines, where there is no progress bar


class Display:
    """Prints the messages of a sweep and its progress."""

    def __init__(self, jobs: Sequence[Job]):
        """Starts the display; the time spent counts from now.

        Args:
          jobs: all jobs of the sweep. Their `step` is read whenever the progress is shown.
        """
        self._jobs = jobs
        self._started = self._last_status = time.monotonic()
        self._tokens_at_start = sum(job.tokens_left for job in jobs)
        self._bar: tqdm | None = None
        if sys.stderr.isatty():
            step, steps = self._steps()
            self._bar = tqdm(total=steps, initial=step, unit="step", dynamic_ncols=True)

    def write(self, text: str) -> None:
        """Prints a message, above the progress bar if there is one."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, flush=True)

    def update(self, num_finished: int, *, force: bool = False) -> None:
        """Moves the progress bar, or prints the status if some time has passed since the last one.

        Args:
          num_finished: the number of finished jobs.
          force: prints the status in any case.
        """
        now = time.monotonic()
        if self._bar is not None:
            self._bar.n, _ = self._steps()
            self._bar.set_postfix_str(f"{num_finished}/{len(self._jobs)} points")
        elif force or now - self._last_status > STATUS_SECONDS:
            self._last_status = now
            self.write(self.status(num_finished))

    def status(self, num_finished: int) -> str:
        """Returns the numbers of finished points and steps, the time spent and the time left."""
        left = sum(job.tokens_left for job in self._jobs)
        seconds, tokens = time.monotonic() - self._started, self._tokens_at_start - left
        step, steps = self._steps()
        estimate = ""
        if tokens > 0 and left and steps is not None:
            estimate = f", about {format_seconds(seconds / tokens * left)} left"
        progress = f"{step} steps" if steps is None else f"{step}/{steps} steps"
        return (
            f"{num_finished}/{len(self._jobs)} points, {progress}, "
            f"{format_seconds(seconds)} so far{estimate}"
        )

    def close(self) -> None:
        """Removes the progress bar."""
        if self._bar is not None:
            self._bar.close()

    def _steps(self) -> tuple[int, int | None]:
        """Returns the steps made and the steps of the whole sweep, None if they are not known."""
        steps = [job.steps for job in self._jobs]
        return sum(job.step for job in self._jobs), None if None in steps else sum(steps)


def format_seconds(seconds: float) -> str:
    """Formats a duration as H:MM:SS."""
    return str(datetime.timedelta(seconds=round(seconds)))
