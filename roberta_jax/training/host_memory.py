"""Makes the C library keep the memory that a CPU program frees between two of its operations."""

import ctypes
import sys

# <malloc.h>'s parameters for mallopt.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> bool:
    """Stops glibc from handing large buffers back to the system; a no-op elsewhere.

    On a CPU, XLA allocates the buffers of a step anew each time. glibc gets those past 128 kB from
    the system and gives them back at once, and the system clears every page again: a third of the
    time of a small model's step. Kept, they are used again as they are. The process keeps its
    largest size.

    Returns:
      Whether it is done.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is None:
        return False
    limits = {_M_MMAP_THRESHOLD: 1 << 30, _M_TRIM_THRESHOLD: (1 << 31) - 1, _M_TOP_PAD: 1 << 26}
    taken = [mallopt(parameter, limit) for parameter, limit in limits.items()]
    return all(taken)
