"""Displays a run: a live panel on a terminal, one line per finished task in a log or pipe."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from wmarena.experiments.running.context import ExpectedSeconds
from wmarena.orchestrator.plan.events import Event, Listener
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.task import Task, TaskId

Clock = Callable[[], float]

_MOST_FAILURES = 5


@dataclass
class Tally:
    """Counts and estimates of a run, from its events.

    Attributes:
        running: worker -> (task, start time).
        expected: expected seconds of tasks that have not ended.
        stalled: workers whose task has stopped making progress.
        failures: lines about the first failed tasks.
    """

    total: int
    cached: int
    expected: dict[TaskId, float]
    clock: Clock = time.monotonic
    done: int = 0
    failed: int = 0
    skipped: int = 0
    running: dict[str, tuple[Task, float]] = field(default_factory=dict)
    stalled: set[str] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)
    _workers: set[str] = field(default_factory=set)
    _settled: set[TaskId] = field(default_factory=set)
    _guessed: float = 0.0
    _measured: float = 0.0

    @classmethod
    def of(cls, plan: Plan, cached: set[TaskId], seconds: ExpectedSeconds, clock: Clock = time.monotonic) -> "Tally":
        """Make the tally of a plan before it runs."""
        expected = {task.id: seconds(task) for task in plan if task.id not in cached}
        return cls(total=len(plan), cached=len(plan) - len(expected), expected=expected, clock=clock)

    def update(self, event: Event) -> None:
        """Count one event; a task that joined the plan during the run counts from its first event."""
        if event.task.id not in self.expected and event.task.id not in self._settled:
            self.total += 1
            self.expected[event.task.id] = event.task.cost
        if event.kind == "started":
            self._workers.add(event.worker)
            self.running[event.worker] = (event.task, self.clock())
            self.stalled.discard(event.worker)
            return
        if event.kind == "stalled":
            self.stalled.add(event.worker)
            return
        if event.worker in self.running and self.running[event.worker][0].id == event.task.id:
            del self.running[event.worker]
        if event.kind == "retried":
            return
        guess = self.expected.pop(event.task.id, 0.0)
        self._settled.add(event.task.id)
        if event.kind == "done":
            self.done += 1
            self._guessed += guess
            self._measured += event.record.seconds if event.record else 0.0
        elif event.kind == "failed":
            self.failed += 1
            cause = event.record.error if event.record and event.record.error else "no cause given"
            self.failures.append(f"{event.task.label}: {cause}")
        else:
            self.skipped += 1

    @property
    def begun(self) -> bool:
        """True once a worker has started a task."""
        return bool(self._workers)

    @property
    def settled(self) -> int:
        """Number of tasks that have ended."""
        return self.cached + self.done + self.failed + self.skipped

    def remaining_s(self) -> float | None:
        """Estimate the seconds until the end; None before any task was measured."""
        if not self._guessed or not self._measured:
            return None
        # Correct all guesses by the ratio of measured to guessed seconds so far.
        pace = self._measured / self._guessed
        elapsed = sum(self.clock() - since for _, since in self.running.values())
        return max(0.0, sum(self.expected.values()) * pace - elapsed) / max(1, len(self._workers))


def duration(seconds: float) -> str:
    """Format seconds: ``35 ms``, ``4.2 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds < 0.995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def counts_line(tally: Tally) -> str:
    """Format the counts: ``42/86 · 12 done · 2 running · 0 failed · 30 cached · about 40 s left``."""
    if not tally.begun:
        return f"{tally.settled}/{tally.total} · starting workers"
    counts = (tally.done, "done"), (len(tally.running), "running"), (tally.failed, "failed"), (tally.cached, "cached")
    parts = [f"{tally.settled}/{tally.total}", *(f"{n} {name}" for n, name in counts)]
    if tally.skipped:
        parts.insert(4, f"{tally.skipped} skipped")
    left = tally.remaining_s()
    if left is not None and tally.settled < tally.total:
        parts.append(f"about {duration(left)} left")
    return " · ".join(parts)


class LivePanel:
    """The terminal's panel during a run."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def __rich__(self) -> RenderableType:
        tally = self._tally
        head = Table.grid(padding=(0, 1), expand=True)
        head.add_column(ratio=1)
        head.add_column(no_wrap=True)
        head.add_row(ProgressBar(total=max(1, tally.total), completed=tally.settled), counts_line(tally))
        workers = Table.grid(padding=(0, 1))
        for name in sorted(tally.running):
            task, since = tally.running[name]
            took = Text(duration(tally.clock() - since), "dim")
            took.append(" stalled" if name in tally.stalled else "", "yellow")
            workers.add_row(Text(name, "dim"), Text(task.label), took)
        failures = [Text(f"failed: {line}", "red", overflow="ellipsis") for line in tally.failures[-_MOST_FAILURES:]]
        return Group(head, workers, *failures)


@contextmanager
def live(console: Console, plan: Plan, cached: set[TaskId], seconds: ExpectedSeconds) -> Iterator[Listener | None]:
    """Show a panel, redrawn four times a second, whose last state stays; a plan may be empty at first."""
    tally = Tally.of(plan, cached, seconds)
    if tally.settled == tally.total > 0:
        yield None
        return
    with Live(LivePanel(tally), console=console, refresh_per_second=4):
        yield tally.update


@contextmanager
def lines(console: Console, plan: Plan, cached: set[TaskId], seconds: ExpectedSeconds) -> Iterator[Listener | None]:
    """Print one plain line per ended task, for logs and pipes."""
    tally = Tally.of(plan, cached, seconds)

    def listen(event: Event) -> None:
        tally.update(event)
        if event.kind == "started":
            return
        took = f" in {duration(event.record.seconds)}" if event.kind == "done" and event.record else ""
        why = f": {event.record.error}" if event.record and event.record.error else ""
        where = f" on {event.worker}" if event.worker else ""
        text = f"[{tally.settled}/{tally.total}] {event.kind} {event.task.label}{took}{where}{why}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    yield listen
