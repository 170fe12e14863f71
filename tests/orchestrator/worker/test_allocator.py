"""Freed memory stays with the process: large tensors do not cost page faults again."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from wmarena.orchestrator.worker.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.zeros(2**24)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
default = faults()
assert keep_freed_memory()
faults()
print(default, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_tensors_cause_no_more_page_faults() -> None:
    """Twenty tensors of 64 MiB, one after the other, fault on fewer than a tenth of the pages that they did before."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    default, kept = map(int, done.stdout.split())

    assert kept < default / 10
