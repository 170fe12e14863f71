"""Supervision: silent workers, workers without progress."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pytest

from tests.orchestrator.toys import Scripted, World, named, states, task
from wmarena.orchestrator.executors.base import Vitals
from wmarena.orchestrator.executors.heartbeats import Heartbeats
from wmarena.orchestrator.plan.events import Event
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.task import FailureKind, Task
from wmarena.orchestrator.running.retry import Limits
from wmarena.orchestrator.running.supervisor import overdue, stalled

LIMITS = Limits(task_timeout_s=1000.0, heartbeat_timeout_s=10.0, stall_timeout_s=100.0)


class Ward:
    """Heartbeats of workers that answer when the test says so, with a clock of their own."""

    def __init__(self) -> None:
        self.now = 0.0
        self.answers: dict[str, float | None] = {}
        self.asked: list[str] = []
        self.pulses: Heartbeats[str] = Heartbeats(5.0, self.ask, self.heard, lambda: self.now)

    def ask(self, worker: str) -> str:
        self.asked.append(worker)
        return worker

    def heard(self, questions: Collection[str]) -> Mapping[str, float | None]:
        return {q: self.answers.pop(q) for q in questions if q in self.answers}

    def at(self, now: float, *busy: str, **answers: float | None) -> Mapping[str, Vitals]:
        """Vitals of the busy workers at a time, after these answers have come."""
        self.now = now
        self.answers |= answers
        return self.pulses.vitals(busy)


def test_a_worker_that_answers_is_not_silent() -> None:
    """One request at a time, every five seconds."""
    ward = Ward()
    ward.at(0.0, "a")
    for now in range(1, 21):
        vitals = ward.at(float(now), "a", a=0.0)

    assert vitals["a"].silent_s == 0.0
    assert len(ward.asked) == 5


def test_silence_counts_from_the_request() -> None:
    """Not from the last answer: a worker without an open request is not silent."""
    ward = Ward()
    ward.at(0.0, "a")
    ward.at(1.0, "a", a=0.0)
    ward.at(40.0, "a")

    assert ward.at(47.0, "a")["a"].silent_s == 7.0


def test_a_suspended_driver_suspects_no_worker() -> None:
    """An answer that has been waiting for an hour is an answer."""
    ward = Ward()
    ward.at(0.0, "a")
    ward.at(5.0, "a", a=0.0)

    assert ward.at(3600.0, "a", a=0.0)["a"].silent_s == 0.0


def test_a_worker_that_never_answered_is_silent_from_the_first_request() -> None:
    """A worker may hang before its first answer."""
    ward = Ward()
    ward.at(0.0, "a")

    assert ward.at(30.0, "a")["a"] == Vitals(silent_s=30.0, still_s=0.0)


def test_progress_is_the_workers_own_account() -> None:
    """Seconds without progress as it said, and those that passed since."""
    ward = Ward()
    ward.at(0.0, "a")
    ward.at(5.0, "a", a=42.0)

    assert ward.at(8.0, "a")["a"].still_s == 45.0


def test_idle_workers_are_forgotten() -> None:
    """A new call starts with fresh vitals."""
    ward = Ward()
    ward.at(0.0, "a")
    ward.at(5.0, "a", a=42.0)
    ward.at(6.0)

    assert ward.at(7.0, "a")["a"] == Vitals(0.0, 0.0)


@pytest.mark.parametrize(
    ("elapsed_s", "vitals", "kind", "said"),
    [
        (1001.0, Vitals(), FailureKind.TIMEOUT, "no result after 1000 s"),
        (500.0, Vitals(silent_s=11.0), FailureKind.SILENT, "did not answer for 10 s"),
        (500.0, Vitals(still_s=101.0), FailureKind.STALLED, "no progress for 100 s"),
        (50.0, Vitals(still_s=101.0), None, ""),
        (500.0, Vitals(9.0, 99.0), None, ""),
    ],
)
def test_workers_to_be_replaced(elapsed_s: float, vitals: Vitals, kind: FailureKind | None, said: str) -> None:
    """Late, silent or without progress; what a worker did before this call does not count."""
    failure = overdue(elapsed_s, vitals, LIMITS)

    assert (failure.kind if failure else None) == kind
    assert said in (failure.message if failure else "")
    assert stalled(elapsed_s, vitals, LIMITS) == (elapsed_s > 50.0 and vitals.still_s > 50.0)


class Hanging(Scripted):
    """Workers whose first call of each task has scripted vitals."""

    def __init__(self, signs: Mapping[str, Sequence[Vitals]], world: World) -> None:
        super().__init__({label: [None] for label in signs}, store=world.store)
        self.signs = {label: list(vitals) for label, vitals in signs.items()}

    def vitals(self) -> Mapping[str, Vitals]:
        return {worker: self._sign(tasks[0]) for worker, tasks in self._under_way.items()}

    def _sign(self, item: Task) -> Vitals:
        left = self.signs.get(item.label) or [Vitals()]
        return left.pop(0) if len(left) > 1 else left[0]


def test_a_silent_worker_is_replaced_long_before_the_timeout(tmp_path: Path) -> None:
    """Its task runs again and is done; the attempt is in the journal with its cause."""
    world, plan = World(tmp_path), Plan([task("one")])
    executor = Hanging({"one": [Vitals(silent_s=5.0), Vitals(silent_s=99.0)]}, world)
    records = world.run(plan, executor, limits=LIMITS)

    assert (states(plan, records), executor.replaced) == ({"one": "done"}, ["w0"])
    assert records[named(plan, "one").id].attempt == 2


def test_a_stalled_task_is_reported_before_its_worker_is_replaced(tmp_path: Path) -> None:
    """Once, when half of its time without progress has passed."""
    world, plan = World(tmp_path), Plan([task("one")])
    heard: list[str] = []

    def listen(event: Event) -> None:
        heard.append(event.kind)

    signs = [Vitals(still_s=s) for s in (0.0, 6e-9, 7e-9, 2.0)]
    limits = Limits(stall_timeout_s=1e-8)
    world.run(plan, Hanging({"one": signs}, world), limits=limits, listeners=[listen])

    assert heard == ["started", "stalled", "retried", "started", "done"]
