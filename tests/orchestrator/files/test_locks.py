"""Locks: one run at a time; others wait or are refused; a dead holder's lock is free."""

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from wmarena.orchestrator.files.errors import StoreBusy
from wmarena.orchestrator.files.locks import hold, join

HOLDER = """
import signal, sys
from pathlib import Path
from wmarena.orchestrator.files.locks import hold
with hold(Path(sys.argv[1]), "run r-7"):
    print("held", flush=True)
    signal.pause()
"""


def holder(path: Path) -> subprocess.Popen[str]:
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    """Kill the process by SIGKILL."""
    process.send_signal(signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def test_a_second_process_is_told_who_holds_it(tmp_path: Path) -> None:
    """Its run and process; and it takes over as soon as that one is dead, however it died."""
    path = tmp_path / "run.lock"
    first = holder(path)
    try:
        with pytest.raises(StoreBusy, match=rf"held by run r-7 \(process {first.pid} on "), hold(path, "run r-8"):
            pass
    finally:
        end(first)
    with hold(path, "run r-8"):
        assert '"run r-8"' in path.read_text()


@pytest.mark.parametrize("take", [partial(hold, who="run r-8"), join])
def test_a_waiting_process_says_so_and_starts_afterwards(tmp_path: Path, take: Callable[..., Any]) -> None:
    """It names the holder, and gets the lock, exclusive or shared, when the holder releases it."""
    path, heard = tmp_path / "run.lock", []
    first = holder(path)

    def waiting(text: str) -> None:
        heard.append(text)
        threading.Timer(0.1, end, [first]).start()

    with take(path, waiting=waiting):
        assert first.poll() == -signal.SIGKILL
    assert len(heard) == 1
    assert f"held by run r-7 (process {first.pid}" in heard[0]


def test_an_unsigned_lock_is_a_lock(tmp_path: Path) -> None:
    """On a full disk the holder cannot be written; the lock works all the same."""
    path = tmp_path / "run.lock"
    first = holder(path)
    try:
        path.write_text("not json")
        with pytest.raises(StoreBusy, match="held by another run"), hold(path, "run r-8"):
            pass
    finally:
        end(first)
