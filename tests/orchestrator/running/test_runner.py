"""One execution: finished tasks are found again, damaged artifacts are not used, the journal is right."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.orchestrator.toys import Scripted, World, diamond, echo, executions, listening, named, states, task
from wmarena.orchestrator.executors.inline import InlineExecutor
from wmarena.orchestrator.files.errors import StoreBusy
from wmarena.orchestrator.plan.events import Event
from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.task import State, Task
from wmarena.orchestrator.running.loop import Interrupted
from wmarena.orchestrator.running.resume import with_changed_parents
from wmarena.orchestrator.running.runner import already_done
from wmarena.orchestrator.store.manifest import MANIFEST
from wmarena.orchestrator.worker.context import Setup, WorkerContext
from wmarena.orchestrator.worker.perform import perform


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A store with its journal."""
    return World(tmp_path)


def inline(world: World) -> InlineExecutor:
    """An executor that reads and writes real artifacts."""
    return InlineExecutor(Setup(store=world.store.root, device="cpu"), perform=echo)


# Repeating


def test_repeating_a_finished_plan_executes_nothing(world: World) -> None:
    """No executor is started, every record is cached, equal to the first one's, and the run is done."""
    plan = diamond()
    first = world.run(plan)
    idle = Scripted()
    second = world.run(diamond(), idle)

    assert idle.started == 0
    assert {i: r.result for i, r in second.items()} == {i: r.result for i, r in first.items()}
    assert all(r.cached for r in second.values())
    with world.journal() as journal:
        assert [(r["id"], r["status"]) for r in journal.runs()] == [("run-2", "done"), ("run-1", "done")]
        assert {(c, s) for _, _, c, s in journal.run_tasks("run-2")} == {(True, "done")}


def test_only_what_is_new_runs(world: World) -> None:
    """A plan that shares tasks with an earlier one executes the others."""
    world.run(diamond())
    plan = diamond()
    plan.add([task("new", named(plan, "left"))])
    executor = Scripted(store=world.store)
    records = world.run(plan, executor)

    assert executor.ran == ["new"]
    assert sum(r.cached for r in records.values()) == 5


def test_artifacts_outlive_the_journal(world: World) -> None:
    """With the journal lost, finished tasks are adopted from their artifacts, and the new journal knows them."""
    plan = diamond()
    world.run(plan)
    for file in world.store.root.glob("journal.sqlite*"):
        file.unlink()
    idle = Scripted()
    records = world.run(plan, idle)

    assert idle.started == 0
    assert all(r.cached and r.result == {"label": plan.tasks[i].label} for i, r in records.items())
    with world.journal() as journal:
        assert journal.finished(plan.tasks).keys() == plan.tasks.keys()


def test_looking_up_finished_tasks_changes_nothing(world: World) -> None:
    """Asking what is finished neither sets damaged artifacts aside nor writes rows."""
    plan = Plan([task("good"), task("bad")])
    world.run(plan)
    for file in world.store.root.glob("journal.sqlite*"):
        file.unlink()
    (world.store.folder(named(plan, "bad").id) / MANIFEST).write_text("{}")
    with world.journal() as journal:
        found = already_done(plan, world.store, journal)

        assert found.keys() == {named(plan, "good").id}
        assert journal.finished(plan.tasks) == {}
    assert not (world.store.root / "set_aside").exists()


def test_a_damaged_artifact_is_not_adopted(world: World) -> None:
    """It is set aside and computed again, and the record says so."""
    plan = Plan([task("one")])
    world.run(plan)
    for file in world.store.root.glob("journal.sqlite*"):
        file.unlink()
    (one,) = plan
    path = world.store.folder(one.id) / MANIFEST
    path.write_text(path.read_text().replace('"label": "one"', '"label": "two"', 1))
    executor = Scripted(store=world.store)
    records = world.run(plan, executor)

    assert executor.ran == ["one"]
    assert records[one.id].caveats == ("recomputed",)
    assert records[one.id].result == {"label": "one"}
    assert len(list((world.store.root / "set_aside").iterdir())) == 1


def test_artifacts_that_were_collected_are_computed_again_only_if_consumed(world: World) -> None:
    """The journal keeps their results; a new child needs its parent's files only."""
    plan = diamond()
    world.run(plan)
    world.store.gc([], apply=True)
    unchanged = Scripted()
    world.run(diamond(), unchanged)
    plan.add([task("new", named(plan, "left"))])
    executor = Scripted(store=world.store)
    world.run(plan, executor)

    assert unchanged.started == 0
    assert executor.ran == ["root", "left", "new"]


# Damage


def test_a_damaged_parent_is_detected_by_its_child(world: World) -> None:
    """One flipped byte in a stored file: the parent is computed again, and the child's result is as undisturbed."""
    root, child = task("root"), task("child", task("root"))
    world.run(Plan([root]), inline(world))
    world.damage(root)
    records = world.run(Plan([root, child]), inline(world))

    assert executions(world.store) == ["child", "root", "root"]
    assert records[root.id].caveats == ("recomputed",)
    assert records[child.id].result == {"content": "child(root())"}
    assert world.store.verify()["damaged"] == []


def test_an_existing_artifact_is_not_computed_again(world: World) -> None:
    """A worker that died after its commit and before its answer: the next attempt finds the result."""
    one = task("one")
    world.store.commit(one.id, one.identity(), {"metric": 0.5}, {})

    assert perform(WorkerContext(Setup(store=world.store.root, device="cpu")), one) == {"metric": 0.5}


def made(item: Task, sha: str, *, cached: bool, **consumed: str) -> Record:
    """A record that says which bytes were made and consumed."""
    return Record(item.id, State.DONE, result={"made": sha, "consumed": consumed}, cached=cached)


def test_results_on_other_bytes_than_the_parent_has_now_are_marked() -> None:
    """Kept or fresh, whoever consumed what the parent was before it was computed again."""
    root = task("root")
    kept, fresh, newer = task("kept", root), task("fresh", root), task("newer", root)
    plan = Plan([root, kept, fresh, newer])
    records = {
        root.id: made(root, "new", cached=False),
        kept.id: made(kept, "k", cached=True, **{root.id: "old"}),
        fresh.id: made(fresh, "f", cached=False, **{root.id: "old"}),
        newer.id: made(newer, "n", cached=False, **{root.id: "new"}),
    }
    marked = with_changed_parents(plan, records)

    assert {plan.tasks[i].label for i, r in marked.items() if "parent_changed" in r.caveats} == {"kept", "fresh"}
    assert all(r.caveats == () for r in records.values())


# Stopping


def test_one_run_at_a_time(world: World) -> None:
    """A second run on the store is refused and leaves no trace in the journal."""
    with world.store.exclusive(), pytest.raises(StoreBusy):
        world.run(diamond())
    with world.journal() as journal:
        assert journal.runs() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_in_order(world: World, number: signal.Signals) -> None:
    """SIGTERM like Ctrl-C: Interrupted, finished tasks kept, the handler of before is back."""

    def send(event: Event) -> None:
        if event.kind == "done" and event.task.label == "root":
            signal.raise_signal(number)

    before = signal.getsignal(signal.SIGTERM)
    plan = diamond()
    with listening(), pytest.raises(Interrupted):
        world.run(plan, listeners=[send])

    assert signal.getsignal(signal.SIGTERM) is before
    with world.journal() as journal:
        assert named(plan, "root").id in journal.finished(plan.tasks)
        assert journal.runs()[0]["status"] == "interrupted"


def test_sigterm_is_ours_even_if_the_executor_takes_it(world: World) -> None:
    """Ray installs a handler of its own when it starts, which would end the run without checkpoints."""

    class Taking(Scripted):
        def start(self) -> None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def send(event: Event) -> None:
        signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted):
        world.run(diamond(), Taking(), listeners=[send])

    assert signal.getsignal(signal.SIGTERM) is before


def test_a_run_in_another_thread_needs_no_signals(world: World) -> None:
    """Only the main thread may set handlers; a notebook's or a server's thread runs all the same."""
    found: dict[str, str] = {}
    plan = diamond()
    thread = threading.Thread(target=lambda: found.update(states(plan, world.run(plan))))
    thread.start()
    thread.join()

    assert set(found.values()) == {"done"}


DRIVER = """
import os, signal, sys
from pathlib import Path
from wmarena.orchestrator.executors.inline import InlineExecutor
from wmarena.orchestrator.worker.context import Setup, WorkerContext
from tests.orchestrator.toys import World, diamond, echo

def deadly(context, item):
    result = echo(context, item)
    if item.label == "right":
        os.kill(os.getpid(), signal.SIGKILL)
    return result

world = World(Path(sys.argv[1]))
world.run(diamond(), InlineExecutor(Setup(store=world.store.root, device="cpu"), perform=deadly))
"""


def test_a_killed_driver_loses_nothing_that_was_finished(world: World) -> None:
    """SIGKILL after a commit and before its row is written: the next run executes the rest, and nothing twice."""
    environment = dict(os.environ)
    command = [sys.executable, "-c", DRIVER, str(world.store.root.parent)]
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    begun = executions(world.store)
    plan = diamond()
    records = world.run(plan, inline(world))
    undisturbed = World(world.store.root.parent / "undisturbed")
    reference = undisturbed.run(diamond(), inline(undisturbed))

    assert 2 <= len(begun) < 5
    assert executions(world.store) == executions(undisturbed.store)
    assert {i: r.result for i, r in records.items()} == {i: r.result for i, r in reference.items()}
    assert {t.label for t in plan if records[t.id].cached} == set(begun)
    with world.journal() as journal:
        assert [r["status"] for r in journal.runs()] == ["done", "interrupted"]


def test_stores_can_be_moved(world: World, tmp_path: Path) -> None:
    """Nothing in a store names the place where it was made."""
    plan = diamond()
    world.run(plan, inline(world))
    shutil.move(world.store.root, tmp_path / "moved" / "store")
    moved = World(tmp_path / "moved")
    idle = Scripted()
    records = moved.run(plan, idle)

    assert idle.started == 0
    assert all(r.cached for r in records.values())
