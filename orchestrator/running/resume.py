"""Finds tasks that are finished before a run, and results whose parents have changed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from wmarena.orchestrator.journal.protocol import FinishedIndex
from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.task import State, TaskId
from wmarena.orchestrator.store.local import CorruptArtifact, Store


@dataclass(frozen=True)
class FinishedTasks:
    """Finished tasks of a plan, as journal and store have them."""

    records: dict[TaskId, Record]  # of finished tasks
    adopted: tuple[TaskId, ...] = ()  # finished tasks known from the artifact alone: the journal has no row
    damaged: tuple[TaskId, ...] = ()  # artifacts whose manifest cannot be trusted


def find(ids: Iterable[TaskId], store: Store, journal: FinishedIndex) -> FinishedTasks:
    """Look tasks up in the journal, then among the artifacts; change neither."""
    wanted = list(ids)
    records = journal.finished(wanted)
    adopted: list[TaskId] = []
    damaged: list[TaskId] = []
    there = store.having([task_id for task_id in wanted if task_id not in records])
    for task_id, manifest in store.manifests([task_id for task_id in wanted if task_id in there]):
        if isinstance(manifest, CorruptArtifact):
            damaged.append(task_id)
        elif manifest is not None:
            result = manifest["result"]
            seconds = float(result.get("seconds", 0.0))
            records[task_id] = Record(task_id, State.DONE, result=result, cached=True, seconds=seconds, attempt=1)
            adopted.append(task_id)
    return FinishedTasks(records, tuple(adopted), tuple(damaged))


def already_done(plan: Plan, store: Store, journal: FinishedIndex) -> dict[TaskId, Record]:
    """Return the records of a plan's finished tasks."""
    return find(plan.tasks, store, journal).records


def with_changed_parents(plan: Plan, records: Mapping[TaskId, Record]) -> dict[TaskId, Record]:
    """Add the caveat ``parent_changed`` to results that consumed other bytes than their parent has now."""
    made = {i: r.result["made"] for i, r in records.items() if r.result is not None and "made" in r.result}
    out = dict(records)
    for task_id, record in records.items() if made else ():
        consumed = record.result.get("consumed", {}) if record.result is not None else {}
        if task_id in plan.tasks and any(made.get(TaskId(p), sha) != sha for p, sha in consumed.items()):
            out[task_id] = replace(record, caveats=(*record.caveats, "parent_changed"))
    return out
