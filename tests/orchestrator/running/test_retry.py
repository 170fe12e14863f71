"""Retries by cause, and the quarantine of tasks that kill their workers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.orchestrator.toys import Scripted, World, failure, named, states, task
from wmarena.orchestrator.plan.growth import Growth
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.task import QUARANTINED, Failure, FailureKind, Task
from wmarena.orchestrator.running.retry import Limits, Retries, RetryDecision

DEAD = failure(FailureKind.WORKER_DIED)
NODE = failure(FailureKind.NODE_LOST)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A store with its journal."""
    return World(tmp_path)


def poisoned() -> Plan:
    """A task that kills its worker, one below it, and one beside it."""
    poison = task("poison")
    return Plan([poison, task("below", poison), task("beside")])


def test_lost_machines_do_not_count_as_attempts(world: World) -> None:
    """More machines may go than a task has retries; only a task that no machine survives is given up."""
    plan = Plan([task("unlucky"), task("deadly")])
    executor = Scripted({"unlucky": [NODE] * 5, "deadly": [NODE] * 99}, store=world.store)
    records = world.run(plan, executor, limits=Limits(max_retries=0))

    assert states(plan, records) == {"unlucky": "done", "deadly": "failed"}
    assert executor.ran.count("deadly") == 11
    assert records[named(plan, "unlucky").id].attempt == 1
    assert str(records[named(plan, "deadly").id].error).startswith("node_lost: ")


def test_a_task_that_kills_every_worker_is_quarantined(world: World) -> None:
    """It fails with advice, its descendants are skipped, all others are done."""
    plan = poisoned()
    executor = Scripted({"poison": [DEAD] * 99}, store=world.store)
    records = world.run(plan, executor, limits=Limits(max_retries=2))

    assert states(plan, records) == {"poison": "failed", "below": "skipped", "beside": "done"}
    error = str(records[named(plan, "poison").id].error)
    assert error.startswith(f"{QUARANTINED}it killed its worker 3 times of 3")
    assert "--retry-quarantined" in error
    assert executor.ran.count("poison") == 3


def test_a_later_run_leaves_the_quarantine_alone(world: World) -> None:
    """No worker dies a second time for it: it fails at once with the same words, run after run."""
    plan = poisoned()
    first = world.run(plan, Scripted({"poison": [DEAD] * 99}, store=world.store))
    for _ in range(2):
        idle = Scripted(store=world.store)
        records = world.run(poisoned(), idle)

        assert idle.started == 0
        assert states(plan, records) == {"poison": "failed", "below": "skipped", "beside": "done"}
        assert records[named(plan, "poison").id].error == first[named(plan, "poison").id].error
    with world.journal() as journal:
        assert journal.runs()[0]["status"] == "failed"


def test_the_quarantine_ends_when_asked(world: World) -> None:
    """With the cause gone the task is done, and is an ordinary task from then on."""
    world.run(poisoned(), Scripted({"poison": [DEAD] * 99}, store=world.store))
    plan = poisoned()
    records = world.run(plan, retry_quarantined=True)

    assert set(states(plan, records).values()) == {"done"}
    with world.journal() as journal:
        assert journal.quarantined() == {}


def test_quarantined_tasks_that_join_later_are_left_alone_too(world: World) -> None:
    """A search that asks for a poisoned task gets its failure, not a dead worker."""
    poison = task("poison")

    def grow(item: Task, result: Mapping[str, Any]) -> Growth | None:
        return ([poison], []) if item.label == "root" else None

    world.run(Plan([task("root")]), Scripted({"poison": [DEAD] * 99}, store=world.store), grow=grow)
    plan = Plan([task("root"), task("more")])
    again = Scripted(store=world.store)
    records = world.run(plan, again, grow=grow)

    assert again.ran == ["more"]
    assert str(records[poison.id].error).startswith(QUARANTINED)


@pytest.mark.parametrize(
    ("kinds", "quarantined"),
    [
        ([FailureKind.WORKER_DIED] * 3, True),
        ([FailureKind.TIMEOUT, FailureKind.WORKER_DIED, FailureKind.WORKER_DIED], False),
        ([FailureKind.TIMEOUT] * 3, False),
        ([FailureKind.SILENT] * 3, False),
    ],
)
def test_only_a_series_of_deaths_is_poison(kinds: list[FailureKind], quarantined: bool) -> None:
    """Timeouts and silence may have other reasons, and a next run may try again."""
    retries, item = Retries(Limits(max_retries=2)), task("one").id
    found = [retries.decide(item, failure(k), attempt=i + 1, alone=True) for i, k in enumerate(kinds)]

    assert found == [RetryDecision.AGAIN, RetryDecision.AGAIN, RetryDecision.OVER]
    assert retries.final_error(item, failure(kinds[-1]), 3).startswith(QUARANTINED) is quarantined


def test_one_death_is_no_proof() -> None:
    """Without retries a task fails with the plain cause: the next run tries it again."""
    retries, item = Retries(Limits(max_retries=0)), task("one").id

    assert retries.decide(item, DEAD, attempt=1, alone=True) is RetryDecision.OVER
    assert retries.final_error(item, Failure(FailureKind.WORKER_DIED, "gone"), 1) == "worker_died: gone"
