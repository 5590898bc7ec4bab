"""What the end of a run's processes means: finished, stopped, a mistake, or a crash."""

import dataclasses
import enum
import signal
from collections.abc import Sequence

FINISHED_STATUS = 0
MISTAKE_STATUS = 2

# Lines on stderr of a process that exits with status 2 although nobody made a mistake: another
# process of the run was lost, and the run continues once all are started again.
LOST_PARTNER = ("PartnerLost", "was lost", "lost partner", "lost:")


class Kind(enum.Enum):
    """How an attempt ended."""

    FINISHED = "finished"
    STOPPED = "stopped"  # by a signal that the supervisor passed on
    MISTAKE = "mistake"  # status 2: the same command would end the same way
    CRASHED = "crashed"
    STALLED = "stalled"  # killed, because it made no progress


@dataclasses.dataclass(frozen=True)
class End:
    """The end of one process.

    Attributes:
      process: its index among the processes of this machine.
      status: its return code; the negative number of the signal that ended it.
      stderr: the last lines that it wrote to stderr.
    """

    process: int
    status: int
    stderr: Sequence[str] = ()


def restartable_mistake(end: End) -> bool:
    """Whether a status 2 says that a partner of the process was lost, and not that the user erred.

    This is the only place that knows how `roberta_jax.training` reports a lost partner.
    """
    errors = [line for line in end.stderr if line.startswith("error: ")]
    return any(marker in line for line in errors for marker in LOST_PARTNER)


def judge(ends: Sequence[End], *, stop_signal: int | None, stalled: bool) -> tuple[Kind, End]:
    """Returns what an attempt's end means, and the process that it is judged by.

    Args:
      ends: the ends of all processes, in the order of time. Those that the supervisor killed after
        the failure of another one come last.
      stop_signal: the signal that the supervisor passed on, if any.
      stalled: whether the supervisor killed the processes because they made no progress.
    """
    failures = [end for end in ends if end.status != FINISHED_STATUS]
    if not failures:
        return Kind.FINISHED, ends[0]
    # A process that lost its partner is a consequence of what happened to that partner.
    causes = [end for end in failures if not _lost(end)]
    first = (causes or failures)[0]
    if stop_signal is not None:
        return Kind.STOPPED, first
    if stalled:
        return Kind.STALLED, first
    if causes and first.status == MISTAKE_STATUS:
        return Kind.MISTAKE, first
    return Kind.CRASHED, first


def exit_status(status: int) -> int:
    """Returns the status that a shell reports for a return code of `subprocess`."""
    return status if status >= 0 else 128 - status


def described(status: int) -> str:
    """Describes a return code: "exited with status 1", "was ended by SIGKILL"."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"was ended by {name}"


def _lost(end: End) -> bool:
    return end.status == MISTAKE_STATUS and restartable_mistake(end)
