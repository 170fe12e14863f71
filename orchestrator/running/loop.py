"""The scheduling loop: one thread, one owner of the run's state, one blocking line.

A free worker gets the best ready task, preferring one whose parent's model it holds. Tasks that have been taking
milliseconds travel several in a call. A failure is a result: it costs its descendants and nothing else.
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
    _held: ModelLocality = field(default_factory=ModelLocality)
    _pace: DurationEstimator = field(default_factory=DurationEstimator)
    _alone: set[TaskId] = field(default_factory=set)
    _starting: bool = True
    _watched: float = -math.inf
    _stalled: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._settling = TaskOutcomes(
            self.plan, self.ledger, self.journal, self.run, self.listeners, self.source, self.limits.fail_fast
        )
        self._joining = DynamicTasks(self._settling, self.store, self.grow, self.source, self.quarantined)
        self._elsewhere = LeasedTasks(self.journal)
        self._repairs = Recomputation(self.ledger, self.journal, self.store, self.recomputed)
        self._whole = WholeGpuQueue(self.executor, self.ledger)
        self._retries = Retries(self.limits)
        self._hiccup = StoreOutage(lambda: self.store.probe(), self.limits.store_patience_s)

    def catch_up(self) -> None:
        """Settle what is in quarantine; show what was finished before, so that searches and studies go on."""
        self._joining.catch_up()
        self._joining.pull(self._n_idle)

    def drive(self) -> dict[TaskId, Record]:
        """Run until everything is settled.

        Raises:
            Interrupted: Ctrl-C or SIGTERM.
            NoWorkers: no worker is left.
            StoreError: the store cannot be written for longer than the run's patience.
        """
        self._starting = False
        try:
            self._joining.pull(self._n_idle)
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
                self._joining.pull(self._n_idle)
                if self._elsewhere.tasks and not self.ledger.running:
                    time.sleep(FLUSH_S)  # nothing is under way here that could be waited for
        except KeyboardInterrupt:
            with contextlib.suppress(KeyboardInterrupt):  # a second one: without patience
                self._stop_all()
            raise Interrupted(STOPPED) from None
        finally:
            self.journal.flush()
        return self.ledger.records

    def _n_idle(self) -> int:
        return 0 if self._starting else len(self.executor.idle())

    def _write_down(self) -> None:
        try:
            self.journal.tick()
        except StoreError:
            self._hiccup.begin()

    # Handing out

    def _hand_out(self) -> None:
        if not self._hiccup.over():
            time.sleep(FLUSH_S)  # where nothing is under way, there is nothing else to wait for
            return
        for task in self._whole.arrange():
            self._settling.skip(self.ledger.requeue(task.id))
        for worker in self.executor.idle():
            whole = self.executor.has_whole_gpu(worker)
            first = self._whole.pop() if whole else self.ledger.pop(self._held.of(worker))
            if first is None and whole:
                continue
            if first is None:
                return
            tasks, done = self._elsewhere.claim([first, *self._companions(first)])
            for task, record in done:
                self._take_over(task, record)
            if not tasks:
                continue
            for task in tasks:
                self.ledger.start(task.id, worker)
                self._settling.tell("started", task, worker)
            self._started[worker] = time.monotonic()
            self.executor.submit(worker, tasks)
        if not self.executor.workers:
            raise NoWorkers("no worker is left; see the failures above, then run the same command again")

    def _take_over(self, task: Task, record: Record) -> None:
        """Another driver has done it."""
        self._settling.settle(task, record)
        self._joining.extend([task])

    def _look_elsewhere(self) -> None:
        for task, record in self._elsewhere.look():
            if record is None:
                self._settling.skip(self.ledger.requeue(task.id))
            else:
                self._take_over(task, record)

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
        repaired = self._repairs.end(task)
        record = Record(
            task.id,
            State.DONE,
            result=done.outcome,
            seconds=done.seconds,
            attempt=self.ledger.attempts[task.id],
            worker=done.worker,
            caveats=("recomputed",) if repaired else (),
        )
        self._settling.settle(task, record)
        self._joining.extend([task])

    def _take_failure(self, task: Task, done: Completion, failure: Failure) -> None:
        attempt = self.ledger.attempts[task.id]
        record = Record(
            task.id, State.FAILED, error=failure.line(), seconds=done.seconds, attempt=attempt, worker=done.worker
        )
        if failure.damaged is not None and self._repairs.possible(failure.damaged, task):
            self._settling.retry(task, record)
            self._settling.skip(self._repairs.begin(failure.damaged, task, self._started[done.worker]))
            return
        if failure.kind is FailureKind.STORE:
            self._hiccup.begin()
        following = self._retries.decide(task.id, failure, attempt=attempt, alone=done.alone)
        if following is RetryDecision.OVER:
            error = self._retries.epitaph(task.id, failure, attempt)
            self._settling.settle(task, replace(record, error=error), failure.trace)
            return
        if failure.kind is not FailureKind.CANCELLED:
            self._alone.add(task.id)
            self._settling.retry(task, record)
        if self._whole.helps(failure, done.worker):
            self._whole.hold(task)
        else:
            self._settling.skip(self.ledger.requeue(task.id, blameless=following is RetryDecision.FREE))

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
                self._settling.tell("stalled", self.plan.tasks[ids[0]], worker)

    def _stop_all(self) -> None:
        for completion in self.executor.cancel(self.limits.stop_patience_s):
            if isinstance(completion.outcome, Failure):
                continue
            self._take(completion)
