"""Helpers of the drills: a small experiment run by the command line, its processes, and its expected table."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.parquet as pq
import pytest

from wmarena.orchestrator.store.local import Store
from wmarena.orchestrator.store.opening import open_store

FULL = bool(os.environ.get("WMARENA_DRILL"))
"""True under ``make drill``: the full numbers instead of one of each kind."""

PATIENCE_S = 900.0
"""Time after which a drill counts as hung."""

SPEC = """\
name: drill
workloads:
  - {name: digits_mlp, epochs: 3, train_size: 600}
schemes:
  - {name: uchida, bits: 24, epochs: 2}
  - {name: adi, n_triggers: 20, epochs: 2}
attacks:
  - {name: finetune, variant: ftal, epochs: [1, 2]}
  - {name: prune_weights, sparsity: [0.3, 0.9]}
adversary: {data_fraction: 0.3}
seeds: [0]
"""
"""Thirty tasks of all kinds, seconds on one thread."""

LONG = """\
name: long
workloads:
  - {name: digits_mlp, epochs: 400, train_size: 600}
schemes:
  - {name: uchida, bits: 24, epochs: 1}
seeds: [0]
"""
"""One training that takes most of the time."""

_VARIES = ("run_id", "cached", "seconds_embed", "seconds_attack", "seconds_verify", "device")

Row = dict[str, Any]
T = TypeVar("T")

STARTED: list["subprocess.Popen[bytes]"] = []
"""Every command that a drill has started, so that a drill that fails leaves none behind."""


@dataclass
class Drill:
    """One store and one spec, and the command line to run them.

    Attributes:
        folder: holds everything; removed by pytest.
        options: of every command here.
        prefix: of each command line, such as ``ip netns exec NAME``.
        tracking_uri: MLflow's; "none" records nothing.
        verb: the command: run, tune.
        url: of the store; None for one in the folder. The driver's own part of it is in the folder in any case.
        store: the folder of journal and reports.
    """

    folder: Path
    text: str = SPEC
    options: Sequence[str] = ()
    prefix: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    tracking_uri: str = "none"
    verb: str = "run"
    url: str | None = None
    store: Path = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.url is not None:
            self.environment = {"XDG_CACHE_HOME": str(self.folder / "cache"), **self.environment}
        self.store = self.home().root
        (self.folder / "spec.yaml").write_text(self.text)

    def home(self) -> Store:
        """Open the store as its driver does."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            return open_store(self.url or self.folder / "store")

    def command(self, *options: str) -> list[str]:
        """Build the command line of ``wmarena run``, or another verb."""
        places = ["--store", self.url or str(self.store), "--tracking-uri", self.tracking_uri]
        head = [*self.prefix, sys.executable, "-m", "wmarena", *places, "--json"]
        return [*head, self.verb, str(self.folder / "spec.yaml"), *self.options, *options]

    def start(self, *options: str) -> "Driver":
        """Start a run in its own process."""
        out, err = self.folder / f"out-{time.monotonic_ns()}", self.folder / f"err-{time.monotonic_ns()}"
        environment = {**os.environ, "RAY_AUTH_MODE": "disabled", **self.environment}
        with out.open("w") as stdout, err.open("w") as stderr:
            process = subprocess.Popen(
                self.command(*options), stdout=stdout, stderr=stderr, env=environment, preexec_fn=restore_ctrl_c
            )
        STARTED.append(process)
        return Driver(process, out, err)

    def run(self, *options: str) -> "Driver":
        """Execute a run to exit status 0."""
        driver = self.start(*options)
        driver.end()
        return driver

    def run_any(self, *options: str) -> "Driver":
        """Execute a run to any exit status."""
        driver = self.start(*options)
        driver.end(status=None)
        return driver

    def table(self) -> list[Row]:
        """Read the newest run's table without columns that vary between runs, in a fixed order."""
        newest = max(self.store.glob("reports/*/*/results.parquet"), key=lambda p: p.parent.name)
        rows: list[Row] = pq.read_table(newest).to_pylist()
        return sorted(({k: v for k, v in r.items() if k not in _VARIES} for r in rows), key=lambda r: str(r["task_id"]))

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        """Query the journal."""
        connection = sqlite3.connect(self.store / "journal.sqlite")
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()

    def begun(self) -> bool:
        """True once a run is in the journal."""
        try:
            return bool(self.ask("SELECT id FROM run"))
        except sqlite3.OperationalError:  # no file yet, or no tables
            return False

    def causes(self) -> list[str]:
        """List the errors of failed attempts, in order."""
        return [error for (error,) in self.ask("SELECT error FROM attempt WHERE error IS NOT NULL ORDER BY finished")]

    def check(self, reference: "Drill") -> None:
        """Check that no task is lost or repeated and that the table equals an undisturbed run's."""
        states = dict(self.ask("SELECT id, state FROM task"))
        expected = dict(reference.ask("SELECT id, state FROM task"))
        twice = self.ask("SELECT task FROM attempt WHERE state='done' GROUP BY task HAVING COUNT(*) > 1")
        assert states == expected
        assert set(states.values()) == {"done"}
        assert twice == []
        assert set(self.home().task_ids()) == set(states)
        assert self.home().verify()["damaged"] == []
        assert self.table() == reference.table()


@dataclass
class Driver:
    """A running ``wmarena run``."""

    process: "subprocess.Popen[bytes]"
    out: Path
    err: Path

    @property
    def said(self) -> str:
        """Its stderr so far."""
        return self.err.read_text()

    @property
    def n_done(self) -> int:
        """How many tasks it has reported done."""
        return self.said.count("] done ")

    @property
    def summary(self) -> dict[str, Any]:
        """Its JSON output."""
        found: dict[str, Any] = json.loads(self.out.read_text())
        return found

    @property
    def going(self) -> bool:
        """True until it has ended."""
        return self.process.poll() is None

    def wait_for(self, condition: Callable[[], T], what: str) -> T:
        """Wait until ``condition`` is true and return its value; fail if the run ends before."""
        deadline = time.monotonic() + PATIENCE_S
        while not (found := condition()):
            assert self.going, f"ended with {self.process.returncode} before {what}: {self.said}"
            assert time.monotonic() < deadline, f"{what} did not come: {self.said}"
            time.sleep(0.02)
        return found

    def wait_for_done(self, n_tasks: int) -> None:
        """Wait until that many tasks are done."""
        self.wait_for(lambda: self.n_done >= n_tasks, f"{n_tasks} tasks done")

    def workers(self, doing: str = "") -> list[int]:
        """List process ids of its Ray workers, or of those that are ``doing`` something (``.perform``)."""
        ours = descendants(self.process.pid)
        return [pid for pid in ours if _command(pid).startswith(f"ray::GpuWorker{doing}")]

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the driver alone."""
        self.process.send_signal(number)

    def end(self, *, status: int | None = 0) -> int:
        """Wait for its end and check its exit status."""
        try:
            code = self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        assert status is None or code == status, f"expected exit status {status}, got {code}: {self.said}"
        return code


def meet(first: Driver, start: Callable[..., Driver], queued: str) -> tuple[Driver, Driver]:
    """Suspend ``first``, start a driver that is refused and one that waits with message ``queued``; let all end."""
    first.send(signal.SIGSTOP)
    refused, waiting = start(), start("--wait")
    refused.end(status=3)
    waiting.wait_for(lambda: queued in waiting.said, "the other one to wait")
    first.send(signal.SIGCONT)
    first.end()
    waiting.end()
    return refused, waiting


def descendants(pid: int) -> list[int]:
    """List all descendants of a process."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            parents.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        below = parents.get(todo.pop(), [])
        found += below
        todo += below
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def restore_ctrl_c() -> None:
    """Restore SIGINT: in background shells it is ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def kill_one(pids: Sequence[int], rng: random.Random, number: signal.Signals = signal.SIGKILL) -> int | None:
    """Signal one process of several; return its id, or None if it had ended."""
    if not pids:
        return None
    pid = rng.choice(pids)
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return None
    return pid


def needs(*programs: str) -> str | None:
    """Return the reason why a drill cannot use these programs as root, or None."""
    missing = [p for p in programs if shutil.which(p) is None]
    if missing:
        return f"needs {', '.join(missing)}"
    return None if os.geteuid() == 0 else "needs root"


def all_end(pids: Iterable[int]) -> bool:
    """Wait until none of the processes runs: Ray's daemons take seconds to detect that their driver ended."""
    deadline = time.monotonic() + 60.0
    left = set(pids)
    while left and time.monotonic() < deadline:
        left = {pid for pid in left if _runs(pid)}
        time.sleep(0.1)
    return not left


def _runs(pid: int) -> bool:
    """True unless the process ended or is a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
