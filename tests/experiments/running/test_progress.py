"""Progress: counts, remaining time, display."""

import io

import pytest
from rich.console import Console

from wmarena.experiments.running.progress import LivePanel, Tally, counts_line, duration, lines, live
from wmarena.orchestrator.plan.events import Event, EventKind
from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.task import Kind, State, Task


def tasks(n: int) -> list[Task]:
    """Independent tasks that are expected to take two seconds each."""
    return [Task(Kind.TRAIN, {}, seed, (), "data", "code", label=f"train/seed{seed}", cost=2.0) for seed in range(n)]


def cost(task: Task) -> float:
    """The plan's estimate."""
    return task.cost


class Run:
    """A run of four tasks, one of them cached, with a clock in hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.tasks = tasks(4)
        self.tally = Tally.of(Plan(self.tasks), {self.tasks[0].id}, cost, clock=lambda: self.now)

    def happens(self, kind: EventKind, number: int, worker: str = "w0", seconds: float = 0.0, error: str = "") -> None:
        """One event about task ``number``."""
        task = self.tasks[number]
        state = State.FAILED if kind in ("failed", "retried") else State.DONE
        record = None if kind == "started" else Record(task.id, state, seconds=seconds, error=error or None)
        self.tally.update(Event(kind, task, worker, record))


def test_every_task_is_counted_once() -> None:
    """Cached, done, failed and skipped add up to the plan."""
    run = Run()
    run.happens("started", 1)
    run.happens("done", 1, seconds=1.0)
    run.happens("started", 2)
    run.happens("failed", 2, error="error: boom")
    run.happens("skipped", 3, worker="")

    assert (run.tally.cached, run.tally.done, run.tally.failed, run.tally.skipped) == (1, 1, 1, 1)
    assert 4 == run.tally.settled == run.tally.total
    assert run.tally.failures == ["train/seed2: error: boom"]


def test_a_retried_task_is_running_again_not_settled() -> None:
    """A crash of a worker does not end the task."""
    run = Run()
    run.happens("started", 1)
    run.happens("retried", 1, error="worker_died: gone")

    assert run.tally.running == {}
    assert run.tally.settled == 1
    run.happens("started", 1, worker="w1")
    assert list(run.tally.running) == ["w1"]


def test_the_rest_is_expected_at_the_measured_pace() -> None:
    """Tasks of twice the estimated time double the estimate; workers share it; elapsed time counts."""
    run = Run()
    assert run.tally.remaining_s() is None
    run.happens("started", 1)
    run.happens("done", 1, seconds=4.0)
    assert run.tally.remaining_s() == 8.0

    run.happens("started", 2, worker="w0")
    run.happens("started", 3, worker="w1")
    run.now = 1.0
    assert run.tally.remaining_s() == 3.0


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0123, "12 ms"), (0.9949, "995 ms"), (0.996, "1.0 s"), (4.21, "4.2 s"), (42.4, "42 s"), (200, "3 min 20 s"),
     (7500, "2 h 05 min")],
)  # fmt: skip
def test_durations_are_short(seconds: float, shown: str) -> None:
    """Two digits are enough."""
    assert shown == duration(seconds)


def test_one_line_says_it_all() -> None:
    """Fraction done, counts by state and remaining time; before the first task, that workers start."""
    run = Run()
    assert counts_line(run.tally) == "1/4 · starting workers"
    run.happens("started", 1)
    run.happens("done", 1, seconds=2.0)
    run.happens("started", 2)
    assert counts_line(run.tally) == "2/4 · 1 done · 1 running · 0 failed · 1 cached · about 4.0 s left"
    run.happens("failed", 2)
    run.happens("skipped", 3)
    assert counts_line(run.tally) == "4/4 · 1 done · 0 running · 1 failed · 1 skipped · 1 cached"


def test_the_panel_shows_workers_and_failures() -> None:
    """A line per busy worker with its task, a line per failure with its cause, markup in labels left alone."""
    run = Run()
    run.happens("started", 1)
    run.happens("failed", 1, error="error: [bold]boom")
    run.happens("started", 2, worker="worker-7")
    run.now = 3.0
    console = Console(file=io.StringIO(), width=100)
    console.print(LivePanel(run.tally))
    shown = console.file.getvalue()

    assert "worker-7 train/seed2 3.0 s" in shown
    assert "failed: train/seed1: error: [bold]boom" in shown


def test_without_a_terminal_every_settled_task_is_a_plain_line() -> None:
    """No control characters, no repainting."""
    run, file = Run(), io.StringIO()
    with lines(Console(file=file, width=60), Plan(run.tasks), {run.tasks[0].id}, cost) as hear:
        hear(Event("started", run.tasks[1], "w0"))
        hear(Event("done", run.tasks[1], "w0", Record(run.tasks[1].id, State.DONE, seconds=1.5)))
        hear(Event("failed", run.tasks[2], "w1", Record(run.tasks[2].id, State.FAILED, error="error: [red]boom")))

    assert file.getvalue().splitlines() == [
        "[2/4] done train/seed1 in 1.5 s on w0",
        "[3/4] failed train/seed2 on w1: error: [red]boom",
    ]


def test_a_finished_plan_has_no_panel() -> None:
    """Without tasks to run nothing is displayed."""
    run, file = Run(), io.StringIO()
    with live(Console(file=file, force_terminal=True), Plan(run.tasks), {t.id for t in run.tasks}, cost) as hear:
        assert hear is None

    assert file.getvalue() == ""


def test_a_stalled_task_is_shown_as_such() -> None:
    """In the panel beside its time, in logs as a line; its next attempt starts afresh."""
    run = Run()
    run.happens("started", 1)
    run.happens("stalled", 1)
    console = Console(file=io.StringIO(), width=120)
    console.print(LivePanel(run.tally))
    run.happens("retried", 1, error="stalled: no progress for 1800 s")
    run.happens("started", 1)
    plain = Console(file=io.StringIO(), width=120)
    with lines(plain, Plan(run.tasks), set(), cost) as hear:
        assert hear is not None
        hear(Event("stalled", run.tasks[1], "w0"))

    assert "train/seed1 0 ms stalled" in console.file.getvalue()  # type: ignore[attr-defined]
    assert run.tally.stalled == set()
    assert "stalled train/seed1 on w0" in plain.file.getvalue()  # type: ignore[attr-defined]
