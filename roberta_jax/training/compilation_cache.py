"""Keeps compiled programs from one start of a command to the next."""

import hashlib
import os
import pathlib
import platform
from collections.abc import Mapping

VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def default_folder(env: Mapping[str, str] | None = None) -> pathlib.Path:
    """Returns `roberta_jax/jax` in the user's cache folder.

    Raises:
      RuntimeError: the user has no home folder.
    """
    env = os.environ if env is None else env
    base = env.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "roberta_jax" / "jax"


def use_compilation_cache(env: Mapping[str, str] | None = None) -> pathlib.Path | None:
    """Makes JAX keep the programs that take a second or more to compile in the default folder.

    The variable `JAX_COMPILATION_CACHE_DIR` takes precedence: it names another folder, or none if
    it is empty.

    Args:
      env: environment variables; by default those of this process.

    Returns:
      The folder, or None if nothing was changed because of the variable, or because the folder
      cannot be written.
    """
    import jax  # here: `launch`, which needs the name of the folder, starts without JAX

    env = os.environ if env is None else env
    if VARIABLE in env or jax.config.jax_compilation_cache_dir:
        return None
    try:
        # Homes may be shared by machines whose CPUs have other instructions.
        folder = default_folder(env) / _instruction_set()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    if not os.access(folder, os.W_OK | os.X_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


def _instruction_set() -> str:
    """A name of what programs for this machine's CPU may use: its kind, and a hash of its flags."""
    name = platform.machine() or "cpu"
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:  # not Linux
        return name
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{name}-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"
