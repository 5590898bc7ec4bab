"""Memory of the host, for programs that run on its CPU: fewer pages to fetch, none given back.

XLA allocates the buffers of a step anew each time. The C library gets large ones from the system
and gives them back when they are freed, and the system clears each page again at its first touch: a
tenth of a base model's step, a third of a small one's.
"""

import ctypes
import os
import pathlib
import platform
import sys

# <malloc.h>'s parameters for mallopt.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3

_HUGE_PAGES = "glibc.malloc.hugetlb"  # since glibc 2.35
_SYSTEM_SETTING = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def keep_freed_memory() -> bool:
    """Stops glibc from handing freed buffers back to the system; a no-op elsewhere.

    Enough for models whose buffers are small. Buffers past 32 MB still go back, because glibc gives
    the threads that XLA computes in heaps of 64 MB at most: see `restart_with_huge_pages`. The
    process keeps its largest size.

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


def huge_page_environment() -> dict[str, str]:
    """What to add to a process's environment for its large buffers to lie in pages of 2 MB.

    Returns:
      The variable, or nothing where it would change nothing: it is set already, the C library is
      not glibc 2.35 or newer, or the system gives huge pages to all or to none.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if _HUGE_PAGES in tunables:
        return {}
    library, version = platform.libc_ver()
    if library != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < (2, 35):
        return {}
    if not _SYSTEM_SETTING.exists() or "[madvise]" not in _SYSTEM_SETTING.read_text():
        return {}
    wanted = f"{_HUGE_PAGES}=1"
    return {"GLIBC_TUNABLES": f"{tunables}:{wanted}" if tunables else wanted}


def restart_with_huge_pages() -> None:
    """Starts this process's command again, under the same process id, if it has no huge pages.

    glibc reads the setting when a process starts, so that it is too late to make it from inside.
    For the top of a command: whatever was done before is done again. Returns where there is nothing
    to gain.
    """
    added = huge_page_environment()
    if added:
        sys.stdout.flush()
        sys.stderr.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | added)
