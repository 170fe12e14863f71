"""Store errors: the run pauses, continues, or stops in order."""

import errno
import os
from pathlib import Path

import pytest

from tests.orchestrator.toys import Scripted, World, diamond, failed, failure, named, put, states, task
from wmarena.orchestrator.files.errors import StoreError
from wmarena.orchestrator.journal.journal import Journal
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.task import FailureKind, Task
from wmarena.orchestrator.running.retry import Limits
from wmarena.orchestrator.running.store_outage import StoreLost, StoreOutage
from wmarena.orchestrator.store.local import Store
from wmarena.orchestrator.store.manifest import CorruptArtifact
from wmarena.orchestrator.worker.attempt import attempt_task
from wmarena.orchestrator.worker.context import Setup, WorkerContext

STORE = failure(FailureKind.STORE)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A store with its journal."""
    return World(tmp_path)


class Disk:
    """A probe that fails until a time, and a clock that advances at each call."""

    def __init__(self, well_at: float) -> None:
        self.now = 0.0
        self.well_at = well_at
        self.probes = 0

    def clock(self) -> float:
        self.now += 0.1
        return self.now

    def probe(self) -> None:
        self.probes += 1
        if self.now < self.well_at:
            raise StoreError("no space left on device; free space")


def test_a_disk_that_recovers_is_waited_for() -> None:
    """Without an error nothing is probed; then with growing pauses, until it succeeds."""
    disk = Disk(well_at=20.0)
    outage = StoreOutage(disk.probe, 30.0, disk.clock)
    assert outage.over()
    assert disk.probes == 0

    outage.begin()
    while not outage.over():
        outage.begin()  # more of the same trouble does not start it anew
    assert disk.now >= 20.0
    assert disk.probes <= 9
    assert outage.over()


def test_a_disk_that_does_not_recover_ends_the_run() -> None:
    """With the disk's own message and advice."""
    disk = Disk(well_at=1e9)
    outage = StoreOutage(disk.probe, 30.0, disk.clock)
    outage.begin()
    with pytest.raises(StoreLost, match="free space; finished tasks are kept; repair it and run the same command"):
        any(iter(outage.over, True))
    assert 30.0 < disk.now < 40.0


def test_a_store_outage_costs_no_task(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks that could not be written run again after the store has been proved to work."""
    probes: list[bool] = []

    def probe(store: Store) -> None:
        probes.append(True)
        if len(probes) < 3:
            raise StoreError("full")

    monkeypatch.setattr(Store, "probe", probe)
    plan = diamond()
    records = world.run(plan, Scripted({"left": [STORE], "right": [STORE]}, store=world.store))

    assert set(states(plan, records).values()) == {"done"}
    assert len(probes) in (3, 4)


def test_a_store_that_does_not_recover_stops_the_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing fails and nothing is skipped for it: the next run finds those tasks open and completes."""

    def probe(store: Store) -> None:
        raise StoreError("read-only file system")

    monkeypatch.setattr(Store, "probe", probe)
    plan = diamond()
    executor = Scripted({"left": [STORE]}, store=world.store)
    with pytest.raises(StoreLost, match="read-only file system; finished tasks are kept"):
        world.run(plan, executor, limits=Limits(store_patience_s=0.5))
    assert executor.stopped == 1
    with world.journal() as journal:
        assert journal.runs()[0]["status"] == "interrupted"
        assert named(plan, "left").id not in journal.finished(plan.tasks)

    assert set(states(plan, world.run(plan)).values()) == {"done"}


def test_a_journal_that_cannot_be_written_stops_the_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows stay pending while it lasts; what they would have said is found again by the artifacts."""
    flush, plan = Journal.flush, diamond()

    def full(journal: Journal) -> None:
        if any(row[8] == "done" for row in journal._tasks):
            raise StoreError("expected to write the journal, got: database or disk is full")
        flush(journal)

    def probe(store: Store) -> None:
        raise StoreError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "flush", full)
        patch.setattr(Store, "probe", probe)
        with pytest.raises(StoreLost):
            world.run(plan, Scripted({"right": [None]}, store=world.store), limits=Limits(store_patience_s=0.5))

    again = Scripted(store=world.store)
    records = world.run(plan, again)
    assert set(states(plan, records).values()) == {"done"}
    assert "root" not in again.ran


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, FailureKind.STORE),
        (errno.EROFS, FailureKind.STORE),
        (errno.ESTALE, FailureKind.STORE),
        (errno.EIO, FailureKind.STORE),
        (errno.ENOENT, FailureKind.ERROR),
        (errno.EACCES, FailureKind.ERROR),
    ],
)
def test_transient_disk_errors_are_retried(
    world: World, monkeypatch: pytest.MonkeyPatch, number: int, kind: FailureKind
) -> None:
    """Transient errors of disks and networks are retried; a missing file is an error of the task."""

    def trouble(context: WorkerContext, item: Task, most_evaluated: int | None) -> None:
        raise OSError(number, os.strerror(number), "/data/images")

    monkeypatch.setattr("wmarena.orchestrator.worker.attempt.perform", trouble)
    context = WorkerContext(Setup(store=world.store.root, device="cpu"))
    found = failed(attempt_task(context, task("one")))

    assert (found.kind, found.kind.retryable) == (kind, kind is FailureKind.STORE)
    assert os.strerror(number) in found.message


@pytest.mark.parametrize(
    ("number", "expected"), [(errno.ESTALE, StoreError), (errno.EACCES, StoreError), (errno.EIO, CorruptArtifact)]
)
def test_an_unreadable_store_is_not_damage(
    store: Store, item: Task, monkeypatch: pytest.MonkeyPatch, number: int, expected: type[OSError]
) -> None:
    """Artifacts of an unreachable share must not be set aside; a bad sector is damage."""
    put(store, item)
    manifest = Path.read_bytes

    def trouble(path: Path) -> bytes:
        if path.name == "model":
            raise OSError(number, os.strerror(number))
        return manifest(path)

    monkeypatch.setattr(Path, "read_bytes", trouble)
    with pytest.raises(expected, match=os.strerror(number)):
        store.read(item.id, "model")


def test_the_last_rows_are_not_lost_without_a_word(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal that fails only at the very end still makes the run end as one to be resumed."""

    def full(journal: Journal, run: str, status: str) -> None:
        raise StoreError("database or disk is full")

    plan = Plan([task("one")])
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "finish_run", full)
        with pytest.raises(StoreLost, match="disk is full"):
            world.run(plan)
    assert set(states(plan, world.run(plan)).values()) == {"done"}
