"""Keeps the memory that training steps on a CPU free, for the steps after them."""

import ctypes
import os
import pathlib
from collections.abc import Mapping

from roberta_jax.training.clusters import has_google_device, visible_gpus

# The parameters of glibc's mallopt, from its malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory(env: Mapping[str, str] | None = None) -> bool:
    """Makes glibc keep freed memory, if this machine computes on its CPU; returns whether it does.

    XLA allocates the temporary buffers of a step anew in each execution. glibc gives such large
    buffers back to the kernel when they are freed, and each page of the next ones is then zeroed by
    a page fault. Three settings avoid that. All threads allocate from the one heap that can grow
    without a bound, nothing is mapped outside it, and it is not trimmed. The process then never
    gives memory back before it ends, so this is for commands and not for libraries.

    It has an effect on threads that start later, so call it before JAX is used. With an accelerator
    nothing is changed: there the host's threads allocate small buffers, and one heap would make
    them wait for each other. What the user has set in the environment stays as it is.

    Args:
      env: environment variables; by default those of this process.
    """
    env = os.environ if env is None else env
    is_set = any(name.startswith("MALLOC_") for name in env)
    if is_set or "glibc.malloc" in env.get("GLIBC_TUNABLES", "") or _has_accelerator(env):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # another C library
        return False
    settings = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))
    return all(mallopt(name, value) for name, value in settings)


def _has_accelerator(env: Mapping[str, str]) -> bool:
    if env.get("JAX_PLATFORMS") == "cpu":
        return False
    is_amd = pathlib.Path("/dev/kfd").exists()  # the driver of AMD's GPUs
    return bool(visible_gpus(env)) or is_amd or has_google_device()
