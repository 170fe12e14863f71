"""One pass over one execution: what was sent, what is to be sent, and in which order."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from wmarena.orchestrator.journal.reader import JournalReader
from wmarena.orchestrator.plan.task import TaskId
from wmarena.orchestrator.recorders.base import SyncReport
from wmarena.orchestrator.recorders.fields import RunFields, TrackerEntry, parents
from wmarena.orchestrator.recorders.links import ComparisonLink
from wmarena.orchestrator.recorders.summary import RunTask


@dataclass
class Pass:
    """State of one pass over an execution."""

    run: Mapping[str, Any]  # the execution's row
    over: bool  # it has ended
    tasks: list[RunTask]
    links: Mapping[TaskId, ComparisonLink]  # comparisons of verify and embed tasks
    place: str  # name of the tracker's experiment: scope of the marks
    experiment: str  # its id there
    marks: dict[TaskId, str]  # mark -> the tracker's id of a sent entry
    parent: str = ""  # the tracker's run of the execution
    sent: int = 0
    failed: int = 0
    warning: str | None = None
    rows: dict[TaskId, RunFields] = field(default_factory=dict)  # of entries to send, and of their ancestors

    @property
    def run_id(self) -> str:
        return str(self.run["id"])

    def mark(self, task_id: TaskId, state: str | None) -> TaskId:
        """Return the mark of a settled task."""
        return TaskId(f"{task_id}@{self.run_id}") if state == "failed" else task_id

    def pending(self) -> dict[TaskId, str]:
        """Return task -> state of unsent settled tasks whose comparisons are settled too; in planning order."""
        states = {t: state for _, t, _, state in self.tasks}
        return {
            t: state
            for t, state in states.items()
            if state in ("done", "failed")
            and self.mark(t, state) not in self.marks
            and (self.over or _comparable(self.links.get(t), states))
        }

    def waves(self, entries: Iterable[TrackerEntry]) -> list[list[TrackerEntry]]:
        """Group entries so that each needs only models of earlier groups: independent, makers of models, the rest."""
        # Entries of one group are sent concurrently, so a model's maker must be in an earlier group than its users.
        known = {mark.partition(":")[2] for mark in self.marks if mark.startswith("model:")}
        waves: list[list[TrackerEntry]] = [[], [], []]
        for entry in entries:
            if entry.judged is None:
                waves[0].append(entry)
            elif entry.made is not None and entry.made not in known:
                known.add(entry.made)
                waves[1].append(entry)
            else:
                waves[2].append(entry)
        return waves

    def report(self) -> SyncReport:
        """Return the outcome so far."""
        entries = {self.mark(t, state) for _, t, _, state in self.tasks}
        return SyncReport(
            sent=self.sent,
            present=len(entries & self.marks.keys()) - self.sent,
            failed=self.failed,
            warning=self.warning,
            over=self.over,
            experiment=self.experiment,
            parent=self.parent,
        )


def lineage(
    journal: JournalReader, links: Mapping[TaskId, ComparisonLink], ids: Iterable[TaskId]
) -> dict[TaskId, RunFields]:
    """Return the rows of ``ids``, of the tasks they are compared with, and of all their ancestors."""
    found: dict[TaskId, RunFields] = {}
    asked: set[TaskId] = set()
    todo = set(ids)
    todo |= {t for i in todo if i in links for t in links[i].tasks}
    while todo:
        asked |= todo
        new = {row["id"]: row for row in journal.task_rows(todo)}
        found |= new
        todo = {p for row in new.values() for p in parents(row).values()} - asked
    return found


def _comparable(link: ComparisonLink | None, states: Mapping[TaskId, str | None]) -> bool:
    """Return whether the tasks that the entry is compared with are settled."""
    return link is None or all(states.get(t, "done") is not None for t in link.tasks)
