"""Keeps what is known about each crash in a file of its own."""

import datetime
import os
import pathlib
import re
import shlex
import socket
from collections.abc import Sequence

from roberta_jax.launching.endings import End, described
from roberta_jax.storage import is_local

FOLDER = "launch"  # in the workdir
ELSEWHERE = "launch_logs"  # in the current folder, where there is no local workdir


def default_folder(workdir: str | None) -> pathlib.Path:
    """Returns the folder of the crash files of a run."""
    if workdir is None or not is_local(workdir):
        return pathlib.Path(ELSEWHERE)
    return pathlib.Path(workdir) / FOLDER


def write(
    folder: pathlib.Path,
    command: Sequence[str],
    what: str,
    ends: Sequence[End],
    *,
    seconds: float,
    step: int | None,
) -> pathlib.Path | None:
    """Writes a file about a crash.

    Args:
      folder: of the crash files, created if needed.
      command: what was run.
      what: what happened, in a sentence.
      ends: the ends of the processes in the order of time, with what they wrote last.
      seconds: how long the processes ran.
      step: of the newest checkpoint, if there is one.

    Returns:
      The file; None if it cannot be written, which is no reason not to restart.
    """
    now = datetime.datetime.now(datetime.UTC)
    host = re.sub(r"[^A-Za-z0-9.-]", "_", socket.gethostname())
    lines = [
        f"{what} on {socket.gethostname()}, {now:%Y-%m-%d %H:%M:%S} UTC, after {seconds:.0f} s",
        "newest checkpoint: " + ("none" if step is None else f"step {step}"),
        f"command: {shlex.join(command)}",
    ]
    for end in ends:
        lines += ["", f"--- process {end.process} {described(end.status)}; end of its stdout:"]
        lines += [*end.stdout, f"--- process {end.process}: end of its stderr:", *end.stderr]
    path = folder / f"crash-{now:%Y%m%d-%H%M%S-%f}-{host}.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="replace")
        temporary.replace(path)
    except OSError:
        return None
    return path
