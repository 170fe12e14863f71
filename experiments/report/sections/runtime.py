"""Seconds per step, failed tasks and skipped rows of a run."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean

from wmarena.experiments.results.rows import ResultRow
from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.task import Kind, State, Task, TaskId


@dataclass(frozen=True, kw_only=True)
class TaskDurations:
    """All finished tasks of one kind on one workload: by attack for attacks (against any scheme), else by scheme.

    Attributes:
        seconds: computation time of each task, also of cached ones.
        cached: number of tasks that an earlier run had finished.
    """

    workload: str
    kind: Kind
    what: str
    seconds: tuple[float, ...]
    cached: int
    devices: tuple[str, ...]

    @property
    def mean(self) -> float:
        """Mean seconds of a task."""
        return fmean(self.seconds)

    @property
    def total(self) -> float:
        """Seconds of all tasks together."""
        return sum(self.seconds)


def steps(plan: Plan, records: Mapping[TaskId, Record]) -> list[TaskDurations]:
    """Collect durations in pipeline order."""
    parts: dict[tuple[str, Kind, str], list[Record]] = {}
    order = {kind: i for i, kind in enumerate(Kind)}
    for task in sorted(plan, key=lambda t: order[t.kind]):
        record = records.get(task.id)
        if record is not None and record.state is State.DONE:
            parts.setdefault((task.workload, task.kind, _description(task)), []).append(record)
    return [
        TaskDurations(
            workload=workload,
            kind=kind,
            what=what,
            seconds=tuple(_seconds(record) for record in part),
            cached=sum(record.cached for record in part),
            devices=tuple(dict.fromkeys(str((record.result or {}).get("device", "")) for record in part)),
        )
        for (workload, kind, what), part in parts.items()
    ]


def _description(task: Task) -> str:
    if task.kind is Kind.TRAIN:
        if task.config.get("adversary"):
            return "adversary's own training"
        return "clean twin" if task.config.get("recipe") else "clean training"
    return task.attack if task.kind is Kind.ATTACK else task.scheme


def _seconds(record: Record) -> float:
    return float((record.result or {}).get("seconds", record.seconds))


@dataclass(frozen=True, kw_only=True)
class FailedTask:
    """A failed task and the number of rows that lack a result because of it."""

    task: Task
    record: Record
    rows: int


def failed_tasks(plan: Plan, records: Mapping[TaskId, Record]) -> list[FailedTask]:
    """List failed tasks in planning order with the number of rows that depend on them."""
    out = []
    for task in plan:
        record = records.get(task.id)
        if record is not None and record.state is State.FAILED:
            lost = plan.with_consumers(task.id)
            out.append(FailedTask(task=task, record=record, rows=sum(cell.verify in lost for cell in plan.cells)))
    return out


def skipped_rows(rows: Iterable[ResultRow]) -> Counter[str]:
    """Count skipped rows by reason, in the table's order."""
    return Counter(row.error or "no reason was recorded" for row in rows if row.status == "skipped")
