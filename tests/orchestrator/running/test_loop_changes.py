"""The loop while the plan changes: damaged artifacts, added tasks, stopping."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.orchestrator.toys import Scripted, World, diamond, failure, named, states, task
from wmarena.orchestrator.executors.base import Completion
from wmarena.orchestrator.plan.growth import Growth
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.task import FailureKind, Kind, Task
from wmarena.orchestrator.running.loop import Interrupted


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A store with its journal."""
    return World(tmp_path)


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
    """Six workers report the damage at once; the parent runs once more, and no report counts as an attempt."""
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


def test_an_outdated_report_of_damage_is_ignored(world: World) -> None:
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
    """A finished task adds a task, which adds another; all are part of the run."""
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
        world.run(Plan([task("one")]), Impatient({"one": [interrupt]}, store=world.store))


def test_ctrl_c_while_the_executor_starts(world: World) -> None:
    """A stop while workers start interrupts the run, and started workers are stopped."""

    class Starting(Scripted):
        def start(self) -> None:
            raise KeyboardInterrupt

    executor = Starting()
    with pytest.raises(Interrupted):
        world.run(Plan([task("one")]), executor)

    assert executor.stopped == 1
