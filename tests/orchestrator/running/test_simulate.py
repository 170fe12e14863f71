"""Simulated schedules of the real loop, compared with schedules computed by hand."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.orchestrator.running.test_ledger_properties import graphs
from tests.orchestrator.toys import World, done, echo, named, task
from wmarena.orchestrator.executors.base import Completion
from wmarena.orchestrator.executors.inline import InlineExecutor
from wmarena.orchestrator.executors.virtual import VirtualExecutor
from wmarena.orchestrator.plan.events import Event
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.task import Kind, Task
from wmarena.orchestrator.running.simulate import Schedule, simulate
from wmarena.orchestrator.store.local import Store
from wmarena.orchestrator.worker.context import Setup


class Claiming(InlineExecutor):
    """Reports a second for every task, so that none is tiny or shares a call."""

    def wait(self, timeout: float) -> list[Completion]:
        return [replace(ended, seconds=1.0) for ended in super().wait(timeout)]


class Starts:
    """Labels in the order in which they began."""

    def __init__(self) -> None:
        self.labels: list[str] = []

    def __call__(self, event: Event) -> None:
        if event.kind == "started":
            self.labels.append(event.task.label)


def cost(item: Task) -> float:
    """A task takes what it says."""
    return item.cost


def schedule(plan: Plan, n_workers: int, folder: Path, **options: object) -> Schedule:
    """The plan on so many workers, each task as long as its cost."""
    full = {"expected": cost, "actual": cost, **options}
    return simulate(plan, n_workers, store=Store(folder / "nowhere"), **full)  # type: ignore[arg-type]


def fork() -> Plan:
    """root (2) -> left (3), right (1) -> bottom (4, after both); leaf (5) beside them."""
    root = task("root", cost=2.0)
    left, right = task("left", root, cost=3.0), task("right", root, cost=1.0)
    return Plan([root, left, right, task("bottom", left, right, cost=4.0), task("leaf", cost=5.0)])


# By hand


@pytest.mark.parametrize(("n_workers", "makespan"), [(1, 15.0), (2, 10.0), (3, 9.0)])
def test_the_makespan_is_that_of_the_schedule_worked_out_by_hand(
    tmp_path: Path, n_workers: int, makespan: float
) -> None:
    """One: 2+3+1+4+5. Two: root, left 2-5, leaf 0-5, right 5-6, bottom 6-10. Three: right runs beside, 2+3+4."""
    assert schedule(fork(), n_workers, tmp_path).makespan_s == makespan


def test_what_follows_from_the_makespan(tmp_path: Path) -> None:
    """Work 15 on two workers, a longest chain of 9: bound 9, ratio 10 / 9, utilisation 15 / 20."""
    found = schedule(fork(), 2, tmp_path)

    assert (found.busy_s, found.critical_path_s, found.lower_bound_s) == (15.0, 9.0, 9.0)
    assert (found.over_bound, found.utilisation) == (10 / 9, 0.75)


def test_what_the_graph_allows_counts_idle_workers_before_the_first_model(tmp_path: Path) -> None:
    """One root of 3 before four leaves of 2, on two workers: work / 2 is 5.5, but nothing beats 3 + 8 / 2."""
    root = task("root", cost=3.0)
    found = schedule(Plan([root, *(task(f"l{i}", root, cost=2.0) for i in range(4))]), 2, tmp_path)

    assert (found.lower_bound_s, found.graph_bound_s, found.makespan_s) == (5.5, 7.0, 7.0)


def test_the_same_from_the_end(tmp_path: Path) -> None:
    """Four roots of 2 before one last task of 3."""
    roots = [task(f"r{i}", cost=2.0) for i in range(4)]
    found = schedule(Plan([*roots, task("last", *roots, cost=3.0)]), 2, tmp_path)

    assert (found.graph_bound_s, found.makespan_s) == (7.0, 7.0)


def test_waiting_without_consuming_is_on_the_critical_path(tmp_path: Path) -> None:
    """A longer strength comes after the shorter one of its trajectory, however many workers are free."""
    short = task("short", cost=2.0)
    found = schedule(Plan([short, task("long", after=[short], cost=3.0)]), 9, tmp_path)

    assert (found.makespan_s, found.critical_path_s) == (5.0, 5.0)


# Any graph


@settings(max_examples=60, deadline=None)
@given(graphs(), st.integers(1, 4))
def test_one_worker_takes_all_the_work_many_the_longest_chain(
    tmp_path_factory: pytest.TempPathFactory, tasks: list[Task], n_workers: int
) -> None:
    """And what lies between is never below its bounds, nor above the sum of work / workers and the longest chain."""
    folder = tmp_path_factory.getbasetemp()
    one, many = (schedule(Plan(tasks), n, folder) for n in (1, len(tasks)))
    some = schedule(Plan(tasks), n_workers, folder)

    assert one.makespan_s == pytest.approx(sum(t.cost for t in tasks))
    assert many.makespan_s == pytest.approx(many.critical_path_s)
    assert some.lower_bound_s <= some.graph_bound_s * (1 + 1e-9) <= some.makespan_s * (1 + 1e-8)
    assert some.makespan_s <= (some.busy_s / n_workers + some.critical_path_s) * (1 + 1e-9)


# As in a real run


def test_one_virtual_worker_starts_tasks_in_the_order_of_the_inline_executor(tmp_path: Path) -> None:
    """Including priorities, locality and predecessors: one loop makes both schedules."""
    tasks: list[Task] = []
    for name, weight in (("a", 3.0), ("b", 1.0), ("c", 2.0)):
        embed = task(f"{name} embed", cost=weight)
        short = task(f"{name} short", embed, cost=weight)
        long = task(f"{name} long", embed, after=[short], cost=2 * weight)
        checks = [task(f"{name} check {t.label}", t, kind=Kind.VERIFY, cost=0.1) for t in (short, long)]
        tasks += [embed, short, long, *checks]
    real, simulated = Starts(), Starts()
    world = World(tmp_path)
    inline = Claiming(Setup(store=world.store.root), perform=echo)
    world.run(Plan(tasks), inline, listeners=[real])
    schedule(Plan(tasks), 1, tmp_path, listeners=[simulated])

    assert simulated.labels == real.labels
    assert sorted(real.labels) == sorted(t.label for t in tasks)


def test_the_policy_knows_only_what_is_expected(tmp_path: Path) -> None:
    """The longer of two tasks is expected to be shorter: it starts second, and the makespan is longer."""
    plan = Plan([task("a", cost=4.0), task("b", cost=1.0), task("c", cost=3.0)])
    wrong = {"a": 1.0, "b": 2.0, "c": 3.0}

    assert schedule(plan, 2, tmp_path).makespan_s == 4.0
    assert schedule(plan, 2, tmp_path, expected=lambda t: wrong[t.label]).makespan_s == 5.0


def test_what_is_finished_takes_no_time_unless_it_cannot_be_read(tmp_path: Path) -> None:
    """A finished root whose artifact is there is passed over; one whose artifact is gone runs again."""
    plan, world = fork(), World(tmp_path)
    root = named(plan, "root")
    finished = {root.id: done(root)}
    gone = simulate(plan, 9, store=world.store, expected=cost, actual=cost, finished=finished)
    world.store.commit(root.id, root.identity(), {}, {"file": b"x"})
    there = simulate(plan, 9, store=world.store, expected=cost, actual=cost, finished=finished)

    assert (gone.makespan_s, gone.tasks) == (9.0, 5)
    assert (there.makespan_s, there.tasks) == (7.0, 4)


def test_nothing_is_written(tmp_path: Path) -> None:
    """A simulation leaves no store behind."""
    schedule(fork(), 2, tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_an_empty_plan_takes_no_time(tmp_path: Path) -> None:
    """And no ratio is undefined."""
    found = schedule(Plan(), 4, tmp_path)

    assert (found.makespan_s, found.over_bound, found.utilisation) == (0.0, 1.0, 1.0)


# The executor


def test_virtual_time_jumps_to_the_next_end() -> None:
    """Calls that end together are returned together; a replaced worker's call is never returned."""
    executor = VirtualExecutor(3, cost)
    short, other, long = task("short", cost=2.0), task("other", cost=2.0), task("long", cost=7.0)
    for worker, item in zip(executor.idle(), (short, other, long), strict=True):
        executor.submit(worker, [item])
    first = executor.wait(0.0)
    executor.replace("virtual-2")

    assert ({c.task_id for c in first}, executor.now) == ({short.id, other.id}, 2.0)
    assert (executor.wait(0.0), executor.now) == ([], 2.0)
    assert set(executor.idle()) == set(executor.workers)


def test_a_call_of_several_tasks_ends_with_the_last() -> None:
    """As on a real worker, whose answer is one."""
    executor = VirtualExecutor(1, cost)
    executor.submit("virtual-0", [task("a", cost=1.0), task("b", cost=2.0)])

    assert [c.seconds for c in executor.wait(0.0)] == [1.0, 2.0]
    assert executor.now == executor.busy_s == 3.0


def test_at_least_one_worker() -> None:
    """Zero would never end."""
    with pytest.raises(ValueError, match="expected 1 worker or more, got 0"):
        VirtualExecutor(0, cost)
