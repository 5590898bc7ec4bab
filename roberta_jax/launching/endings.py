"""What the end of a run's processes means: finished, stopped, a mistake, or a crash."""

import dataclasses
import enum
import signal
from collections.abc import Sequence

FINISHED_STATUS = 0
MISTAKE_STATUS = 2


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
      stdout: the last lines that it wrote to stdout.
      stderr: the last lines that it wrote to stderr.
      partner_lost: whether it says that it may succeed if it is started again, because another
        process of the run was lost or an object store could not be reached (it wrote
        `errors.RESTART_FILE`). Its status is 2 nevertheless.
    """

    process: int
    status: int
    stdout: Sequence[str] = ()
    stderr: Sequence[str] = ()
    partner_lost: bool = False


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
    # That a process lost its partner is a consequence of what happened to that partner.
    causes = [end for end in failures if not end.partner_lost]
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
