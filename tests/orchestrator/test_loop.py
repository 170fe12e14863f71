"""The loop: what is retried, what is not, what is repaired, and that it always ends."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.executors.base import Completion, NoWorkers
from orchestrator.loop import Event, Growth, Interrupted, Limits
from orchestrator.plan import Plan
from orchestrator.task import FailureKind, Kind, Task
from tests.orchestrator.toys import Scripted, World, diamond, failure, named, states, task


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
    """Notes every event."""

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
    """It costs its descendants and nothing else; all of it is in the journal, and the run says so."""
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


@pytest.mark.parametrize("kind", [k for k in FailureKind if k.retryable])
def test_accidents_are_retried_up_to_the_limit(world: World, kind: FailureKind) -> None:
    """Two retries are granted: two accidents are survived, a third one is a failure with its cause."""
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
    """Tasks of one sort that take no time: one that teaches the loop so, and many that wait for it."""
    first = task("first")
    return Plan([first, *(task(f"t{i}", first) for i in range(n_tasks))])


def test_tiny_tasks_travel_together(world: World) -> None:
    """Several in a call once their sort has proved tiny, each with its own record; slow ones go alone."""
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


def test_who_dies_in_company_is_not_to_blame(world: World) -> None:
    """Tasks of a call that died are repeated alone, without an attempt counted; the killer is found and given up."""
    plan = tiny(8)
    executor = Scripted(seconds=0.0001, store=world.store, fatal={"t3"})
    records = world.run(plan, executor, limits=Limits(max_retries=1))

    assert states(plan, records) == {**dict.fromkeys([t.label for t in plan], "done"), "t3": "failed"}
    assert all(records[t.id].attempt == 1 for t in plan if t.label != "t3")
    assert [c for c in executor.calls if "t3" in c and len(c) > 1][1:] == []
    assert executor.calls.count(["t3"]) == 2


def test_a_worker_that_hangs_is_replaced(world: World) -> None:
    """Past the timeout the worker is given up and the task is tried again, then given up as well."""
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
    """It is said, the run counts as interrupted, and what is finished is kept."""
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


# Damage


def test_a_damaged_parent_is_computed_again(world: World) -> None:
    """Its child waits for it; it carries the caveat ``recomputed``; the old bytes are set aside; nothing is blamed."""
    root, child = task("root"), task("child", task("root"))
    world.run(Plan([root]))
    executor = Scripted({"child": [failure(FailureKind.CORRUPT, root)]}, store=world.store)
    plan = Plan([root, child])
    records = world.run(plan, executor)

    assert executor.calls == [["child"], ["root"], ["child"]]
    assert records[root.id].caveats == ("recomputed",)
    assert (records[child.id].caveats, records[child.id].attempt) == ((), 1)
    assert len(list((world.store.root / "set_aside").iterdir())) == 1
    with world.journal() as journal:
        assert journal.finished([root.id])[root.id].caveats == ("recomputed",)


def test_many_children_finding_the_same_damage_repair_it_once(world: World) -> None:
    """Six workers report the damage at once; the parent runs once more, and nobody's report is held against it."""
    root = task("root")
    children = [task(f"c{i}", root) for i in range(6)]
    world.run(Plan([root]))
    script = {c.label: [failure(FailureKind.CORRUPT, root)] for c in children}
    executor = Scripted(script, store=world.store, n_workers=6)
    plan = Plan([root, *children])
    records = world.run(plan, executor)

    assert set(states(plan, records).values()) == {"done"}
    assert Counter(executor.ran)["root"] == 1
    assert {records[c.id].attempt for c in children} == {1}


def test_a_report_of_damage_that_was_repaired_meanwhile_is_old_news(world: World) -> None:
    """A child that began before the repair and reports after it must not throw the repaired artifact away."""
    root = task("root")
    children = [task("early", root), task("late", root)]
    world.run(Plan([root]))
    executor = Slow({c.label: [failure(FailureKind.CORRUPT, root)] for c in children}, store=world.store, n_workers=3)
    plan = Plan([root, *children])
    records = world.run(plan, executor)

    assert set(states(plan, records).values()) == {"done"}
    assert Counter(executor.ran) == {"root": 1, "early": 2, "late": 2}


class Slow(Scripted):
    """The first attempt at "late" ends only after "root" has."""

    def wait(self, timeout: float) -> list[Completion]:
        held = {w: t for w, t in self._under_way.items() if t[0].label == "late" and not self._repaired()}
        for worker in held:
            del self._under_way[worker]
        out = super().wait(timeout)
        self._under_way |= held
        return out

    def _repaired(self) -> bool:
        return ["root"] in self.calls and all(t[0].label != "root" for t in self._under_way.values())


def test_damage_that_comes_back_is_given_up(world: World) -> None:
    """A disk that loses every copy fails the child, with the cause, after three repairs."""
    root, child = task("root"), task("child", task("root"))
    executor = Scripted({"child": [failure(FailureKind.CORRUPT, root)] * 99}, store=world.store)
    plan = Plan([root, child])
    records = world.run(plan, executor)

    assert states(plan, records) == {"root": "done", "child": "failed"}
    assert Counter(executor.ran) == {"root": 4, "child": 4}
    assert str(records[child.id].error).startswith("corrupt: ")


def test_damage_of_something_that_is_no_parent_is_an_error(world: World) -> None:
    """Waiting for it would not help: the task fails instead of running for ever."""
    plan = Plan([task("stranger"), task("one")])
    script = {"one": [failure(FailureKind.CORRUPT, named(plan, "stranger"))] * 99}
    records = world.run(plan, Scripted(script, store=world.store))

    assert states(plan, records) == {"stranger": "done", "one": "failed"}


# Growth


def bisect(item: Task, result: Mapping[str, Any]) -> Growth | None:
    """Every verification below 4 asks for an attack of one more and its verification."""
    if item.kind is not Kind.VERIFY or (strength := int(item.config["strength"])) >= 4:
        return None
    attack = task(f"attack{strength + 1}", config={"strength": strength + 1})
    return [attack, task(f"verify{strength + 1}", attack, kind=Kind.VERIFY, config={"strength": strength + 1})], []


def searching() -> Plan:
    """The first step of a search."""
    attack = task("attack1", config={"strength": 1})
    return Plan([attack, task("verify1", attack, kind=Kind.VERIFY, config={"strength": 1})])


def test_a_graph_grows_while_it_runs(world: World) -> None:
    """A finished task asks for more, which asks for more; all of it is part of the run."""
    plan = searching()
    records = world.run(plan, grow=bisect)

    assert [t.label for t in plan] == [f"{what}{i}" for i in (1, 2, 3, 4) for what in ("attack", "verify")]
    assert set(states(plan, records).values()) == {"done"}
    with world.journal() as journal:
        assert [(t, c, s) for _, t, c, s in journal.run_tasks("run-1")] == [(i, False, "done") for i in plan.tasks]


def test_an_interrupted_search_goes_on_where_it_stood(world: World) -> None:
    """What was finished before counts as an answer: the next run asks for the next step, and runs nothing twice."""
    plan = searching()
    stopping = Scripted({"attack3": [interrupt]}, store=world.store)
    with pytest.raises(Interrupted):
        world.run(plan, stopping, grow=bisect)

    resumed, again = searching(), Scripted(store=world.store)
    records = world.run(resumed, again, grow=bisect)

    assert again.ran == ["attack3", "verify3", "attack4", "verify4"]
    assert len(records) == 8
    third = searching()
    assert len(world.run(third, Forbidden(), grow=bisect)) == 8


def interrupt() -> Mapping[str, Any]:
    """Ctrl-C while a task is under way."""
    raise KeyboardInterrupt


class Forbidden(Scripted):
    """Must not be started."""

    def start(self) -> None:
        raise AssertionError("there is nothing to do")


def test_what_grows_below_a_failure_is_skipped(world: World) -> None:
    """A task that joins under a failed parent is skipped, and the run ends."""
    root, bad = task("root"), task("bad")
    child = task("child", bad)
    plan = Plan([bad, root])

    def grow(item: Task, result: Mapping[str, Any]) -> Growth | None:
        return ([child], []) if item.label == "root" else None

    executor = Scripted({"bad": [failure(FailureKind.ERROR)]}, store=world.store)
    records = world.run(plan, executor, grow=grow)

    assert records[child.id].error == "skipped: bad failed"


# Stopping


def test_ctrl_c_keeps_what_is_finished(world: World) -> None:
    """The run ends as Interrupted, the executor is stopped, and the same command runs only the rest."""
    plan = diamond()
    executor = Scripted({"right": [interrupt]}, store=world.store)
    with pytest.raises(Interrupted, match="the same command resumes"):
        world.run(plan, executor)
    with world.journal() as journal:
        assert journal.runs()[0]["status"] == "interrupted"

    again = Scripted(store=world.store)
    records = world.run(plan, again)

    assert executor.stopped == 1
    assert not set(again.ran) & {"root", "left"}
    assert set(states(plan, records).values()) == {"done"}


def test_what_still_ends_while_stopping_is_kept(world: World) -> None:
    """A task that reaches its end within the patience of a stopping run is a result; a cancelled one is not."""
    plan = Plan([task("ends"), task("cancelled"), task("interrupts")])

    class Stopping(Scripted):
        def cancel(self, patience_s: float) -> list[Completion]:
            return [
                Completion(named(plan, "ends").id, "w0", {"label": "ends"}, 1.0),
                Completion(named(plan, "cancelled").id, "w1", failure(FailureKind.CANCELLED), 1.0),
            ]

    executor = Stopping({"ends": [None], "cancelled": [None], "interrupts": [interrupt]}, n_workers=3)
    with pytest.raises(Interrupted):
        world.run(plan, executor)

    with world.journal() as journal:
        assert journal.finished(plan.tasks).keys() == {named(plan, "ends").id}
        assert {s for _, _, _, s in journal.run_tasks("run-1")} == {"done", None}


def test_a_second_ctrl_c_does_not_wait(world: World) -> None:
    """It cuts the patience short, and the run still ends in order."""

    class Impatient(Scripted):
        def cancel(self, patience_s: float) -> list[Completion]:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        world.run(single(), Impatient({"one": [interrupt]}, store=world.store))


def test_ctrl_c_while_the_executor_starts(world: World) -> None:
    """Starting workers takes seconds: stopping then is a stop like any other, and half a start is undone."""

    class Starting(Scripted):
        def start(self) -> None:
            raise KeyboardInterrupt

    executor = Starting()
    with pytest.raises(Interrupted):
        world.run(single(), executor)

    assert executor.stopped == 1
