"""The ledger: ready tasks, their order, and the effect of failures and damaged artifacts."""

from collections.abc import Mapping

import pytest

from tests.orchestrator.toys import closed, diamond, done, ledger, named, states, task
from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.task import Kind, State, Task, TaskId
from wmarena.orchestrator.running.ledger import Ledger


def run_all(book: Ledger, fails: str = "") -> list[str]:
    """Labels in the order in which a single worker runs them."""
    order = []
    while (item := book.pop()) is not None:
        book.start(item.id, "w")
        order.append(item.label)
        book.close(closed(item, State.FAILED if item.label == fails else State.DONE))
    return order


def test_a_failure_skips_its_descendants_only() -> None:
    """The others continue; a skipped task names the one that failed, not the one in between."""
    plan = diamond()
    book = ledger(plan)
    run_all(book, fails="left")

    assert states(plan, book.records) == {
        "root": "done",
        "left": "failed",
        "right": "done",
        "bottom": "skipped",
        "leaf": "done",
    }
    assert book.records[named(plan, "bottom").id].error == "skipped: left failed"


def test_what_is_skipped_far_below_names_the_first_cause() -> None:
    """Through any number of generations, parents before children, also where they are many."""
    chain = [task("t0")]
    for index in range(1, 2000):
        chain.append(task(f"t{index}", chain[-1]))
    book = ledger(Plan(chain))
    book.start(chain[0].id, "w")
    first = book.pop()
    assert first is not None
    skipped = book.close(closed(first, State.FAILED))

    assert [r.task_id for r in skipped] == [t.id for t in chain[1:]]
    assert {r.error for r in skipped} == {"skipped: t0 failed"}


def test_after_orders_but_does_not_skip() -> None:
    """A longer strength runs after the shorter one of its trajectory, also if that failed."""
    victim = task("victim")
    short = task("short", victim)
    long = task("long", victim, after=[short], cost=100.0)
    plan = Plan([victim, short, long])
    book = ledger(plan)

    assert run_all(book, fails="short") == ["victim", "short", "long"]
    assert states(plan, book.records) == {"victim": "done", "short": "failed", "long": "done"}


def test_verification_goes_first_then_the_longest_path() -> None:
    """Evidence as early as possible; among the rest, the longest remaining path."""
    root = task("root")
    short, long = task("short", root, cost=1.0), task("long", root, cost=2.0)
    tail = task("tail", short, cost=5.0)
    check = task("check", root, kind=Kind.VERIFY, cost=0.1)

    assert run_all(ledger(Plan([root, short, long, tail, check]))) == ["root", "check", "short", "tail", "long"]


def test_the_longest_path_counts_not_the_sum_of_branches() -> None:
    """Six short children after one task delay less than one child that takes longer than each of them."""
    wide, deep = task("wide", cost=1.0), task("deep", cost=1.0)
    leaves = [task(f"leaf {i}", wide, cost=2.0) for i in range(6)]

    order = run_all(ledger(Plan([wide, *leaves, deep, task("tail", deep, cost=5.0)])))

    assert order[:3] == ["deep", "tail", "wide"]


def test_feedback_finishes_rows_early() -> None:
    """Depth first: the first row is complete before the second begins, whatever it costs."""
    tasks = []
    for name in "ab":
        embed = task(f"{name}1", cost=1.0 if name == "a" else 50.0)
        attack = task(f"{name}2", embed)
        tasks += [embed, attack, task(f"{name}3", attack, kind=Kind.VERIFY)]

    assert run_all(ledger(Plan(tasks), policy="feedback")) == ["a1", "a2", "a3", "b1", "b2", "b3"]


def test_a_worker_gets_the_children_of_its_resident_models() -> None:
    """Among tasks of one rank, one whose parent's model is on the device already; else simply the best."""
    one, other = task("one"), task("other")
    of_one, of_other = task("of one", one, cost=1.0), task("of other", other, cost=2.0)
    book = ledger(Plan([one, other, of_one, of_other]), [one, other])

    near = book.pop([one.id])
    rest = book.pop([one.id])

    assert near is not None
    assert rest is not None
    assert (near.label, rest.label) == ("of one", "of other")


def test_locality_never_outranks_verification() -> None:
    """A worker with an attack's parent in memory still verifies first."""
    held, other = task("held"), task("other")
    attack, check = task("attack", held, cost=9.0), task("check", other, kind=Kind.VERIFY)
    book = ledger(Plan([held, other, attack, check]), [held, other])
    first = book.pop([held.id])

    assert first is not None
    assert first.label == "check"


def test_a_task_that_does_not_fit_stays_where_it_is() -> None:
    """If the best task is refused, none is taken, not even the second best."""
    plan = Plan([task("slow", cost=9.0), task("quick")])
    book = ledger(plan)

    assert book.pop(fits=lambda t: t.label == "quick") is None
    assert book.ready() == 2
    assert run_all(book) == ["slow", "quick"]


def test_attempts_without_blame_do_not_count() -> None:
    """A task that died with others of its call, or was cancelled, has its attempts back."""
    book = ledger(Plan([task("one")]))
    numbers = []
    for blameless in (False, True, False):
        item = book.pop()
        assert item is not None
        numbers.append(book.start(item.id, "w"))
        book.requeue(item.id, blameless=blameless)

    assert numbers == [1, 2, 2]


def test_ready_siblings_wait_for_a_parent_that_runs_again() -> None:
    """Three children are ready; the first finds the parent damaged: the other two must not find out again."""
    root = task("root")
    children = [task(f"c{i}", root, cost=3.0 - i) for i in range(3)]
    book = ledger(Plan([root, *children]), [root])
    first = book.pop()
    assert first is not None
    book.start(first.id, "w")

    assert book.reopen(root.id, first.id) == []
    assert book.ready() == 1
    assert run_all(book) == ["root", "c0", "c1", "c2"]


def test_a_predecessor_that_runs_again_delays_a_task_that_also_lost_a_parent() -> None:
    """Both must be there again: counting the parent alone would release the task one step too soon."""
    victim = task("victim")
    short = task("short", victim)
    long = task("long", victim, after=[short])
    check = task("check", short, kind=Kind.VERIFY)
    book = ledger(Plan([victim, short, long, check]), [victim, short])
    for _ in range(2):
        item = book.pop()
        assert item is not None
        book.start(item.id, "w")
    book.reopen(short.id, check.id)
    book.reopen(victim.id, long.id)

    assert run_all(book) == ["victim", "short", "check", "long"]


def test_a_damaged_task_whose_own_parent_has_failed_is_skipped_with_its_children() -> None:
    """It was done in an earlier run; this time its parent fails, and then its artifact turns out damaged."""
    root = task("root")
    kept, other = task("kept", root), task("other", root)
    child = task("child", kept)
    plan = Plan([root, kept, other, child])
    book = ledger(plan, [root, kept], present=lambda i: i != root.id)
    first = book.pop()
    assert first is not None
    assert first.label in ("root", "child")
    second = book.pop()
    assert second is not None
    by_label = {t.label: t for t in (first, second)}
    for item in (first, second):
        book.start(item.id, "w")
    book.close(closed(by_label["root"], State.FAILED))

    skipped = book.reopen(kept.id, by_label["child"].id)

    assert {plan.tasks[r.task_id].label for r in skipped} == {"kept", "child"}
    assert book.settled


def test_grandparents_that_cannot_be_read_run_again_as_well() -> None:
    """Repairing reaches up as far as artifacts are missing."""
    root = task("root")
    middle = task("middle", root)
    child = task("child", middle)
    book = ledger(Plan([root, middle, child]), [root, middle], present=lambda i: i == middle.id)
    first = book.pop()
    assert first is not None
    book.start(first.id, "w")
    book.reopen(middle.id, first.id)

    assert run_all(book) == ["root", "middle", "child"]


def test_seconds_are_estimated_for_open_tasks_only() -> None:
    """A finished plan needs no estimates."""
    asked: list[str] = []

    def seconds(item: Task) -> float:
        asked.append(item.label)
        return 1.0

    plan = diamond()
    ledger(plan, list(plan), seconds=seconds)
    ledger(plan, [t for t in plan if t.label != "leaf"], seconds=seconds)

    assert asked == ["leaf"]


@pytest.mark.parametrize("state", [State.DONE, State.FAILED])
def test_a_task_added_late_sees_the_states_of_its_parents(state: State) -> None:
    """A task that joins after its parent is settled is ready, or skipped at once."""
    root = task("root")
    plan = Plan([root])
    book = ledger(plan)
    item = book.pop()
    assert item is not None
    book.start(item.id, "w")
    book.close(closed(root, state))
    late, later = task("late", root), task("later", task("late", root))
    skipped = book.join(plan.add([late, later]), {})

    assert [plan.tasks[r.task_id].label for r in skipped] == ([] if state is State.DONE else ["late", "later"])
    assert book.settled == (state is State.FAILED)


def test_what_joins_may_be_finished() -> None:
    """A task that another run has finished joins as done, and its children are ready."""
    root = task("root")
    plan = Plan([root])
    book = ledger(plan)
    known, child = task("known"), task("child", task("known"))
    finished: Mapping[TaskId, Record] = {known.id: done(known)}
    book.join(plan.add([known, child]), finished)

    assert book.records[known.id].cached
    assert set(run_all(book)) == {"root", "child"}


def test_a_ready_task_that_is_given_up_is_neither_counted_nor_started() -> None:
    """Giving up a run settles tasks that never began."""
    given_up, other = task("given up", cost=9.0), task("other")
    book = ledger(Plan([given_up, other]))
    book.close(closed(given_up, State.SKIPPED))

    assert book.ready() == 1
    assert run_all(book) == ["other"]
    assert book.settled
