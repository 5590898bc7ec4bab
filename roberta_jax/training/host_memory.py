"""Keeps the memory that a training step on a CPU frees for the step after it.

XLA allocates the temporary buffers of a step anew in each execution. glibc gives buffers that large
back to the kernel when they are freed, and each page of the next ones is then zeroed by a page
fault: a fifth of the time of a small model's step. Three settings of glibc avoid that. All threads
allocate from the one heap that grows without a bound (`use_one_heap`); and while steps are made,
nothing is mapped outside of it, and it is not trimmed (`kept_memory`).
"""

import contextlib
import ctypes
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping

from roberta_jax.training.clusters import has_google_device, visible_gpus

# The parameters of glibc's mallopt, and the defaults of the last two, from its malloc.h.
_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD = -8, -4, -1
_DEFAULTS = {_MMAP_MAX: 65536, _TRIM_THRESHOLD: 128 * 1024}

_one_heap = False  # of this process


def use_one_heap(env: Mapping[str, str] | None = None) -> bool:
    """Makes all threads that start later share a heap, if this machine computes on its CPU.

    For commands, before JAX is used. With an accelerator nothing is changed: there the threads of
    the host allocate small buffers, and would wait for each other. What the user has set in the
    environment stays as it is.

    Args:
      env: environment variables; by default those of this process.

    Returns:
      Whether it has an effect.
    """
    global _one_heap
    env = os.environ if env is None else env
    is_set = any(name.startswith("MALLOC_") for name in env)
    if is_set or "glibc.malloc" in env.get("GLIBC_TUNABLES", "") or _has_accelerator(env):
        return False
    mallopt = _of_glibc("mallopt")
    _one_heap = bool(mallopt and mallopt(_ARENA_MAX, 1))
    return _one_heap


@contextlib.contextmanager
def kept_memory() -> Iterator[None]:
    """Keeps freed memory in the heap until the block ends; without `use_one_heap`, does nothing.

    Arrays that were allocated before, such as the parameters, stay outside of the heap. Entered
    before they are, it would leave gaps in the heap that no temporary buffer fits in.
    """
    if not _one_heap:
        yield
        return
    mallopt, trim = _of_glibc("mallopt"), _of_glibc("malloc_trim")
    trim(0)  # of the memory of the compiler
    try:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)
        yield
    finally:
        for name, value in _DEFAULTS.items():
            mallopt(name, value)
        trim(0)


def _of_glibc(name: str) -> Callable[..., int] | None:
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError, TypeError):  # another C library
        return None


def _has_accelerator(env: Mapping[str, str]) -> bool:
    if env.get("JAX_PLATFORMS") == "cpu":
        return False
    is_amd = pathlib.Path("/dev/kfd").exists()  # the driver of AMD's GPUs
    return bool(visible_gpus(env)) or is_amd or has_google_device()
