"""Settings of the host's memory allocator that make steps on the CPU faster.

XLA allocates the buffers of each step. The C library requests large buffers from the operating
system and returns them when they are freed, and the system zeroes every page at its first use.
"""

import ctypes
import sys

# <malloc.h>'s parameters for mallopt.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> bool:
    """Stops glibc from returning freed buffers to the operating system.

    The process then stays at its peak memory use. Buffers of more than 32 MB are still returned,
    because the heaps that glibc creates for XLA's threads are limited to 64 MB.

    Returns:
      Whether it took effect; False with another C library.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is None:
        return False
    limits = {_M_MMAP_THRESHOLD: 1 << 30, _M_TRIM_THRESHOLD: (1 << 31) - 1, _M_TOP_PAD: 1 << 26}
    accepted = [mallopt(parameter, limit) for parameter, limit in limits.items()]
    return all(accepted)
