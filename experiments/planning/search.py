"""The attacker's cost by bisection: strengths are added to the plan while it runs, until the flip is bracketed.

    both ends of the range are planned; once their verdicts are known, the middle of the bracket (last strength that
    leaves the mark, first that removes it) is attacked next, until no strength lies between or the steps are used up

The attacker does not know the verdict: the search asks an oracle, so its result is a lower bound on what removal
costs a real one. What was tried is in the store, so an interrupted search goes on where it stood.
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
        rows: the defence on one seed.
        bisection: range and number of steps.
        probe: makes the attack at a strength.
        direction: 1 if larger is stronger.
        ends: verify tasks of the owner's verdict at ``low`` and ``high``.
    """

    rows: CellPlanner
    bisection: Bisection
    probe: Probe
    direction: int
    ends: dict[TaskId, float]
    verdicts: dict[float, bool] = field(default_factory=dict)
    steps: int = 0

    def __post_init__(self) -> None:
        self.waiting = dict(self.ends)

    def hear(self, task: TaskId, found: bool) -> None:
        """The verdict of a task that was waited for."""
        self.verdicts[self.waiting.pop(task)] = found

    def next_strength(self) -> float | None:
        """What to try next: None while something is under way, or when the flip is bracketed or does not happen."""
        if self.waiting or self.steps >= self.bisection.steps:
            return None
        ordered = sorted(self.verdicts, reverse=self.direction < 0)  # weakest first
        if not self.verdicts[ordered[0]] or self.verdicts[ordered[-1]]:
            return None
        flip = next(i for i, strength in enumerate(ordered) if not self.verdicts[strength])
        low, high = sorted((ordered[flip - 1], ordered[flip]))
        return self.bisection.middle(low, high)


class Searches:
    """All bisections of a plan: what the loop asks whenever a task is done."""

    def __init__(self) -> None:
        self._all: list[Search] = []
        self._known: dict[TaskId, bool] = {}

    def __len__(self) -> int:
        return len(self._all)

    @property
    def most_rows(self) -> int:
        """Attacks that may still join a plan, at most."""
        return sum(search.bisection.steps for search in self._all)

    def add(self, search: Search) -> None:
        """One more."""
        self._all.append(search)

    def __call__(self, task: Task, result: Mapping[str, Any]) -> NewTasks | None:
        """The tasks and cells that a verdict calls for."""
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
        """Go on until something is waited for whose verdict is not known yet."""
        while True:
            for verify in [v for v in search.waiting if v in self._known]:
                search.hear(verify, self._known[verify])
            strength = search.next_strength()
            if strength is None:
                return
            search.steps += 1
            added = search.rows.rows_of(search.probe(strength))
            for found, cell in added:
                tasks += found
                cells.append(cell)
            search.waiting = {owner_verdict(cell for _, cell in added): strength}


def owner_verdict(cells: Iterable[Cell]) -> TaskId:
    """The verify task of the owner's key on the suspect as it is deployed."""
    return next(cell.verify for cell in cells if not cell.claim and cell.head == "deployed" and not cell.realigned)
