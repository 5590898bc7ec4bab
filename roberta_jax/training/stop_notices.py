"""What a signal prints while a run is training."""

import contextlib
import signal
from collections.abc import Iterator

from roberta_jax.training.checkpoints import Checkpoints
from roberta_jax.training.metrics import MetricsWriter


class StopNotices:
    """Describes what a run does about a signal, at the moment when it arrives."""

    def __init__(self, writer: MetricsWriter, checkpoints: Checkpoints):
        self._writer, self._checkpoints = writer, checkpoints
        self._doing: str | None = None

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Says what happens to work other than training steps if a signal arrives meanwhile."""
        self._doing = what
        try:
            yield
        finally:
            self._doing = None

    def stopping(self, number: int) -> str:
        writer = self._writer
        saves = writer.step != self._checkpoints.last_saved
        text = f"saving step {writer.step} and stopping" if saves else "stopping"
        if self._doing is not None:
            text += f"; {self._doing}."
        elif writer.seconds_per_step is None:
            text += " as soon as the step is finished, which may have to be compiled first."
        else:
            seconds = 2 * writer.seconds_per_step + self._checkpoints.save_seconds
            text += f", in about {max(1, round(seconds))} s."
        name = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}[number]
        again = " Ctrl-C again quits at once, without saving." if number == signal.SIGINT else ""
        return f"{name}: {text}{again}"

    def quitting(self) -> str:
        last = self._checkpoints.last_saved
        last = (
            "there is no checkpoint" if last is None else f"the last checkpoint is of step {last}"
        )
        return f"Quit without saving: {last}. The same command continues the run."
