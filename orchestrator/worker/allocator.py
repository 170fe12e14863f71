"""Keeping the memory that a process has freed, where the C library is glibc.

By default glibc maps every large block anew and gives it back at once: each activation of each batch is then paid for
again in page faults, which costs a worker on a CPU up to half of its time in the kernel.
"""

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_KEPT = 2**30


def keep_freed_memory() -> bool:
    """Serve blocks of up to 1 GiB from the heap and return nothing to the system; False where that cannot be set."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
