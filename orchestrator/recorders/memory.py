"""A recorder in memory, for tests and notebooks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wmarena.orchestrator.journal.reader import JournalReader
from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.task import State, TaskId
from wmarena.orchestrator.recorders.base import Recorder, SyncReport


class MemoryRecorder(Recorder):
    """Executions as dicts of records.

    Attributes:
        records: run id -> task id -> record, for tasks that are done or failed.
        reports: run id -> folder of the attached report.
    """

    def __init__(self, journal: JournalReader) -> None:
        self.records: dict[str, dict[TaskId, Record]] = {}
        self.reports: dict[str, Path] = {}
        self._journal = journal

    def sync(self, run_id: str, *, abandoned: bool = False) -> SyncReport:
        run = self._run(run_id)
        known = self.records.setdefault(run_id, {})
        settled = {t: cached for _, t, cached, state in self._journal.run_tasks(run_id) if state in ("done", "failed")}
        rows = self._journal.task_rows(t for t in settled if t not in known)
        present = len(known)
        for row in rows:
            known[row["id"]] = Record(
                row["id"],
                State(row["state"]),
                result=row["result"],
                error=row["error"],
                cached=settled[row["id"]],
                seconds=row["seconds"],
                attempt=row["attempt"],
                worker=row["worker"],
                caveats=tuple(row["caveats"]),
            )
        return SyncReport(sent=len(rows), present=present, over=abandoned or run["status"] != "running")

    def attach_report(self, run_id: str, folder: Path) -> str | None:
        self._run(run_id)
        self.reports[run_id] = folder
        return None

    def _run(self, run_id: str) -> Mapping[str, Any]:
        run = self._journal.run(run_id)
        if run is None:
            raise LookupError(f"expected an execution of this store, got {run_id!r}")
        return run
