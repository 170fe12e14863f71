"""One trial: a small plan that joins the running one stage by stage, and may be pruned between stages.

    for each seed   the marked model with its controls  ->  its attacks (by growing strength, with a pruner)

Stages are planned one at a time, so a trial that is infeasible or pruned has no tasks to cancel. Equal tasks of other
trials, other studies and the store are shared by their ids.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from wmarena.experiments.planning.expand import Expansion
from wmarena.experiments.planning.search import Searches
from wmarena.experiments.results.rows import ResultRow
from wmarena.experiments.results.table import build_rows
from wmarena.experiments.study.gamma import Statistics, statistics_of
from wmarena.experiments.study.measures import TrialEvidence
from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.plan import Cell, Plan
from wmarena.orchestrator.plan.proposals import TrialParams
from wmarena.orchestrator.plan.task import State, Task, TaskId


@dataclass(frozen=True)
class TrialStage:
    """Cells that run together.

    Attributes:
        rung: the strength at which a pruner decides, or None.
        first: the first stage of the trial, which may show that it is infeasible.
        last: the last stage of its seed.
    """

    cells: tuple[Cell, ...]
    rung: int | None = None
    first: bool = False
    last: bool = False


@dataclass
class Trial:
    """One set of parameters and its progress.

    Attributes:
        number: in the study; None for a confirmation.
        stages: not planned yet.
        cells: of the stages so far.
        open: unfinished verify tasks of the current stage.
        reported: intermediate values, (rung, value).
        planned_s: driver seconds for Optuna and planning so far.
    """

    number: int | None
    params: TrialParams
    plan: Plan = field(default_factory=Plan)
    searches: Searches = field(default_factory=Searches)
    stages: deque[TrialStage] = field(default_factory=deque)
    label: str = ""
    warm: bool = False
    started: float = 0.0
    stage: TrialStage | None = None
    cells: list[Cell] = field(default_factory=list)
    open: set[TaskId] = field(default_factory=set)
    reported: list[tuple[int, float]] = field(default_factory=list)
    planned_s: float = 0.0

    @property
    def gamma(self) -> float | None:
        """The trial's own threshold."""
        value = self.params.get("gamma")
        return None if value is None else float(value)

    def begin(self, known: Mapping[TaskId, Record]) -> tuple[list[Task], list[Cell]]:
        """Start the next stage; return its tasks, parents first, and its cells."""
        self.stage = self.stages.popleft()
        needed = (i for c in self.stage.cells for i in (c.verify, c.clean, c.scratch) if i is not None)
        tasks = self.plan.with_ancestors(needed)
        cells = list(self.stage.cells)
        self._await(cells, known)
        for cell in self.stage.cells:
            more = self.extend(self.plan.tasks[cell.verify], known)
            tasks += more[0]
            cells += more[1]
        return tasks, cells

    def extend(self, task: Task, known: Mapping[TaskId, Record]) -> tuple[list[Task], list[Cell]]:
        """Return what a bisection adds after a verification."""
        record = known.get(task.id)
        if not len(self.searches) or record is None or record.state is not State.DONE:
            return [], []
        growth = self.searches(task, record.result or {})
        if growth is None:
            return [], []
        self.plan.add(*growth)
        self._await(growth[1], known)
        return growth

    def _await(self, cells: Sequence[Cell], known: Mapping[TaskId, Record]) -> None:
        self.cells += cells
        self.open |= {cell.verify for cell in cells if cell.verify not in known}

    def evidence(self, known: Mapping[TaskId, Record], experiment: str) -> "TrialResults":
        """Collect the evidence so far."""
        rows = build_rows(self.cells, known, experiment=experiment, run_id="")
        statistics = statistics_of(rows, self.cells, known)
        rows.sort(key=_unit)
        units = [TrialEvidence(tuple(part), statistics, self.gamma) for _, part in groupby(rows, key=_unit)]
        return TrialResults(tuple(rows), tuple(units), statistics)


@dataclass(frozen=True)
class TrialResults:
    """A trial's evidence: all rows, rows by workload and seed, and statistics for every γ."""

    rows: tuple[ResultRow, ...]
    units: tuple[TrialEvidence, ...]
    statistics: Statistics

    @property
    def failure(self) -> str | None:
        """Reason why a row has no result, or None."""
        return next((str(row.error) for row in self.rows if not row.is_done), None)


def _unit(row: ResultRow) -> tuple[Any, ...]:
    return row.workload, row.seed


def stages_of(
    expansion: Expansion, rungs_on: str | None = None, only: Callable[[Cell], bool] | None = None
) -> deque[TrialStage]:
    """Order a plan's cells in stages: cheap and decisive ones first.

    Args:
        rungs_on: the field whose strengths are the pruner's rungs on the first seed.
        only: selects cells; None for all.
    """
    wanted = [cell for cell in expansion.plan.cells if only is None or only(cell)]
    seeds = list(dict.fromkeys(cell.seed for cell in wanted))
    out: deque[TrialStage] = deque()
    for seed in seeds:
        own = [cell for cell in wanted if cell.seed == seed]
        marked = [cell for cell in own if cell.attack == "none"]
        attacked = [cell for cell in own if cell.attack != "none"]
        parts = _by_rung(attacked, rungs_on if seed == seeds[0] else None)
        out.append(TrialStage(tuple(marked), first=seed == seeds[0], last=not parts))
        for number, (rung, cells) in enumerate(parts):
            out.append(TrialStage(tuple(cells), rung, last=number == len(parts) - 1))
    return out


def _by_rung(cells: Sequence[Cell], field_name: str | None) -> list[tuple[int | None, list[Cell]]]:
    """Group cells by strength; those without it join the weakest."""
    if not cells:
        return []
    swept = {int(c.strength) for c in cells if c.strength is not None and c.strength_name == field_name}
    if field_name is None or not swept:
        return [(None, list(cells))]
    low = min(swept)
    found: dict[int, list[Cell]] = {rung: [] for rung in sorted(swept)}
    for cell in cells:
        own = cell.strength_name == field_name and cell.strength is not None
        found[int(cell.strength or 0) if own else low].append(cell)
    return list(found.items())


def rungs(stages: Iterable[TrialStage]) -> tuple[int, ...]:
    """Return the strengths at which a pruner decides."""
    return tuple(stage.rung for stage in stages if stage.rung is not None)
