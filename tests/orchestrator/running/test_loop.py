"""The loop: what is retried, what is not, and that it always ends."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.orchestrator.toys import Scripted, World, diamond, failure, named, states, task
from wmarena.orchestrator.executors.base import Completion, NoWorkers
from wmarena.orchestrator.plan.events import Event
from wmarena.orchestrator.plan.growth import Growth
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.task import FailureKind, Task
from wmarena.orchestrator.running.retry import Limits


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A store with its journal."""
    return World(tmp_path)


def single() -> Plan:
    """One task."""
    return Plan([task("one")])


def attempts(world: World) -> Counter[str]:
    """How often each label was attempted, as the journal says."""
    with world.journal() as journal:
        rows = journal._db.execute("SELECT label FROM attempt JOIN task ON task.id = attempt.task").fetchall()
    return Counter(label for (label,) in rows)


class Diary:
    """Records every event."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def __call__(self, event: Event) -> None:
        self.events.append(f"{event.kind} {event.task.label}")


# Ends


def test_a_plan_runs_to_its_end(world: World) -> None:
    """Every task once, parents first, every event told in order, every row in the journal."""
    plan, diary = diamond(), Diary()
    executor = Scripted(store=world.store, n_workers=2)
    records = world.run(plan, executor, listeners=[diary])

    assert set(states(plan, records).values()) == {"done"}
    assert sorted(executor.ran) == sorted(t.label for t in plan)
    assert Counter(e.split()[0] for e in diary.events) == {"started": 5, "done": 5}
    assert diary.events.index("done root") < diary.events.index("started left")
    assert (executor.started, executor.stopped) == (1, 1)
    assert attempts(world) == dict.fromkeys([t.label for t in plan], 1)


def test_a_failure_is_a_result(world: World) -> None:
    """It skips its descendants and nothing else; the journal has all records, and the run has failed."""
    plan, diary = diamond(), Diary()
    executor = Scripted({"left": [failure(FailureKind.ERROR)]}, store=world.store)
    records = world.run(plan, executor, listeners=[diary])

    assert states(plan, records) == {
        "root": "done",
        "left": "failed",
        "right": "done",
        "bottom": "skipped",
        "leaf": "done",
    }
    assert records[named(plan, "left").id].error == "error: made to fail: error"
    assert "skipped bottom" in diary.events
    with world.journal() as journal:
        (row,) = journal.task_rows([named(plan, "bottom").id])
        assert (row["state"], row["error"], row["attempt"]) == ("skipped", "skipped: left failed", 0)
        assert journal.runs()[0]["status"] == "failed"
        assert {s for _, _, _, s in journal.run_tasks("run-1")} == {"done", "failed", "skipped"}


def test_failed_and_skipped_tasks_are_attempted_again_by_the_next_run(world: World) -> None:
    """And what is done is not."""
    plan = diamond()
    world.run(plan, Scripted({"left": [failure(FailureKind.ERROR)]}, store=world.store))
    again = Scripted(store=world.store)
    records = world.run(plan, again)

    assert again.ran == ["left", "bottom"]
    assert set(states(plan, records).values()) == {"done"}


# Retries


@pytest.mark.parametrize(
    "kind", [k for k in FailureKind if k.retryable and k not in (FailureKind.NODE_LOST, FailureKind.WORKER_DIED)]
)
def test_transient_failures_are_retried_up_to_the_limit(world: World, kind: FailureKind) -> None:
    """With two retries, two failures are survived; a third one is final, with its cause."""
    plan = Plan([task("lucky"), task("unlucky")])
    script = {"lucky": [failure(kind)] * 2, "unlucky": [failure(kind)] * 9}
    records = world.run(plan, Scripted(script, store=world.store), limits=Limits(max_retries=2))

    assert states(plan, records) == {"lucky": "done", "unlucky": "failed"}
    assert attempts(world) == {"lucky": 3, "unlucky": 3}
    assert records[named(plan, "lucky").id].attempt == 3
    assert records[named(plan, "unlucky").id].error == f"{kind.value}: made to fail: {kind.value}"


@pytest.mark.parametrize("kind", [FailureKind.ERROR, FailureKind.DIVERGED])
def test_deterministic_failures_are_not_retried(world: World, kind: FailureKind) -> None:
    """The second attempt would end the same way."""
    plan = single()
    records = world.run(plan, Scripted({"one": [failure(kind)]}, store=world.store), limits=Limits(max_retries=9))

    assert (states(plan, records), attempts(world)) == ({"one": "failed"}, {"one": 1})


def test_a_cancelled_attempt_is_no_attempt(world: World) -> None:
    """It is repeated without being counted, noted or limited."""
    plan = single()
    script = {"one": [failure(FailureKind.CANCELLED)] * 5}
    records = world.run(plan, Scripted(script, store=world.store), limits=Limits(max_retries=0))

    assert (states(plan, records), attempts(world)) == ({"one": "done"}, {"one": 1})


def tiny(n_tasks: int) -> Plan:
    """Tasks of one class that take no time: one from which the loop learns this, and many that wait for it."""
    first = task("first")
    return Plan([first, *(task(f"t{i}", first) for i in range(n_tasks))])


def test_tiny_tasks_share_a_call(world: World) -> None:
    """Several in a call once their class is known to be tiny, each with its own record; slow ones are sent alone."""
    quick, slow = Scripted(store=world.store, seconds=0.0001), Scripted(seconds=1.0)
    records = world.run(tiny(40), quick)
    World(world.store.root / "elsewhere").run(tiny(5), slow)

    assert max(map(len, quick.calls)) > 5
    assert len(records) == sum(map(len, quick.calls)) == 41
    assert {len(c) for c in slow.calls} == {1}


def test_a_fair_share_is_left_to_other_workers(world: World) -> None:
    """No call takes more than half of a worker's share of what is ready."""
    executor = Scripted(store=world.store, seconds=0.0001, n_workers=4)
    world.run(tiny(40), executor)

    assert max(map(len, executor.calls)) <= 1 + 40 // 8


def test_tasks_that_die_with_others_are_not_counted(world: World) -> None:
    """Tasks of a call that died are repeated alone, without an attempt counted; the killer is found and given up."""
    plan = tiny(8)
    executor = Scripted(seconds=0.0001, store=world.store, fatal={"t3"})
    records = world.run(plan, executor, limits=Limits(max_retries=1))

    assert states(plan, records) == {**dict.fromkeys([t.label for t in plan], "done"), "t3": "failed"}
    assert all(records[t.id].attempt == 1 for t in plan if t.label != "t3")
    assert [c for c in executor.calls if "t3" in c and len(c) > 1][1:] == []
    assert executor.calls.count(["t3"]) == 2


def test_a_worker_that_hangs_is_replaced(world: World) -> None:
    """After the timeout the worker is replaced and the task is tried again, then it fails."""
    plan = Plan([task("hangs once"), task("hangs"), task("fine")])
    executor = Scripted({"hangs once": [None], "hangs": [None] * 3}, store=world.store)
    records = world.run(plan, executor, limits=Limits(task_timeout_s=0.0, max_retries=2))

    assert states(plan, records) == {"hangs once": "done", "hangs": "failed", "fine": "done"}
    assert len(executor.replaced) == 4
    assert records[named(plan, "hangs").id].error == "timeout: no result after 0 s"


def test_a_late_answer_of_a_replaced_worker_is_not_taken(world: World) -> None:
    """The task has been given to another worker, and only that one's answer counts."""
    plan = single()
    executor = Late({"one": [None]}, store=world.store)
    records = world.run(plan, executor, limits=Limits(task_timeout_s=0.0))

    assert (states(plan, records), records[named(plan, "one").id].worker) == ({"one": "done"}, "w0'")


class Late(Scripted):
    """A replaced worker reports its death afterwards."""

    def wait(self, timeout: float) -> list[Completion]:
        item = next((t for tasks in self._under_way.values() for t in tasks), None)
        stale = [Completion(item.id, w, failure(FailureKind.ERROR), 0.0) for w in self.replaced] if item else []
        return stale + super().wait(timeout)


def test_no_worker_left_ends_the_run(world: World) -> None:
    """NoWorkers is raised, the run is interrupted, and finished tasks are kept."""
    plan = diamond()

    class Dying(Scripted):
        def submit(self, worker: str, tasks: Sequence[Task]) -> None:
            super().submit(worker, tasks)
            self._names.clear() if tasks[0].label != "root" else None

    with pytest.raises(NoWorkers, match="no worker is left"):
        world.run(plan, Dying(store=world.store))
    with world.journal() as journal:
        assert journal.runs()[0]["status"] == "interrupted"
        assert journal.finished(plan.tasks).keys() == {named(plan, "root").id}


def test_fail_fast_skips_what_has_not_begun(world: World) -> None:
    """What runs already is finished; everything else names the failure; nothing grows any more."""
    plan = Plan(
        [
            task("bad", cost=9.0),
            task("running", cost=8.0),
            *(task(f"t{i}") for i in range(4)),
            task("child", task("t0")),
        ]
    )
    script = {"bad": [failure(FailureKind.ERROR)]}
    grown: list[str] = []

    def grow(item: Task, result: Mapping[str, Any]) -> Growth | None:
        grown.append(item.label)
        return ([task("more")], []) if item.label == "running" else None

    executor = Scripted(script, store=world.store, n_workers=2)
    records = world.run(plan, executor, limits=Limits(fail_fast=True), grow=grow)

    found = states(plan, records)
    assert (found.pop("bad"), found.pop("running")) == ("failed", "done")
    assert set(found.values()) == {"skipped"}
    assert grown == []
    assert {records[t.id].error for t in plan if found.get(t.label)} == {"skipped: bad failed (--fail-fast)"}
