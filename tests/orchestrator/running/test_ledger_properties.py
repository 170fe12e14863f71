"""Any graph, any failures, any order: every task is settled once, none runs before its parents."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.orchestrator.toys import closed, ledger, task
from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.task import Kind, State, Task, TaskId
from wmarena.orchestrator.running.ledger import Ledger

SETTLED = (State.DONE, State.FAILED, State.SKIPPED)


@st.composite
def graphs(draw: st.DrawFn, most: int = 12) -> list[Task]:
    """Tasks, parents first, with random parents and predecessors."""
    tasks: list[Task] = []
    for index in range(draw(st.integers(1, most))):
        picks = st.lists(st.integers(0, index - 1), max_size=3) if index else st.just([])
        parents, after = ([tasks[i] for i in draw(picks)] for _ in range(2))
        kind = draw(st.sampled_from(Kind))
        tasks.append(task(f"t{index}", *parents, kind=kind, after=after, cost=draw(st.floats(0.1, 9.0))))
    return tasks


@dataclass
class Drive:
    """A test executor: runs the ledger's tasks in random order and checks its rules at every step.

    Attributes:
        broken: tasks that fail whenever they run.
        gone: artifacts that are damaged although their tasks are done; found out when a child reads them.
    """

    book: Ledger
    data: st.DataObject
    broken: set[TaskId] = field(default_factory=set)
    gone: set[TaskId] = field(default_factory=set)
    settled: dict[TaskId, State] = field(default_factory=dict)
    flying: list[Task] = field(default_factory=list)
    steps: int = 0

    def finish(self) -> None:
        """Run until everything is settled."""
        while not self.book.settled:
            self.steps += 1
            assert self.steps < 2000, "the ledger never settles"
            while len(self.flying) < 3 and (item := self.book.pop()) is not None:
                self.launch(item)
            assert self.flying, "nothing runs, nothing is ready, and yet it is not settled"
            self.land(self.flying.pop(self.data.draw(st.integers(0, len(self.flying) - 1))))
        assert not self.flying
        assert self.book.pop() is None
        assert self.book.ready() == 0

    def launch(self, item: Task) -> None:
        for parent in item.parent_ids:
            assert self.book.state[parent] is State.DONE, f"{item.label} runs before its parent"
        for earlier in item.after:
            assert self.book.state[earlier] in SETTLED, f"{item.label} runs before what it comes after"
        assert item.id not in self.settled, f"{item.label} runs although it is settled"
        self.book.start(item.id, "w")
        self.flying.append(item)

    def land(self, item: Task) -> None:
        what = self.data.draw(st.sampled_from(["end", "end", "end", "requeue"]))
        damaged = [p for p in item.parent_ids if p in self.gone]
        if damaged:
            found = damaged[0]
            if self.book.state[found] is State.DONE:
                self.settled.pop(found, None)
                self.skip(self.book.reopen(found, item.id))
            else:
                self.skip(self.book.requeue(item.id, blameless=True))
        elif what == "requeue" and self.steps < 200:
            self.skip(self.book.requeue(item.id, blameless=True))
        else:
            state = State.FAILED if item.id in self.broken else State.DONE
            self.gone.discard(item.id)
            self.note(item.id, state)
            self.skip(self.book.close(closed(item, state)))

    def skip(self, records: list[Record]) -> None:
        for record in records:
            assert record.state is State.SKIPPED
            assert not any(record.task_id == f.id for f in self.flying)
            self.note(record.task_id, State.SKIPPED)

    def note(self, task_id: TaskId, state: State) -> None:
        assert task_id not in self.settled, "settled twice"
        self.settled[task_id] = state


def expected(tasks: list[Task], broken: set[TaskId]) -> dict[TaskId, State]:
    """Return the states that follow from the definition."""
    out: dict[TaskId, State] = {}
    for item in tasks:
        lost = any(out[p] is not State.DONE for p in item.parent_ids)
        out[item.id] = State.SKIPPED if lost else State.FAILED if item.id in broken else State.DONE
    return out


def some(data: st.DataObject, tasks: list[Task]) -> set[TaskId]:
    """A random set of ids."""
    return {t.id for t in tasks if data.draw(st.booleans())}


# Any graph, any failures, any order


@settings(max_examples=150, deadline=None)
@given(st.data(), graphs(), st.sampled_from(["throughput", "feedback"]))
def test_every_task_is_settled_once_as_it_should(data: st.DataObject, tasks: list[Task], policy: str) -> None:
    """Parents before children, ``after`` before its followers; failures skip descendants and nothing else."""
    broken = some(data, tasks)
    book = ledger(Plan(tasks), policy=policy)
    drive = Drive(book, data, broken=broken)
    drive.finish()

    assert drive.settled == expected(tasks, broken)
    assert {i: r.state for i, r in book.records.items()} == drive.settled


@settings(max_examples=100, deadline=None)
@given(st.data(), graphs())
def test_finished_tasks_are_not_run_again_unless_they_must(data: st.DataObject, tasks: list[Task]) -> None:
    """A finished task runs again exactly if its artifact is gone and something that runs consumes it."""
    finished = [t for t in tasks if data.draw(st.booleans())]
    absent = some(data, finished)
    runs = {t.id for t in tasks} - {t.id for t in finished}
    for item in reversed(tasks):
        if item.id in runs:
            runs |= {p for p in item.parent_ids if p in absent}
    present = {t.id for t in finished} - absent
    book = ledger(Plan(tasks), finished, present=lambda i: i in present)
    drive = Drive(book, data)
    drive.finish()

    assert drive.settled.keys() == runs
    assert all(r.cached == (i not in runs) for i, r in book.records.items())


@settings(max_examples=150, deadline=None)
@given(st.data(), graphs())
def test_damaged_parents_run_again_before_their_children(data: st.DataObject, tasks: list[Task]) -> None:
    """For any damage at any time: no child starts before its parents are done again, and the run ends."""
    finished = [t for t in tasks if data.draw(st.booleans())]
    gone = some(data, finished)
    broken = some(data, tasks)
    drive = Drive(ledger(Plan(tasks), finished), data, broken=broken, gone=gone)
    drive.book._present = lambda i: i not in drive.gone
    drive.finish()

    assert drive.book.records.keys() == {t.id for t in tasks}
    for item in tasks:
        if drive.settled.get(item.id) is State.SKIPPED:
            states_of_parents = {drive.book.state[p] for p in item.parent_ids}
            assert states_of_parents & {State.FAILED, State.SKIPPED}


@settings(max_examples=100, deadline=None)
@given(st.data(), graphs(), st.sampled_from(["throughput", "feedback"]))
def test_a_graph_that_grows_settles_like_one_that_was_whole(
    data: st.DataObject, tasks: list[Task], policy: str
) -> None:
    """Tasks that join while others run, are done, failed or skipped already end as if they had been there before."""
    broken = some(data, tasks)
    cut = data.draw(st.integers(1, len(tasks)))
    plan = Plan(tasks[:cut])
    book = ledger(plan, policy=policy)
    drive = Drive(book, data, broken=broken)
    for item in tasks[cut:]:
        for _ in range(data.draw(st.integers(0, 3))):
            if (ready := book.pop()) is not None:
                drive.launch(ready)
        if drive.flying:
            drive.land(drive.flying.pop())
        drive.skip(book.join(plan.add([item]), {}))
    drive.finish()

    assert drive.settled == expected(tasks, broken)
