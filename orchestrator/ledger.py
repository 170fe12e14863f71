"""The state of one run, with one owner: what waits, what is ready, what is settled. No I/O, no clock."""

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from orchestrator.evidence import Record
from orchestrator.plan import Plan
from orchestrator.task import Kind, State, Task, TaskId

Policy = Literal["throughput", "feedback"]
"""``throughput``: verify first, then the longest remaining path. ``feedback``: depth first, earliest complete rows."""

_LOOK = 8


class Ledger:
    """Which task may run next.

    Args:
        plan: the graph; tasks added to it later join through ``join``.
        finished: records of tasks that were done before this run.
        present: True if a finished task's artifact can still be read.
        seconds: expected seconds of a task, for priorities.
        policy: order among ready tasks.
    """

    def __init__(
        self,
        plan: Plan,
        finished: Mapping[TaskId, Record],
        present: Callable[[TaskId], bool],
        seconds: Callable[[Task], float],
        policy: Policy = "throughput",
    ) -> None:
        self.plan = plan
        self.records: dict[TaskId, Record] = {}
        self.state: dict[TaskId, State] = {}
        self.attempts: dict[TaskId, int] = defaultdict(int)
        self.running: dict[TaskId, str] = {}
        self._present = present
        self._seconds = seconds
        self._policy = policy
        self._missing: dict[TaskId, int] = {}
        self._remaining: dict[TaskId, float] = {}
        self._depth: dict[TaskId, int] = {}
        self._heap: list[tuple[float, float, int, TaskId]] = []
        self._sequence = 0
        self._n_ready = 0
        self._open = 0
        self.join(list(plan.tasks.values()), finished)

    # Entering

    def join(self, tasks: list[Task], finished: Mapping[TaskId, Record]) -> list[Record]:
        """Take in tasks (parents first), some of them finished earlier; returns those skipped at once."""
        redo = self._redo(tasks, finished)
        for task in tasks:
            done = task.id in finished and task.id not in redo
            self.state[task.id] = State.DONE if done else State.WAITING
            if done:
                self.records[task.id] = finished[task.id]
            else:
                self._open += 1
            self._depth[task.id] = 1 + max((self._depth.get(p, 0) for p in task.parent_ids), default=0)
        for task in reversed(tasks):
            after = max((self._remaining.get(c, 0.0) for c in self.plan.children(task.id)), default=0.0)
            own = 0.0 if self.state[task.id] is State.DONE else self._seconds(task)
            self._remaining[task.id] = own + after
        skipped: list[Record] = []
        for task in tasks:
            if self.state[task.id] is State.WAITING:
                skipped += self._arm(task)
        return skipped

    def _redo(self, tasks: list[Task], finished: Mapping[TaskId, Record]) -> set[TaskId]:
        """Finished tasks whose artifact is gone although something unfinished consumes it."""
        redo: set[TaskId] = set()
        for task in reversed(tasks):
            if task.id in finished and task.id not in redo:
                continue
            for parent in task.parent_ids:
                if parent in finished and parent not in redo and not self._present(parent):
                    redo.add(parent)
        return redo

    def _arm(self, task: Task) -> list[Record]:
        """Count what ``task`` waits for; make it ready, or skipped, if that is settled already."""
        broken = next((p for p in task.parent_ids if self.state[p] in (State.FAILED, State.SKIPPED)), None)
        if broken is not None:
            return self._skip(task.id, broken)
        before = dict.fromkeys((*task.parent_ids, *task.after))
        self._missing[task.id] = sum(not self._settled(b) for b in before)
        if not self._missing[task.id]:
            self._push(task)
        return []

    def _settled(self, task_id: TaskId) -> bool:
        return self.state[task_id] in (State.DONE, State.FAILED, State.SKIPPED)

    def _push(self, task: Task) -> None:
        self.state[task.id] = State.READY
        self._n_ready += 1
        self._sequence += 1
        if self._policy == "feedback":
            first, second = -float(self._depth[task.id]), float(self._sequence)
        else:
            first, second = float(task.kind is not Kind.VERIFY), -self._remaining[task.id]
        heapq.heappush(self._heap, (first, second, self._sequence, task.id))

    # Asking

    @property
    def settled(self) -> bool:
        """True when nothing waits, is ready or runs."""
        return self._open == 0

    def ready(self) -> int:
        """Number of tasks that could start now."""
        return self._n_ready

    def pop(self, resident: Iterable[TaskId] = ()) -> Task | None:
        """The best ready task; among the first few of equal rank, one whose parent the worker holds already."""
        while self._heap and self.state[self._heap[0][3]] is not State.READY:
            heapq.heappop(self._heap)
        if not self._heap:
            return None
        task_id = self._heap[0][3]
        held = set(resident)
        if held:
            rank = self._heap[0][0]
            for first, _, _, candidate in self._heap[:_LOOK]:
                ready = first == rank and self.state[candidate] is State.READY
                if ready and not held.isdisjoint(self.plan.tasks[candidate].parent_ids):
                    task_id = candidate
                    break
        # Taken out of the heap lazily: an entry whose task is no longer READY is dropped when it surfaces.
        self.state[task_id] = State.RUNNING
        self._n_ready -= 1
        return self.plan.tasks[task_id]

    # Telling

    def start(self, task_id: TaskId, worker: str) -> int:
        """A worker took it; returns the number of this attempt."""
        self.state[task_id] = State.RUNNING
        self.running[task_id] = worker
        self.attempts[task_id] += 1
        return self.attempts[task_id]

    def requeue(self, task_id: TaskId, *, blameless: bool = False) -> None:
        """The attempt ended without a verdict on the task: it is ready again."""
        self.running.pop(task_id, None)
        if blameless:
            self.attempts[task_id] -= 1
        self._push(self.plan.tasks[task_id])

    def close(self, record: Record) -> list[Record]:
        """A task is done or failed; returns the records of descendants that are skipped because of it."""
        task_id = record.task_id
        self.running.pop(task_id, None)
        self.state[task_id] = record.state
        self.records[task_id] = record
        self._open -= 1
        skipped: list[Record] = []
        for child_id in self.plan.children(task_id):
            if self.state[child_id] is not State.WAITING or child_id not in self._missing:
                continue
            child = self.plan.tasks[child_id]
            if record.state is not State.DONE and task_id in child.parent_ids:
                skipped += self._skip(child_id, task_id)
                continue
            self._missing[child_id] -= 1
            if not self._missing[child_id]:
                self._push(child)
        return skipped

    def _skip(self, task_id: TaskId, broken: TaskId) -> list[Record]:
        """Mark a task and its descendants skipped, naming the ancestor that failed."""
        cause = self.records[broken].error or ""
        label = cause if cause.startswith("skipped: ") else f"skipped: {self.plan.tasks[broken].label} failed"
        self._missing.pop(task_id, None)
        return [*self.close(Record(task_id, State.SKIPPED, error=label)), self.records[task_id]]

    def reopen(self, damaged: TaskId, waiting: TaskId) -> None:
        """``waiting`` found its parent's artifact damaged: the parent runs again first."""
        self.running.pop(waiting, None)
        self.attempts[waiting] -= 1
        self.state[waiting] = State.WAITING
        if self._settled(damaged):
            self._unsettle(damaged)
        parents = self.plan.tasks[waiting].parent_ids
        self._missing[waiting] = sum(not self._settled(p) for p in parents)
        if not self._missing[waiting]:
            self._push(self.plan.tasks[waiting])

    def _unsettle(self, task_id: TaskId) -> None:
        """A settled task has to run again; so have those parents whose artifacts cannot be read."""
        task = self.plan.tasks[task_id]
        self.records.pop(task_id, None)
        self.state[task_id] = State.WAITING
        self._open += 1
        for child in self.plan.children(task_id):
            if self.state[child] is State.WAITING and child in self._missing:
                self._missing[child] += 1
        for parent in task.parent_ids:
            if self.state[parent] is State.DONE and not self._present(parent):
                self._unsettle(parent)
        self._arm(task)
