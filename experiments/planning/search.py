"""Searches the attacker's cost by bisection: strengths join the running plan until the flip is bracketed.

    both ends of the range are planned; once their verdicts are known, the middle of the bracket (last strength that
    leaves the mark, first that removes it) is attacked next, until no strength lies between or the steps are used up

The search sees the verdict and a real attacker does not, so its result is a lower bound on what removal costs a real
one. The store holds every strength tried, so an interrupted search resumes.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wmarena.experiments.planning.cells import CellPlanner, PlannedAttack
from wmarena.experiments.spec.entries import Bisection
from wmarena.orchestrator.plan.plan import Cell
from wmarena.orchestrator.plan.task import Task, TaskId

Probe = Callable[[float], PlannedAttack]
"""The attack at another strength."""

NewTasks = tuple[list[Task], list[Cell]]


@dataclass
class Search:
    """One bisection against one marked model.

    Attributes:
        cells: the defence on one seed.
        bisection: range and number of steps.
        probe: plans the attack at a strength.
        direction: 1 if larger is stronger.
        ends: verify tasks of the owner's verdict at ``low`` and ``high``.
    """

    cells: CellPlanner
    bisection: Bisection
    probe: Probe
    direction: int
    ends: dict[TaskId, float]
    verdicts: dict[float, bool] = field(default_factory=dict)
    steps: int = 0

    def __post_init__(self) -> None:
        self.waiting = dict(self.ends)

    def record(self, task: TaskId, found: bool) -> None:
        """Record the verdict of an awaited task."""
        self.verdicts[self.waiting.pop(task)] = found

    def next_strength(self) -> float | None:
        """Return the next strength; None while one is pending, or if the flip is bracketed or does not happen."""
        if self.waiting or self.steps >= self.bisection.steps:
            return None
        ordered = sorted(self.verdicts, reverse=self.direction < 0)  # weakest first
        # Without a flip between the ends there is nothing to bracket.
        if not self.verdicts[ordered[0]] or self.verdicts[ordered[-1]]:
            return None
        # Bisect the first flip: every later one comes from a verdict that is not monotone.
        flip = next(i for i, strength in enumerate(ordered) if not self.verdicts[strength])
        low, high = sorted((ordered[flip - 1], ordered[flip]))
        return self.bisection.middle(low, high)


class Searches:
    """All bisections of a plan; the loop calls this after each finished task."""

    def __init__(self) -> None:
        self._all: list[Search] = []
        self._known: dict[TaskId, bool] = {}

    def __len__(self) -> int:
        return len(self._all)

    @property
    def most_rows(self) -> int:
        """Largest number of attacks that the searches may add."""
        return sum(search.bisection.steps for search in self._all)

    def add(self, search: Search) -> None:
        """Add a search."""
        self._all.append(search)

    def __call__(self, task: Task, result: Mapping[str, Any]) -> NewTasks | None:
        """Return the tasks and cells that follow from a verdict, or None."""
        verdict = result.get("verdict")
        if verdict is None:
            return None
        self._known[task.id] = bool(verdict["verdict"])
        tasks: list[Task] = []
        cells: list[Cell] = []
        for search in self._all:
            if task.id in search.waiting:
                self._advance(search, tasks, cells)
        return (tasks, cells) if tasks else None

    def _advance(self, search: Search, tasks: list[Task], cells: list[Cell]) -> None:
        """Step until the search waits for an unknown verdict; shared tasks may have theirs already."""
        while True:
            for verify in [v for v in search.waiting if v in self._known]:
                search.record(verify, self._known[verify])
            strength = search.next_strength()
            if strength is None:
                return
            search.steps += 1
            added = search.cells.rows_of(search.probe(strength))
            for found, cell in added:
                tasks += found
                cells.append(cell)
            search.waiting = {owner_verdict(cell for _, cell in added): strength}


def owner_verdict(cells: Iterable[Cell]) -> TaskId:
    """Return the verify task of the owner's key on the suspect as it is deployed."""
    return next(cell.verify for cell in cells if not cell.claim and cell.head == "deployed" and not cell.realigned)
