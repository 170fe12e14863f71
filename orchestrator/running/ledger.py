"""Task states of one run: waiting, ready, running, settled; and the order of ready tasks. No I/O, no clock."""

import heapq
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.task import Kind, State, Task, TaskId

Policy = Literal["throughput", "feedback"]
"""``throughput``: verify first, then the longest remaining path. ``feedback``: depth first, earliest complete rows."""

_LOOK = 8
_SETTLED = frozenset({State.DONE, State.FAILED, State.SKIPPED})
_BROKEN = frozenset({State.FAILED, State.SKIPPED})


class Ledger:
    """Decides which task may run next.

    A task is ready when all tasks it waits for are settled and its parents are done; it is skipped when a parent failed
    or was skipped. Tasks in ``after`` may fail.

    Args:
        plan: the graph; tasks added to it later join through ``join``.
        finished: records of tasks finished before this run.
        present: whether a finished task's artifact can still be read.
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
        self._missing: dict[TaskId, int] = {}  # waiting tasks: number of unsettled tasks they wait for
        self._remaining: dict[TaskId, float] = {}
        self._depth: dict[TaskId, int] = {}
        self._heap: list[tuple[float, float, int, Task]] = []
        self._sequence = 0
        self._n_ready = 0
        self._open = 0
        self.join(list(plan.tasks.values()), finished)

    # Adding tasks

    def join(self, tasks: list[Task], finished: Mapping[TaskId, Record]) -> list[Record]:
        """Add tasks (parents first), some of them finished earlier; return records of those skipped at once."""
        redo = self._redo(tasks, finished)
        waiting: list[Task] = []
        for task in tasks:
            if task.id in finished and task.id not in redo:
                self.state[task.id] = State.DONE
                self.records[task.id] = finished[task.id]
            else:
                self.state[task.id] = State.WAITING
                waiting.append(task)
        self._open += len(waiting)
        if self._policy == "feedback":
            for task in tasks:
                self._depth[task.id] = 1 + max((self._depth[p] for p in task.parent_ids), default=0)
        # Children are estimated before their parents: a parent's path contains theirs.
        for task in reversed(waiting):
            self._estimate(task)
        return [record for task in waiting for record in self._arm(task)]

    def _redo(self, tasks: list[Task], finished: Mapping[TaskId, Record]) -> set[TaskId]:
        """Return finished tasks whose artifact is missing although an unfinished task consumes it."""
        # Children first: a parent that has to run again needs its own parents' artifacts.
        redo: set[TaskId] = set()
        for task in reversed(tasks):
            if task.id in finished and task.id not in redo:
                continue
            for parent in task.parent_ids:
                if parent in finished and parent not in redo and not self._present(parent):
                    redo.add(parent)
        return redo

    def _estimate(self, task: Task) -> None:
        """Store the expected seconds of the longest path from ``task`` to the end of the graph."""
        after = max((self._remaining.get(c, 0.0) for c in self.plan.children(task.id)), default=0.0)
        self._remaining[task.id] = self._seconds(task) + after

    def _arm(self, task: Task) -> list[Record]:
        """Count the unsettled tasks that ``task`` waits for; make it ready or skipped if there are none."""
        if self.state[task.id] is not State.WAITING:
            return []
        broken = next((p for p in task.parent_ids if self.state[p] in _BROKEN), None)
        if broken is not None:
            record = self._skip(task.id, broken)
            return [record, *self.close(record)]
        self._missing[task.id] = sum(self.state[b] not in _SETTLED for b in task.waits_for)
        if not self._missing[task.id]:
            self._push(task)
        return []

    def _push(self, task: Task) -> None:
        self._missing.pop(task.id, None)
        self.state[task.id] = State.READY
        self._n_ready += 1
        self._sequence += 1
        if self._policy == "feedback":
            # Deepest first: started rows are completed before new ones are begun.
            first, second = -float(self._depth[task.id]), float(self._sequence)
        else:
            # Verify tasks are short and complete rows; then critical-path order, which shortens the makespan.
            first, second = float(task.kind is not Kind.VERIFY), -self._remaining[task.id]
        heapq.heappush(self._heap, (first, second, self._sequence, task))

    # Choosing tasks

    @property
    def settled(self) -> bool:
        """True when nothing waits, is ready or runs."""
        return self._open == 0

    def ready(self) -> int:
        """Return the number of tasks that could start now."""
        return self._n_ready

    def pop(self, resident: Iterable[TaskId] = (), fits: Callable[[Task], bool] | None = None) -> Task | None:
        """Take the best ready task; among the first few of equal rank, one whose parent is resident on the worker.

        Args:
            resident: tasks whose models the worker has in memory.
            fits: if it refuses the best task, the result is None and the task stays queued.
        """
        # Lazy deletion: an entry whose task is no longer ready is dropped when it reaches the top.
        while self._heap and self.state[self._heap[0][3].id] is not State.READY:
            heapq.heappop(self._heap)
        if not self._heap:
            return None
        task = self._nearest(set(resident))
        if fits is not None and not fits(task):
            return None
        self.state[task.id] = State.RUNNING
        self._n_ready -= 1
        return task

    def _nearest(self, resident: set[TaskId]) -> Task:
        # Only the first entries of the heap: loading a model costs less than leaving the critical path.
        rank, _, _, best = self._heap[0]
        for first, _, _, candidate in self._heap[:_LOOK] if resident else ():
            near = first == rank and not resident.isdisjoint(candidate.parent_ids)
            if near and self.state[candidate.id] is State.READY:
                return candidate
        return best

    # Recording progress

    def start(self, task_id: TaskId, worker: str) -> int:
        """Mark a task as running on a worker; return the number of this attempt."""
        self.running[task_id] = worker
        self.attempts[task_id] += 1
        return self.attempts[task_id]

    def hold(self, task_id: TaskId) -> None:
        """End an attempt, but keep the task out of the queue until ``start`` or ``requeue``."""
        del self.running[task_id]

    def requeue(self, task_id: TaskId, *, blameless: bool = False) -> list[Record]:
        """End an attempt, which is not counted if ``blameless``; the task runs again once its parents are done.

        Returns:
            Records of tasks skipped because a parent failed meanwhile.
        """
        self.running.pop(task_id, None)
        if blameless:
            self.attempts[task_id] -= 1
        self.state[task_id] = State.WAITING
        return self._arm(self.plan.tasks[task_id])

    def close(self, record: Record) -> list[Record]:
        """Settle a task; return the records of descendants skipped because of it, parents first."""
        self._mark(record)
        skipped: list[Record] = []
        todo = deque([record])
        while todo:
            over = todo.popleft()
            broken = over.state is not State.DONE
            for child_id in self.plan.children(over.task_id):
                if self.state.get(child_id) is not State.WAITING:
                    continue
                child = self.plan.tasks[child_id]
                if broken and over.task_id in child.parent_ids:
                    lost = self._skip(child_id, over.task_id)
                    self._mark(lost)
                    skipped.append(lost)
                    todo.append(lost)
                elif child_id in self._missing:
                    self._missing[child_id] -= 1
                    if not self._missing[child_id]:
                        self._push(child)
        return skipped

    def _mark(self, record: Record) -> None:
        task_id = record.task_id
        if self.state[task_id] is State.READY:
            self._n_ready -= 1
        self.running.pop(task_id, None)
        self._missing.pop(task_id, None)
        self.state[task_id] = record.state
        self.records[task_id] = record
        self._open -= 1

    def _skip(self, task_id: TaskId, broken: TaskId) -> Record:
        """Return the record of a skipped task; its error names the ancestor that failed."""
        cause = self.records[broken].error or ""
        label = cause if cause.startswith("skipped: ") else f"skipped: {self.plan.tasks[broken].label} failed"
        return Record(task_id, State.SKIPPED, error=label)

    # Running finished tasks again

    def reopen(self, damaged: TaskId, waiting: TaskId) -> list[Record]:
        """Run ``damaged`` again before its child ``waiting``, which found the artifact damaged.

        Returns:
            Records of tasks skipped because the parent cannot run again.
        """
        del self.running[waiting]
        self.attempts[waiting] -= 1  # the damage is not the task's fault
        self.state[waiting] = State.WAITING
        skipped = self._unsettle(damaged) if self.state[damaged] is State.DONE else []
        return skipped + self._arm(self.plan.tasks[waiting])

    def _unsettle(self, damaged: TaskId) -> list[Record]:
        """Make a done task run again, with those of its ancestors whose artifacts cannot be read."""
        again: list[Task] = []
        todo = [damaged]
        while todo:
            task = self.plan.tasks[todo.pop()]
            if self.state[task.id] is not State.DONE:
                continue
            self.state[task.id] = State.WAITING
            del self.records[task.id]
            self._open += 1
            again.append(task)
            self._hold_back(task)
            todo += [p for p in task.parent_ids if not self._present(p)]
        for task in again:
            self._estimate(task)
        return [record for task in reversed(again) for record in self._arm(task)]

    def _hold_back(self, parent: Task) -> None:
        """Make children that are not running wait for ``parent`` again."""
        # A child that was ready would start before the missing artifact is back.
        for child_id in self.plan.children(parent.id):
            if self.state[child_id] is State.READY:
                self.state[child_id] = State.WAITING
                self._n_ready -= 1
                self._missing[child_id] = 0
            if child_id in self._missing:
                self._missing[child_id] += 1
