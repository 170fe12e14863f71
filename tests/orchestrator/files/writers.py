"""Several processes that write at the same time."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def started(code: str, *arguments: list[str]) -> Iterator[Callable[[], bool]]:
    """One process per list of arguments, which runs ``code``; yields whether any still runs; all must end well."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, *given],
            stderr=subprocess.PIPE,
            text=True,
        )
        for given in arguments
    ]
    try:
        yield lambda: any(process.poll() is None for process in processes)
        said = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [(process.returncode, text) for process, text in zip(processes, said, strict=True)] == [(0, "")] * len(said)
