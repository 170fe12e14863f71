"""The scheduling loop: one thread, one owner of the run's state, one blocking line.

A free worker gets the best ready task, preferring one whose parent's model it holds. Tasks that have been taking
milliseconds travel several in a call. A failure is a result: it costs its descendants and nothing else.
"""

import contextlib
import math
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from orchestrator.affinity import Held
from orchestrator.events import Event, EventKind, Listener
from orchestrator.evidence import Record
from orchestrator.executors.base import Completion, Executor, NoWorkers, Vitals
from orchestrator.growth import Grow, Growth, Source
from orchestrator.hiccup import Hiccup
from orchestrator.journal import FLUSH_S
from orchestrator.ledger import Ledger
from orchestrator.notes import Notes
from orchestrator.pace import Pace, Sort, expected_seconds, sort_of
from orchestrator.plan import Plan
from orchestrator.remedies import WholeGpu
from orchestrator.resume import find
from orchestrator.retry import Limits, Next, Retries
from orchestrator.stopping import Stop
from orchestrator.store import Store, StoreError
from orchestrator.task import Failure, FailureKind, State, Task, TaskId
from orchestrator.watch import overdue, stalled

_TICK_S = 0.5
_MOST_PER_CALL = 64
_MOST_RECOMPUTES = 3


STOPPED = "stopped; finished tasks are kept, the same command resumes"


class Interrupted(Exception):
    """The run was stopped; what is finished is kept, and the same command resumes it."""


@dataclass
class Loop:
    """Drives a plan to its end.

    Attributes:
        run: id of the execution, for the journal.
        grow: may add tasks whenever one is done.
        source: is asked for tasks whenever fewer are ready than workers are idle.
        recomputed: how often a damaged artifact was computed again.
        quarantined: tasks that an earlier run gave up as poison, with what it said: they fail without an attempt.
        stop: set by signals.
    """

    plan: Plan
    ledger: Ledger
    executor: Executor
    journal: Notes
    store: Store
    run: str
    limits: Limits = field(default_factory=Limits)
    listeners: Sequence[Listener] = ()
    grow: Grow | None = None
    source: Source | None = None
    recomputed: dict[TaskId, int] = field(default_factory=dict)
    quarantined: Mapping[TaskId, str] = field(default_factory=dict)
    stop: Stop = field(default_factory=Stop)
    _started: dict[str, float] = field(default_factory=dict)
    _repaired: dict[TaskId, float] = field(default_factory=dict)
    _held: Held = field(default_factory=Held)
    _pace: Pace = field(default_factory=Pace)
    _alone: set[TaskId] = field(default_factory=set)
    _gave_up: bool = False
    _starting: bool = True
    _watched: float = -math.inf
    _elsewhere: list[Task] = field(default_factory=list)
    _looked: float = 0.0
    _stalled: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._whole = WholeGpu(self.executor, self.ledger)
        self._retries = Retries(self.limits)
        self._hiccup = Hiccup(lambda: self.store.probe(), self.limits.store_patience_s)

    def catch_up(self) -> None:
        """Settle what is in quarantine; show what was finished before, so that searches and studies go on."""
        self._set_apart(list(self.plan))
        done = [self.plan.tasks[i] for i, r in self.ledger.records.items() if r.state is State.DONE]
        for task in done:
            self._inform(task, self.ledger.records[task.id])
        self._extend(done)
        self._pull()

    def drive(self) -> dict[TaskId, Record]:
        """Run until everything is settled.

        Raises:
            Interrupted: Ctrl-C or SIGTERM.
            NoWorkers: no worker is left.
            StoreError: the store cannot be written for longer than the run's patience.
        """
        self._starting = False
        try:
            self._pull()
            while not self.ledger.settled:
                if self.stop.asked:
                    raise KeyboardInterrupt
                self._hand_out()
                patience = FLUSH_S if self.journal.pending else _TICK_S
                for completion in self.executor.wait(patience):  # the only line that waits
                    self._take(completion)
                self._watch()
                self._write_down()
                self._look_elsewhere()
                self._pull()
                if self._elsewhere and not self.ledger.running:
                    time.sleep(FLUSH_S)  # nothing is under way here that could be waited for
        except KeyboardInterrupt:
            with contextlib.suppress(KeyboardInterrupt):  # a second one: without patience
                self._stop_all()
            raise Interrupted(STOPPED) from None
        finally:
            self.journal.flush()
        return self.ledger.records

    def _write_down(self) -> None:
        try:
            self.journal.tick()
        except StoreError:
            self._hiccup.begin()

    def _set_apart(self, tasks: Iterable[Task]) -> None:
        for task in tasks if self.quarantined else ():
            why = self.quarantined.get(task.id)
            if why is not None and self.ledger.state[task.id] in (State.WAITING, State.READY):
                self._settle(task, Record(task.id, State.FAILED, error=why))

    # Handing out

    def _hand_out(self) -> None:
        if not self._hiccup.over():
            time.sleep(FLUSH_S)  # where nothing is under way, there is nothing else to wait for
            return
        for task in self._whole.arrange():
            self._report_skipped(self.ledger.requeue(task.id))
        for worker in self.executor.idle():
            whole = self.executor.has_whole_gpu(worker)
            first = self._whole.pop() if whole else self.ledger.pop(self._held.of(worker))
            if first is None and whole:
                continue
            if first is None:
                return
            tasks = self._claimed([first, *self._companions(first)])
            if not tasks:
                continue
            for task in tasks:
                self.ledger.start(task.id, worker)
                self._tell("started", task, worker)
            self._started[worker] = time.monotonic()
            self.executor.submit(worker, tasks)
        if not self.executor.workers:
            raise NoWorkers("no worker is left; see the failures above, then run the same command again")

    def _claimed(self, tasks: list[Task]) -> list[Task]:
        """Those that no other driver is at work on; what others have done meanwhile is taken over."""
        claim = self.journal.claim([task.id for task in tasks])
        if len(claim.mine) == len(tasks):
            return tasks
        self._elsewhere += [task for task in tasks if task.id not in claim.mine and task.id not in claim.done]
        for task in tasks:
            if task.id in claim.done:
                self._take_over(task, claim.done[task.id])
        return [task for task in tasks if task.id in claim.mine]

    def _take_over(self, task: Task, record: Record) -> None:
        self._settle(task, record)
        self._extend([task])

    def _look_elsewhere(self) -> None:
        """Now and then: what other drivers had begun is done, or to be asked for again because they are gone."""
        if not self._elsewhere or time.monotonic() - self._looked < _TICK_S:
            return
        self._looked = time.monotonic()
        tasks, self._elsewhere = self._elsewhere, []
        done = self.journal.finished(task.id for task in tasks)
        for task in tasks:
            if task.id in done:
                self._take_over(task, done[task.id])
            else:
                self._report_skipped(self.ledger.requeue(task.id))

    def _companions(self, first: Task) -> list[Task]:
        """More tasks for the same call, if tasks of these sorts have been tiny; fair shares among the workers."""
        if not self._tiny(first):
            return []
        room = min(_MOST_PER_CALL, self.ledger.ready() // max(1, 2 * len(self.executor.workers)))
        out: list[Task] = []
        while len(out) < room and (task := self.ledger.pop(fits=self._tiny)) is not None:
            out.append(task)
        return out

    def _tiny(self, task: Task) -> bool:
        return self._pace.tiny(task) and task.id not in self._alone

    # Taking in

    def _take(self, done: Completion) -> None:
        # A worker that was given up may still report: its tasks are no longer its own.
        if self.ledger.running.get(done.task_id) != done.worker:
            return
        task = self.plan.tasks[done.task_id]
        if isinstance(done.outcome, Failure):
            self._take_failure(task, done, done.outcome)
            return
        self._pace.learn(task, done.seconds)
        self._held.note(done.worker, task)
        if task.id in self.recomputed:
            self._repaired[task.id] = time.monotonic()
        record = Record(
            task.id,
            State.DONE,
            result=done.outcome,
            seconds=done.seconds,
            attempt=self.ledger.attempts[task.id],
            worker=done.worker,
            caveats=("recomputed",) if task.id in self.recomputed else (),
        )
        self._settle(task, record)
        self._extend([task])

    def _take_failure(self, task: Task, done: Completion, failure: Failure) -> None:
        attempt = self.ledger.attempts[task.id]
        record = Record(
            task.id, State.FAILED, error=failure.line(), seconds=done.seconds, attempt=attempt, worker=done.worker
        )
        if failure.damaged is not None and self._repairable(failure.damaged, task):
            self._retry(task, record)
            self._repair(failure.damaged, task, self._started[done.worker])
            return
        if failure.kind is FailureKind.STORE:
            self._hiccup.begin()
        following = self._retries.decide(task.id, failure, attempt=attempt, alone=done.alone)
        if following is Next.OVER:
            error = self._retries.epitaph(task.id, failure, attempt)
            self._settle(task, replace(record, error=error), failure.trace)
            return
        if failure.kind is not FailureKind.CANCELLED:
            self._alone.add(task.id)
            self._retry(task, record)
        if self._whole.helps(failure, done.worker):
            self._whole.hold(task)
        else:
            self._report_skipped(self.ledger.requeue(task.id, blameless=following is Next.FREE))

    def _retry(self, task: Task, record: Record) -> None:
        self.journal.attempt(self.run, task.id, record)
        self._tell("retried", task, record.worker, record)

    def _repairable(self, damaged: TaskId, task: Task) -> bool:
        return damaged in task.parent_ids and self.recomputed.get(damaged, 0) < _MOST_RECOMPUTES

    def _repair(self, damaged: TaskId, task: Task, began: float) -> None:
        """Set a damaged artifact aside and let its task run again before ``task``.

        Several children find the same damage: only the first report, of an attempt since the last repair, counts.
        """
        news = self._repaired.get(damaged, 0.0) < began and self.ledger.state[damaged] is State.DONE
        if news:
            self.recomputed[damaged] = self.recomputed.get(damaged, 0) + 1
            self.store.set_aside(damaged)
            self.journal.forget([damaged])
            self._report_skipped(self.ledger.reopen(damaged, task.id))
        else:
            self._report_skipped(self.ledger.requeue(task.id, blameless=True))

    def _settle(self, task: Task, record: Record, trace: str = "") -> None:
        skipped = self.ledger.close(record)
        self.journal.record(self.run, task, record, trace)
        self._inform(task, record)
        self._tell("done" if record.state is State.DONE else "failed", task, record.worker, record)
        self._report_skipped(skipped)
        if record.state is State.FAILED and self.limits.fail_fast:
            self._give_up(task)

    def _report_skipped(self, skipped: Iterable[Record]) -> None:
        for lost in skipped:
            child = self.plan.tasks[lost.task_id]
            self.journal.record(self.run, child, lost)
            self._inform(child, lost)
            self._tell("skipped", child, record=lost)

    def _give_up(self, task: Task) -> None:
        """fail_fast: everything that has not begun is skipped, and nothing joins any more."""
        self._gave_up = True
        for other in list(self.plan):
            if self.ledger.state[other.id] in (State.WAITING, State.READY):
                record = Record(other.id, State.SKIPPED, error=f"skipped: {task.label} failed (--fail-fast)")
                self._report_skipped([record, *self.ledger.close(record)])

    def _extend(self, done: Iterable[Task]) -> None:
        """Ask ``grow`` about tasks that are done, and about those of its answers that were done before."""
        todo = deque(done) if self.grow is not None and not self._gave_up else deque()
        while todo and self.grow is not None:
            task = todo.popleft()
            growth = self.grow(task, self.ledger.records[task.id].result or {})
            if growth is None:
                continue
            todo.extend(self._join(growth))

    def _join(self, growth: Growth) -> list[Task]:
        """Tasks and cells join the plan; returns those of the tasks that were finished before."""
        new = self.plan.add(*growth)
        found = find([t.id for t in new], self.store, self.journal)
        skipped = self.ledger.join(new, found.records)
        finished = [t for t in new if self.ledger.state[t.id] is State.DONE]
        self.journal.extend_run(self.run, [t.id for t in new], {t.id for t in finished}, growth[1])
        for task in finished:
            self._inform(task, self.ledger.records[task.id])
        self._report_skipped(skipped)
        self._set_apart(new)
        return finished

    def _pull(self) -> None:
        """Ask the source for work while workers would have nothing to do; an executor need not run yet."""
        while self.source is not None and not self._gave_up:
            idle = 0 if self._starting else len(self.executor.idle())
            if self.ledger.ready() >= max(idle, int(self.ledger.settled)):
                return
            growth = self.source.more()
            if growth is None:
                return
            self._extend(self._join(growth))

    def _inform(self, task: Task, record: Record) -> None:
        if self.source is not None:
            self.source.settled(task, record)

    # Watching

    def _watch(self) -> None:
        """Replace workers that are late, silent or without progress; not looked for after every answer of many."""
        now = time.monotonic()
        if now - self._watched < min(_TICK_S, self.limits.shortest_s):
            return
        self._watched = now
        calls: dict[str, list[TaskId]] = {}
        for task_id, worker in self.ledger.running.items():
            calls.setdefault(worker, []).append(task_id)
        vitals = self.executor.vitals()
        for worker, ids in calls.items():
            elapsed_s, signs = now - self._started[worker], vitals.get(worker, Vitals())
            failure = overdue(elapsed_s, signs, self.limits)
            if failure is not None:
                self.executor.replace(worker)
                for task_id in ids:
                    self._take(Completion(task_id, worker, failure, elapsed_s, alone=len(ids) == 1))
            elif not stalled(elapsed_s, signs, self.limits):
                self._stalled.discard(worker)
            elif worker not in self._stalled:
                self._stalled.add(worker)
                self._tell("stalled", self.plan.tasks[ids[0]], worker)

    def _stop_all(self) -> None:
        for completion in self.executor.cancel(self.limits.stop_patience_s):
            if isinstance(completion.outcome, Failure):
                continue
            self._take(completion)

    def _tell(self, kind: EventKind, task: Task, worker: str = "", record: Record | None = None) -> None:
        for listener in self.listeners:
            listener(Event(kind, task, worker, record))


__all__ = [
    "Event",
    "Grow",
    "Growth",
    "Interrupted",
    "Limits",
    "Listener",
    "Loop",
    "Sort",
    "expected_seconds",
    "sort_of",
]
