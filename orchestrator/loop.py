"""The scheduling loop: one thread, one owner of the run's state, one blocking line.

A free worker gets the best ready task, preferring one whose parent's model it holds. Tasks that have been taking
milliseconds travel several in a call. A failure is a result: it costs its descendants and nothing else.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from orchestrator.evidence import Record
from orchestrator.executors.base import Completion, Executor, NoWorkers
from orchestrator.journal import Journal
from orchestrator.ledger import Ledger, Policy
from orchestrator.plan import Cell, Plan
from orchestrator.store import Store
from orchestrator.task import Failure, FailureKind, State, Task, TaskId

Growth = tuple[Sequence[Task], Sequence[Cell]]
Grow = Callable[[Task, Mapping[str, Any]], Growth | None]
"""Called with every task that is done; may return tasks and cells that join the plan."""

EventKind = Literal["started", "retried", "done", "failed", "skipped"]

_TICK_S = 0.5
_TINY_S = 0.005
_MOST_PER_CALL = 32
_HELD = 16
_MOST_RECOMPUTES = 3


@dataclass(frozen=True)
class Limits:
    """What a task may cost before it is given up.

    Attributes:
        task_timeout_s: wall seconds of one attempt.
        max_retries: further attempts after a crash, out-of-memory, timeout or store hiccup.
        fail_fast: stop the run at the first failed task.
        stop_patience_s: how long a stopping run waits for tasks to reach a checkpoint.
    """

    task_timeout_s: float = 3600.0
    max_retries: int = 2
    fail_fast: bool = False
    stop_patience_s: float = 5.0


@dataclass(frozen=True)
class Event:
    """Something happened to a task; for displays."""

    kind: EventKind
    task: Task
    worker: str = ""
    record: Record | None = None


class Listener(Protocol):
    """Hears every event, in order, on the loop's thread: be quick."""

    def __call__(self, event: Event) -> None: ...


class Interrupted(Exception):
    """The run was stopped; what is finished is kept, and the same command resumes it."""


@dataclass
class Loop:
    """Drives a plan to its end.

    Attributes:
        run: id of the execution, for the journal.
        grow: may add tasks whenever one is done.
    """

    plan: Plan
    ledger: Ledger
    executor: Executor
    journal: Journal
    store: Store
    run: str
    limits: Limits = field(default_factory=Limits)
    listeners: Sequence[Listener] = ()
    grow: Grow | None = None
    _started: dict[str, float] = field(default_factory=dict)
    _held: dict[str, OrderedDict[TaskId, None]] = field(default_factory=dict)
    _fast: dict[tuple[str, str, str, str], float] = field(default_factory=dict)
    _alone: set[TaskId] = field(default_factory=set)
    _recomputed: dict[TaskId, int] = field(default_factory=dict)

    def drive(self) -> dict[TaskId, Record]:
        """Run until everything is settled.

        Raises:
            Interrupted: Ctrl-C or SIGTERM.
            NoWorkers: no worker is left.
        """
        try:
            while not self.ledger.settled:
                self._hand_out()
                for completion in self.executor.wait(_TICK_S):  # the only line that waits
                    self._take(completion)
                self._watch()
                self.journal.tick()
        except KeyboardInterrupt:
            self._stop_all()
            raise Interrupted("stopped; finished tasks are kept, the same command resumes") from None
        finally:
            self.journal.flush()
        return self.ledger.records

    # Handing out

    def _hand_out(self) -> None:
        for worker in self.executor.idle():
            first = self.ledger.pop(self._held.get(worker, ()))
            if first is None:
                return
            tasks = [first, *self._companions(first)]
            for task in tasks:
                self.ledger.start(task.id, worker)
                self._tell("started", task, worker)
            self._started[worker] = time.monotonic()
            self.executor.submit(worker, tasks)
        if not self.executor.workers:
            raise NoWorkers("no worker is left; see the failures above, then run the same command again")

    def _companions(self, first: Task) -> list[Task]:
        """More tasks for the same call, if tasks of this sort have been tiny; fair shares among the workers."""
        if self._fast.get(_sort(first), 1.0) > _TINY_S or first.id in self._alone:
            return []
        room = min(_MOST_PER_CALL, self.ledger.ready() // max(1, 2 * len(self.executor.workers)))
        out: list[Task] = []
        for _ in range(room):
            task = self.ledger.pop()
            if task is None:
                break
            out.append(task)
            if self._fast.get(_sort(task), 1.0) > _TINY_S:
                break
        return out

    # Taking in

    def _take(self, done: Completion) -> None:
        task = self.plan.tasks[done.task_id]
        if self.ledger.state[task.id] is not State.RUNNING:
            return
        if isinstance(done.outcome, Failure):
            self._take_failure(task, done, done.outcome)
            return
        sort = _sort(task)
        self._fast[sort] = 0.7 * self._fast.get(sort, done.seconds) + 0.3 * done.seconds
        self._hold(done.worker, task)
        caveats = ("recomputed",) if task.id in self._recomputed else ()
        record = Record(
            task.id,
            State.DONE,
            result=done.outcome,
            seconds=done.seconds,
            attempt=self.ledger.attempts[task.id],
            worker=done.worker,
            caveats=caveats,
        )
        self._settle(task, record)
        if self.grow is not None:
            self._extend(self.grow(task, done.outcome))

    def _take_failure(self, task: Task, done: Completion, failure: Failure) -> None:
        attempt = self.ledger.attempts[task.id]
        record = Record(
            task.id, State.FAILED, error=failure.line(), seconds=done.seconds, attempt=attempt, worker=done.worker
        )
        if failure.kind is FailureKind.CANCELLED:
            self.ledger.requeue(task.id, blameless=True)
        elif failure.damaged is not None and self._recompute(failure.damaged, task):
            self.journal.attempt(self.run, task.id, record)
            self._tell("retried", task, done.worker, record)
        elif failure.kind.retryable and (not done.alone or attempt <= self.limits.max_retries):
            self._alone.add(task.id)
            self.journal.attempt(self.run, task.id, record)
            self.ledger.requeue(task.id, blameless=not done.alone)
            self._tell("retried", task, done.worker, record)
        else:
            self._settle(task, record, failure.trace)

    def _recompute(self, damaged: TaskId, task: Task) -> bool:
        """Set a damaged artifact aside and let its task run again before ``task``; False after too many times."""
        if damaged not in self.plan.tasks or self._recomputed.get(damaged, 0) >= _MOST_RECOMPUTES:
            return False
        self._recomputed[damaged] = self._recomputed.get(damaged, 0) + 1
        self.store.set_aside(damaged)
        self.journal.forget([damaged])
        self.ledger.reopen(damaged, task.id)
        return True

    def _settle(self, task: Task, record: Record, trace: str = "") -> None:
        skipped = self.ledger.close(record)
        self.journal.record(self.run, task, record, trace)
        self._tell("done" if record.state is State.DONE else "failed", task, record.worker, record)
        self._report_skipped(skipped)
        if record.state is State.FAILED and self.limits.fail_fast:
            self._give_up(task)

    def _report_skipped(self, skipped: Sequence[Record]) -> None:
        for lost in {r.task_id: r for r in skipped}.values():
            child = self.plan.tasks[lost.task_id]
            self.journal.record(self.run, child, lost)
            self._tell("skipped", child, record=lost)

    def _give_up(self, task: Task) -> None:
        """fail_fast: everything that has not begun is skipped."""
        for other in list(self.plan):
            if self.ledger.state[other.id] in (State.WAITING, State.READY):
                record = Record(other.id, State.SKIPPED, error=f"skipped: {task.label} failed (--fail-fast)")
                self._report_skipped([record, *self.ledger.close(record)])

    def _extend(self, growth: Growth | None) -> None:
        if growth is None:
            return
        new = self.plan.add(*growth)
        finished = self.journal.finished([t.id for t in new])
        self.journal.extend_run(self.run, [t.id for t in new], set(finished))
        self._report_skipped(self.ledger.join(new, finished))

    def _hold(self, worker: str, task: Task) -> None:
        held = self._held.setdefault(worker, OrderedDict())
        for task_id in (*task.parent_ids, task.id):
            held[task_id] = None
            held.move_to_end(task_id)
        while len(held) > _HELD:
            held.popitem(last=False)

    # Watching

    def _watch(self) -> None:
        """Replace workers whose task ran past the timeout."""
        now = time.monotonic()
        late: dict[str, list[TaskId]] = {}
        for task_id, worker in self.ledger.running.items():
            if now - self._started[worker] > self.limits.task_timeout_s:
                late.setdefault(worker, []).append(task_id)
        for worker, ids in late.items():
            self.executor.replace(worker)
            for task_id in ids:
                failure = Failure(FailureKind.TIMEOUT, f"no result after {self.limits.task_timeout_s:g} s")
                self._take(Completion(task_id, worker, failure, now - self._started[worker], alone=len(ids) == 1))

    def _stop_all(self) -> None:
        for completion in self.executor.cancel(self.limits.stop_patience_s):
            if isinstance(completion.outcome, Failure):
                continue
            self._take(completion)

    def _tell(self, kind: EventKind, task: Task, worker: str = "", record: Record | None = None) -> None:
        for listener in self.listeners:
            listener(Event(kind, task, worker, record))


def _sort(task: Task) -> tuple[str, str, str, str]:
    return (task.kind.value, task.workload, task.scheme, task.attack)


def with_changed_parents(plan: Plan, records: dict[TaskId, Record]) -> dict[TaskId, Record]:
    """Adds the caveat ``parent_changed`` where a kept result consumed other bytes than its parent has now."""
    out = dict(records)
    for task in plan:
        record = out.get(task.id)
        if record is None or not record.cached or not record.result:
            continue
        consumed = record.result.get("consumed", {})
        for parent, sha in consumed.items():
            now = out.get(TaskId(parent))
            made = now.result.get("made") if now is not None and now.result else None
            if made is not None and made != sha:
                out[task.id] = replace(record, caveats=(*record.caveats, "parent_changed"))
                break
    return out


def expected_seconds(durations: Mapping[tuple[str, str, str, str], float]) -> Callable[[Task], float]:
    """Expected seconds of a task: the journal's median for its sort, else the plan's guess."""
    return lambda task: durations.get(_sort(task), task.cost)


__all__ = ["Event", "Grow", "Growth", "Interrupted", "Limits", "Listener", "Loop", "Policy", "expected_seconds"]
