"""Makes glibc keep freed memory in the process.

By default glibc maps every large block anew and unmaps it when freed: each activation of each batch then costs page
faults, up to half of a CPU worker's time.
"""

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST_KEPT = 2**30


def keep_freed_memory() -> bool:
    """Serve blocks of up to 1 GiB from the heap and return nothing to the system; return whether this was set."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
