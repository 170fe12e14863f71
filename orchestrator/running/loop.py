"""The scheduling loop: one thread that owns the run's state, with one blocking call.

A free worker gets the best ready task, preferably one whose parent's model it has in memory. Tasks that take
milliseconds are sent several in a call. A failed task skips its descendants and nothing else.
"""

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from wmarena.orchestrator.executors.base import Completion, Executor, NoWorkers, Vitals
from wmarena.orchestrator.files.errors import StoreError
from wmarena.orchestrator.journal.journal import FLUSH_S
from wmarena.orchestrator.journal.protocol import RunJournal
from wmarena.orchestrator.plan.events import Listener
from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.growth import Grow, TaskSource
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.task import Failure, FailureKind, State, Task, TaskId
from wmarena.orchestrator.running.durations import DurationEstimator
from wmarena.orchestrator.running.dynamic_tasks import DynamicTasks
from wmarena.orchestrator.running.leases import LeasedTasks
from wmarena.orchestrator.running.ledger import Ledger
from wmarena.orchestrator.running.locality import ModelLocality
from wmarena.orchestrator.running.out_of_memory import WholeGpuQueue
from wmarena.orchestrator.running.outcomes import TaskOutcomes
from wmarena.orchestrator.running.recompute import Recomputation
from wmarena.orchestrator.running.retry import Limits, Retries, RetryDecision
from wmarena.orchestrator.running.stopping import Stop
from wmarena.orchestrator.running.store_outage import StoreOutage
from wmarena.orchestrator.running.supervisor import overdue, stalled
from wmarena.orchestrator.store.local import Store

_TICK_S = 0.5
_MOST_PER_CALL = 64

STOPPED = "stopped; finished tasks are kept, the same command resumes"


class Interrupted(Exception):
    """The run was stopped; finished tasks are kept, and the same command resumes it."""


@dataclass
class Loop:
    """Runs a plan until every task is settled.

    Attributes:
        run: id of the execution, for the journal.
        grow, source, quarantined: as of ``DynamicTasks``.
        recomputed: how often each damaged artifact was computed again.
        stop: set by signals.
    """

    plan: Plan
    ledger: Ledger
    executor: Executor
    journal: RunJournal
    store: Store
    run: str
    limits: Limits = field(default_factory=Limits)
    listeners: Sequence[Listener] = ()
    grow: Grow | None = None
    source: TaskSource | None = None
    recomputed: dict[TaskId, int] = field(default_factory=dict)
    quarantined: Mapping[TaskId, str] = field(default_factory=dict)
    stop: Stop = field(default_factory=Stop)
    _started: dict[str, float] = field(default_factory=dict)
    _locality: ModelLocality = field(default_factory=ModelLocality)
    _durations: DurationEstimator = field(default_factory=DurationEstimator)
    _own_call: set[TaskId] = field(default_factory=set)
    _starting: bool = True
    _checked_at: float = -math.inf
    _stalled: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._outcomes = TaskOutcomes(
            self.plan, self.ledger, self.journal, self.run, self.listeners, self.source, self.limits.fail_fast
        )
        self._dynamic_tasks = DynamicTasks(self._outcomes, self.store, self.grow, self.source, self.quarantined)
        self._leases = LeasedTasks(self.journal)
        self._recomputation = Recomputation(self.ledger, self.journal, self.store, self.recomputed)
        self._whole_gpu = WholeGpuQueue(self.executor, self.ledger)
        self._retries = Retries(self.limits)
        self._outage = StoreOutage(lambda: self.store.probe(), self.limits.store_patience_s)

    def resume(self) -> None:
        """Handle quarantined and finished tasks before any worker starts."""
        self._dynamic_tasks.resume()
        self._dynamic_tasks.pull(self._n_idle)

    def drive(self) -> dict[TaskId, Record]:
        """Run until everything is settled.

        Raises:
            Interrupted: Ctrl-C or SIGTERM.
            NoWorkers: no worker is left.
            StoreError: the store cannot be written for longer than ``store_patience_s``.
        """
        self._starting = False
        try:
            self._dynamic_tasks.pull(self._n_idle)
            while not self.ledger.settled:
                if self.stop.asked:
                    raise KeyboardInterrupt
                self._submit_ready()
                patience = FLUSH_S if self.journal.pending else _TICK_S
                for completion in self.executor.wait(patience):  # the only blocking call
                    self._complete(completion)
                self._supervise()
                self._tick_journal()
                self._poll_leases()
                self._dynamic_tasks.pull(self._n_idle)
                if self._leases.tasks and not self.ledger.running:
                    time.sleep(FLUSH_S)  # no task runs here that `wait` could wait for
        except KeyboardInterrupt:
            with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C stops at once
                self._stop_all()
            raise Interrupted(STOPPED) from None
        finally:
            self.journal.flush()
        return self.ledger.records

    def _n_idle(self) -> int:
        return 0 if self._starting else len(self.executor.idle())

    def _tick_journal(self) -> None:
        try:
            self.journal.tick()
        except StoreError:
            self._outage.begin()

    # Sending tasks to workers

    def _submit_ready(self) -> None:
        if not self._outage.over():
            time.sleep(FLUSH_S)  # without running tasks, nothing else blocks
            return
        for task in self._whole_gpu.arrange():
            self._outcomes.skip(self.ledger.requeue(task.id))
        for worker in self.executor.idle():
            whole = self.executor.has_whole_gpu(worker)
            first = self._whole_gpu.pop() if whole else self.ledger.pop(self._locality.of(worker))
            if first is None and whole:
                continue
            if first is None:
                return
            tasks, done = self._leases.claim([first, *self._companions(first)])
            for task, record in done:
                self._adopt(task, record)
            if not tasks:
                continue
            for task in tasks:
                self.ledger.start(task.id, worker)
                self._outcomes.emit("started", task, worker)
            self._started[worker] = time.monotonic()
            self.executor.submit(worker, tasks)
        if not self.executor.workers:
            raise NoWorkers("no worker is left; see the failures above, then run the same command again")

    def _adopt(self, task: Task, record: Record) -> None:
        """Take the record of a task that another driver has finished."""
        self._outcomes.settle(task, record)
        self._dynamic_tasks.extend([task])

    def _poll_leases(self) -> None:
        for task, record in self._leases.poll():
            if record is None:
                self._outcomes.skip(self.ledger.requeue(task.id))
            else:
                self._adopt(task, record)

    def _companions(self, first: Task) -> list[Task]:
        """Return more tasks for the same call if their classes are tiny; at most a fair share per worker."""
        if not self._tiny(first):
            return []
        # Half of a worker's share of the queue: large calls save overhead, small ones balance the end of the run.
        room = min(_MOST_PER_CALL, self.ledger.ready() // max(1, 2 * len(self.executor.workers)))
        out: list[Task] = []
        while len(out) < room and (task := self.ledger.pop(fits=self._tiny)) is not None:
            out.append(task)
        return out

    def _tiny(self, task: Task) -> bool:
        return self._durations.tiny(task) and task.id not in self._own_call

    # Taking results

    def _complete(self, done: Completion) -> None:
        # A replaced worker may still report: its tasks belong to other workers now.
        if self.ledger.running.get(done.task_id) != done.worker:
            return
        task = self.plan.tasks[done.task_id]
        if isinstance(done.outcome, Failure):
            self._complete_failed(task, done, done.outcome)
            return
        self._durations.learn(task, done.seconds)
        self._locality.add(done.worker, task)
        recomputed = self._recomputation.end(task)
        record = Record(
            task.id,
            State.DONE,
            result=done.outcome,
            seconds=done.seconds,
            attempt=self.ledger.attempts[task.id],
            worker=done.worker,
            caveats=("recomputed",) if recomputed else (),
        )
        self._outcomes.settle(task, record)
        self._dynamic_tasks.extend([task])

    def _complete_failed(self, task: Task, done: Completion, failure: Failure) -> None:
        attempt = self.ledger.attempts[task.id]
        record = Record(
            task.id, State.FAILED, error=failure.line(), seconds=done.seconds, attempt=attempt, worker=done.worker
        )
        if failure.damaged is not None and self._recomputation.possible(failure.damaged, task):
            self._outcomes.retry(task, record)
            self._outcomes.skip(self._recomputation.begin(failure.damaged, task, self._started[done.worker]))
            return
        if failure.kind is FailureKind.STORE:
            self._outage.begin()
        decision = self._retries.decide(task.id, failure, attempt=attempt, alone=done.alone)
        if decision is RetryDecision.OVER:
            error = self._retries.final_error(task.id, failure, attempt)
            self._outcomes.settle(task, replace(record, error=error), failure.trace)
            return
        if failure.kind is not FailureKind.CANCELLED:
            self._own_call.add(task.id)  # so that a further failure is attributed to this task alone
            self._outcomes.retry(task, record)
        if self._whole_gpu.helps(failure, done.worker):
            self._whole_gpu.hold(task)
        else:
            self._outcomes.skip(self.ledger.requeue(task.id, blameless=decision is RetryDecision.FREE))

    # Supervising workers

    def _supervise(self) -> None:
        """Replace workers that are late, silent or without progress; checked at most every half second."""
        now = time.monotonic()
        if now - self._checked_at < min(_TICK_S, self.limits.shortest_s):
            return
        self._checked_at = now
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
                    self._complete(Completion(task_id, worker, failure, elapsed_s, alone=len(ids) == 1))
            elif not stalled(elapsed_s, signs, self.limits):
                self._stalled.discard(worker)
            elif worker not in self._stalled:
                self._stalled.add(worker)
                self._outcomes.emit("stalled", self.plan.tasks[ids[0]], worker)

    def _stop_all(self) -> None:
        for completion in self.executor.cancel(self.limits.stop_patience_s):
            if isinstance(completion.outcome, Failure):
                continue
            self._complete(completion)
