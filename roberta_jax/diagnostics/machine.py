"""Checks of the machine: the cache of compiled programs, and the main memory."""

import os
import pathlib
import secrets

from etils import epath

from roberta_jax.diagnostics.report import Result, ok, problem, warning
from roberta_jax.storage.atomic import is_local
from roberta_jax.training.compilation_cache import VARIABLE as CACHE
from roberta_jax.training.compilation_cache import default_folder

COMPILE_CACHE, MEMORY = "compile cache", "memory"
LOW_MEMORY = 8 << 30  # less than this gets a warning


def compile_cache() -> list[Result]:
    """Checks the folder of JAX's compiled programs: that of the variable, or the default."""
    folder = os.environ.get(CACHE)
    if folder == "":
        text = f"{CACHE} is empty: every start compiles again."
        return [warning(COMPILE_CACHE, text, f"unset {CACHE}, or name a folder.")]
    try:
        folder = folder or str(default_folder())
    except RuntimeError:
        text = "there is no home folder to keep compiled programs in: every start compiles again."
        return [warning(COMPILE_CACHE, text, f"name a folder in {CACHE}.")]
    path = epath.Path(folder) / f".doctor-{secrets.token_hex(4)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
        path.unlink()
        entries = sum(1 for _ in path.parent.iterdir()) if is_local(folder) else None
    except Exception as error:  # each kind of object store raises errors of its own
        return [
            problem(
                COMPILE_CACHE,
                f"{folder} cannot be written: {' '.join(str(error).split())[:200]}.",
                f"name a folder that can be written in {CACHE}.",
            )
        ]
    text = folder if entries is None else f"{folder}, {entries} entries"
    return [ok(COMPILE_CACHE, text)]


def memory(file: str = "/proc/meminfo") -> list[Result]:
    """Says how much main memory is free.

    Args:
      file: where Linux tells it; where there is none, nothing is said.
    """
    try:
        lines = pathlib.Path(file).read_text().splitlines()
        values = dict(line.split(":", 1) for line in lines)
        free, total = (1024 * int(values[name].split()[0]) for name in ("MemAvailable", "MemTotal"))
    except (OSError, ValueError, KeyError, IndexError):
        return []
    text = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB are free"
    if free < LOW_MEMORY:
        advice = "end what else runs here, or use a machine with more memory for large models."
        return [warning(MEMORY, text + ".", advice)]
    return [ok(MEMORY, text)]
