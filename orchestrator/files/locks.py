"""File locks, which the operating system releases when the process ends in any way.

``hold`` and ``join`` are for runs, which may take days: they name the holder, and refuse or wait. ``exclusive`` and
``shared`` are for short operations: they just wait.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from wmarena.orchestrator.files.errors import StoreBusy, StoreError

_ASK_AGAIN_S = 0.5

WAIT = "`wmarena run --wait` or `wmarena tune --wait` starts"
"""Advice in messages about another run."""


@contextmanager
def hold(path: Path, who: str, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the lock at ``path``, and write the holder into the file.

    Args:
        who: what this process does, for other processes' messages.
        waiting: called with a message about the holder before waiting for the lock; None: do not wait.

    Raises:
        StoreBusy: another process holds it.
        StoreError: the file system has no locks, or cannot be written.
    """
    with _opened(path) as file:
        _acquire(file, fcntl.LOCK_EX, waiting, f"to be the only run on {path.parent}", "use another --store")
        _write_holder(file, who)
        yield


@contextmanager
def join(path: Path, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the lock at ``path`` together with other ``join`` callers.

    Args:
        waiting: as of ``hold``.

    Raises:
        StoreBusy: another process holds it exclusively.
        StoreError: the file system has no locks, or cannot be written.
    """
    with _opened(path) as file:
        expected = f"{path.parent} free, or held by runs on the same PostgreSQL journal"
        _acquire(file, fcntl.LOCK_SH, waiting, expected, "give all runs the same --journal")
        yield


@contextmanager
def exclusive(path: Path, mode: int = 0o666) -> Iterator[None]:
    """Hold the lock at ``path`` exclusively; wait for it.

    Args:
        mode: permissions of a new lock file, less the umask.

    Raises:
        OSError: the file system has no locks, or cannot be written.
    """
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, mode), "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def shared(path: Path) -> Iterator[None]:
    """Hold the lock at ``path`` shared; wait for an exclusive holder.

    Raises:
        OSError: there is no such file (the lock was never held), or the file system has no locks.
    """
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


def ask_until(granted: Callable[[], bool]) -> None:
    """Poll until ``granted`` returns True."""
    while not granted():
        time.sleep(_ASK_AGAIN_S)


def _acquire(file: TextIO, how: int, waiting: Callable[[str], None] | None, expected: str, way_out: str) -> None:
    if _locked(file, how):
        return
    path = Path(file.name)
    holder = _read_holder(path)
    if waiting is None:
        raise StoreBusy(
            f"expected {expected}, got a store that is held by {holder}; {WAIT} when it is free; or {way_out}"
        )
    waiting(f"waiting for {path.parent}, which is held by {holder}")
    ask_until(lambda: _locked(file, how))


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    try:
        file = path.open("a+")
    except OSError as error:
        raise StoreError(
            f"expected a store that can be written, got {path.parent} ({error.strerror}); choose another --store DIR"
        ) from None
    with file:
        yield file


def _locked(file: TextIO, how: int) -> bool:
    """Try to lock; return False if another process holds the lock."""
    # flock, not a file's existence: the kernel releases it when a holder is killed.
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise StoreError(
            f"expected a file system with locks, got {Path(file.name).parent} ({error.strerror}); "
            "choose a local folder with --store DIR"
        ) from None
    return True


def _write_holder(file: TextIO, who: str) -> None:
    """Write the holder into the lock file, for messages; ignore a full disk."""
    holder = {"who": who, "pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}
    with contextlib.suppress(OSError):  # the lock counts, its text only explains
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), json.dumps(holder).encode())


def _read_holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder["since"]))
        return f"{holder['who']} (process {holder['pid']} on {holder['host']}, since {since})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another run"
