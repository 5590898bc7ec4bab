"""Shows a supervisor that a run makes progress.

`roberta_jax.launch` names a file in the environment variable `VARIABLE`. A run touches it after
each training step and each batch of an evaluation, and while it waits for another process. The
supervisor can thus tell a process that hangs from one that works, also where the workdir is on an
object store.
"""

import contextlib
import os
import pathlib
import time

VARIABLE = "ROBERTA_JAX_HEARTBEAT"
INTERVAL = 1.0  # seconds; the file is not touched more often

_last = float("-inf")


def beat(*, first: bool = True) -> None:
    """Touches the file that `VARIABLE` names, at most once an `INTERVAL`; without one does nothing.

    A file that cannot be written is no reason to end a run.

    Args:
      first: False does nothing if the file does not exist. Until there is a beat, a supervisor
        waits longer: what comes before the first step may take hours.
    """
    global _last
    path = os.environ.get(VARIABLE)
    if not path or time.monotonic() - _last < INTERVAL:
        return
    with contextlib.suppress(OSError):
        if first or pathlib.Path(path).exists():
            _last = time.monotonic()
            pathlib.Path(path).touch()
