"""Keeps the memory that a training step on a CPU frees for the step after it.

XLA allocates the temporary buffers of a step anew in each execution. glibc gives buffers that large
back to the kernel when they are freed, and each page of the next ones is then zeroed by a page
fault: a fifth of the time of a small model's step. Three settings of glibc avoid that. All threads
allocate from the one heap that grows without a bound (`use_one_heap`); and while steps are made,
nothing is mapped outside of it, and it is not trimmed (`KeptMemory`).

JAX then computes in the thread that calls it. By default a thread of XLA frees the buffers of a
step somewhat later than it says that the step is done. The next step would often find them in use,
and take as much again, which stays in the heap.
"""

import contextlib
import ctypes
import os
import pathlib
from collections.abc import Callable, Hashable, Iterator, Mapping

import jax

from roberta_jax.training.clusters import has_google_device, visible_gpus

# Parameters of glibc's mallopt (malloc.h). Two of them have values that keep memory, and defaults.
_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD = -8, -4, -1
_DEFAULTS = {_MMAP_MAX: 65536, _TRIM_THRESHOLD: 128 * 1024}
_KEEPING = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1}

_one_heap = False  # of this process


def use_one_heap(env: Mapping[str, str] | None = None) -> bool:
    """Makes all threads that start later share a heap, if this machine computes on its CPU.

    Programs then run in the thread that calls them, unless the run has several processes (see
    `distributed`). For commands, before JAX is used. With an accelerator nothing is changed: there
    the threads of the host allocate small buffers, and would wait for each other. What the user has
    set in the environment stays as it is.

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
    if _one_heap:
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    return _one_heap


class KeptMemory(contextlib.AbstractContextManager):
    """Keeps freed memory in the heap while known programs run; needs `use_one_heap`.

        with KeptMemory() as memory:
            for batch in batches:
                with memory.running(shapes_of(batch)):
                    state, metrics = train_step(state, batch)

    Nothing is kept during the first execution of a program, so that the memory of its compiler is
    given back. Arrays that exist before memory is kept, such as the parameters, lie outside of the
    heap; inside, they would leave gaps that are too small for the temporary buffers.
    """

    def __init__(self):
        self._known: set[Hashable] = set()
        self._keeps = False

    @contextlib.contextmanager
    def running(self, program: Hashable) -> Iterator[None]:
        """Around an execution of a program, of which `program` is a name."""
        if program not in self._known:
            self.close()
        yield
        self._known.add(program)
        if _one_heap and not self._keeps:
            _of_glibc("malloc_trim")(0)  # of the memory of the compiler
            _set(_KEEPING)
            self._keeps = True

    def close(self) -> None:
        """Gives the memory back."""
        if self._keeps:
            _set(_DEFAULTS)
            _of_glibc("malloc_trim")(0)
            self._keeps = False

    def __exit__(self, *error) -> None:
        self.close()


def _set(values: Mapping[int, int]) -> None:
    mallopt = _of_glibc("mallopt")
    for name, value in values.items():
        mallopt(name, value)


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
