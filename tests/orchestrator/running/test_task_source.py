"""Task sources: asked for tasks when a worker would idle, notified of settled tasks."""

from pathlib import Path

import pytest

from tests.orchestrator.toys import Scripted, World, failure, task
from wmarena.orchestrator.executors.base import NoWorkers
from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.growth import Growth
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.task import FailureKind, Kind, Task


class Chains:
    """``n`` chains of two tasks, each begun when asked for; remembers what it heard and how many were open."""

    def __init__(self, n: int) -> None:
        self.left = n
        self.heard: list[tuple[str, str]] = []
        self.open = self.most_open = 0

    def settled(self, item: Task, record: Record) -> None:
        self.heard.append((item.label, record.state.value))
        self.open -= item.kind is Kind.VERIFY

    def more(self) -> Growth | None:
        if not self.left:
            return None
        self.left -= 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        head = task(f"head{self.left}")
        return [head, task(f"tail{self.left}", head, kind=Kind.VERIFY)], []


@pytest.fixture
def world(tmp_path: Path) -> World:
    """An empty store."""
    return World(tmp_path)


@pytest.mark.parametrize("n_workers", [1, 3])
def test_as_many_are_under_way_as_there_are_workers(world: World, n_workers: int) -> None:
    """More is asked for only when a worker would idle, and then until none does."""
    source, executor = Chains(7), Scripted(store=world.store, n_workers=n_workers)
    records = world.run(Plan(), executor, source=source, policy="feedback")

    assert len(records) == 14
    assert source.most_open == n_workers


def test_the_source_is_notified_of_failures_and_skipped_tasks(world: World) -> None:
    """A source that waits for a result is told that there will be none."""
    source = Chains(1)
    world.run(Plan(), Scripted({"head0": [failure(FailureKind.ERROR)]}, store=world.store), source=source)

    assert source.heard == [("head0", "failed"), ("tail0", "skipped")]


def test_what_the_store_has_starts_no_worker(world: World) -> None:
    """The same source again: it is told of every task, and the executor is not started."""
    world.run(Plan(), Scripted(store=world.store), source=Chains(3))
    again, executor = Chains(3), Scripted(store=world.store)
    records = world.run(Plan(), executor, source=again)

    assert (len(records), executor.started, len(again.heard)) == (6, 0, 6)
    assert all(record.cached for record in records.values())


def test_a_source_with_work_left_needs_workers(world: World) -> None:
    """Losing all workers does not look like the end."""

    class Dying(Scripted):
        def wait(self, timeout: float) -> list:  # type: ignore[type-arg]
            found = super().wait(timeout)
            if len(self.calls) == 2:
                self._names.clear()
            return found

    with pytest.raises(NoWorkers):
        world.run(Plan(), Dying(store=world.store), source=Chains(3))
