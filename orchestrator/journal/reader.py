"""Reads finished tasks, executions and trials from the journal. The type of every column is checked."""

import json
from collections.abc import Iterable, Iterator
from statistics import median
from typing import Any

from wmarena.orchestrator.journal.database import Database
from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.task import QUARANTINED, State, TaskId

_COLUMNS = (
    *("id", "kind", "label", "workload", "scheme", "attack", "seed", "identity", "state", "attempt", "worker"),
    *("finished", "seconds", "result", "error", "caveats"),
)

_RUN_COLUMNS = ("id", "experiment", "started", "finished", "status", "spec", "info")

_STATES = frozenset(State)
_MOST_VARIABLES = 30_000


class JournalReader(Database):
    """Read access to a journal, for reports and recorders; ``Journal`` also writes.

    Raises:
        StoreError: by every method, if rows cannot be read or have unexpected types.
    """

    # Tasks

    def finished(self, ids: Iterable[TaskId]) -> dict[TaskId, Record]:
        """Return the records of those among ``ids`` that are done, as cached."""
        query = "SELECT id, result, seconds, attempt, worker, caveats FROM task WHERE state='done' AND id IN ({marks})"
        out: dict[TaskId, Record] = {}
        for task_id, result, seconds, attempt, worker, caveats in self._of(query, ids):
            out[task_id] = Record(
                task_id,
                State.DONE,
                result=self._decoded(result, dict, "a result"),
                cached=True,
                seconds=self._checked(seconds, float, "seconds"),
                attempt=self._checked(attempt, int, "an attempt"),
                worker=self._checked(worker, str, "a worker"),
                caveats=tuple(self._caveats(caveats)) if caveats != "[]" else (),
            )
        return out

    def _of(self, query: str, ids: Iterable[TaskId]) -> Iterator[tuple[Any, ...]]:
        """Yield rows of ``query`` for any number of ids, which replace ``{marks}``."""
        wanted = list(ids)
        for start in range(0, len(wanted), _MOST_VARIABLES):
            part = wanted[start : start + _MOST_VARIABLES]
            yield from self._rows(query.format(marks=",".join("?" * len(part))), part)

    def _caveats(self, text: object) -> list[str]:
        return [self._checked(c, str, "a caveat") for c in self._decoded(text, list, "caveats")]

    def quarantined(self) -> dict[TaskId, str]:
        """Return quarantined task -> error."""
        rows = self._rows("SELECT id, error FROM task WHERE state='failed' AND error LIKE ?", (f"{QUARANTINED}%",))
        return {TaskId(task_id): error for task_id, error in rows}

    def durations(self) -> dict[tuple[str, str, str, str], float]:
        """Return the median seconds of done tasks by (kind, workload, scheme, attack)."""
        found: dict[tuple[str, str, str, str], list[float]] = {}
        rows = self._rows("SELECT kind, workload, scheme, attack, seconds FROM task WHERE state='done'")
        for kind, workload, scheme, attack, seconds in rows:
            found.setdefault((kind, workload, scheme, attack), []).append(self._checked(seconds, float, "seconds"))
        return {key: median(values) for key, values in found.items()}

    def seconds(self, ids: Iterable[TaskId]) -> dict[TaskId, float]:
        """Return the seconds of those among ``ids`` that are done."""
        rows = self._of("SELECT id, seconds FROM task WHERE state='done' AND id IN ({marks})", ids)
        return {TaskId(task_id): self._checked(seconds, float, "seconds") for task_id, seconds in rows}

    def gpu_peaks(self) -> dict[tuple[str, str, str, str], tuple[int, int]]:
        """Return (peak bytes, total bytes of the GPU) of done tasks by (kind, workload, scheme, attack).

        Of each class the task with the largest share of its GPU; tasks that ran on a CPU do not count.
        """
        found: dict[tuple[str, str, str, str], tuple[int, int]] = {}
        rows = self._db.execute(
            "SELECT kind, workload, scheme, attack, result FROM task "
            "WHERE state='done' AND result LIKE '%\"total_bytes\"%'"
        )
        for kind, workload, scheme, attack, result in rows:
            memory = self._checked(self._decoded(result, dict, "a result").get("memory"), dict, "a task's memory")
            peak, total = (self._checked(memory.get(n), int, "bytes") for n in ("peak_bytes", "total_bytes"))
            known = found.get((kind, workload, scheme, attack), (0, 1))
            found[kind, workload, scheme, attack] = max(known, (peak, max(1, total)), key=lambda p: p[0] / p[1])
        return found

    def task_rows(self, ids: Iterable[TaskId]) -> list[dict[str, Any]]:
        """Return full rows (identity and result decoded) of settled tasks, for recorders and listings."""
        out: list[dict[str, Any]] = []
        for task_id in ids:
            for row in self._rows(f"SELECT {','.join(_COLUMNS)} FROM task WHERE id=?", (task_id,)):
                out.append(self._task_row(dict(zip(_COLUMNS, row, strict=True))))
        return out

    def _task_row(self, row: dict[str, Any]) -> dict[str, Any]:
        """Decode identity, result and caveats of a row, and check the types of all columns."""
        for name in ("id", "kind", "label", "workload", "scheme", "attack", "state", "worker"):
            self._checked(row[name], str, f"a task's {name}")
        self._moment(row["finished"], "a task's end")
        self._checked(row["seconds"], float, "a task's seconds")
        for name in ("seed", "attempt"):
            self._checked(row[name], int, f"a task's {name}")
        if row["state"] not in _STATES:
            raise self._unreadable(f"the state {row['state']!r:.80}")
        row["identity"] = self._decoded(row["identity"], dict, "an identity")
        row["result"] = None if row["result"] is None else self._decoded(row["result"], dict, "a result")
        row["error"] = None if row["error"] is None else self._checked(row["error"], str, "an error")
        row["caveats"] = self._caveats(row["caveats"])
        return row

    def configurations(self, kind: str, scheme: str) -> list[dict[str, Any]]:
        """Return the distinct configurations of done tasks of a kind with a scheme."""
        rows = self._rows("SELECT identity FROM task WHERE state='done' AND kind=? AND scheme=?", (kind, scheme))
        found = [self._decoded(text, dict, "an identity").get("config") for (text,) in rows]
        return [json.loads(text) for text in sorted({json.dumps(config, sort_keys=True) for config in found})]

    # Executions

    def semantics(self) -> int | None:
        """Return ``identity.SEMANTICS`` of the version that last ran here; None if there was none."""
        rows = self._rows("SELECT value FROM meta WHERE name='semantics'")
        return self._decoded(rows[0][0], int, "semantics") if rows else None

    def runs(self, experiment: str | None = None) -> list[dict[str, Any]]:
        """Return executions, newest first: id, experiment, started, finished, status, spec, info."""
        return self._run_rows("WHERE experiment=?", experiment) if experiment else self._run_rows("")

    def run(self, run: str) -> dict[str, Any] | None:
        """Return one execution with the fields of ``runs``, or None."""
        return next(iter(self._run_rows("WHERE id=?", run)), None)

    def _run_rows(self, where: str, *values: str) -> list[dict[str, Any]]:
        rows = self._rows(f"SELECT {','.join(_RUN_COLUMNS)} FROM run {where} ORDER BY started DESC", values)
        return [self._run_row(dict(zip(_RUN_COLUMNS, row, strict=True))) for row in rows]

    def _run_row(self, row: dict[str, Any]) -> dict[str, Any]:
        for name in ("id", "experiment", "status", "spec"):
            self._checked(row[name], str, f"a run's {name}")
        self._moment(row["started"], "a run's start")
        if row["finished"] is not None:
            self._moment(row["finished"], "a run's end")
        return {**row, "info": self._decoded(row["info"], dict, "a run's facts")}

    def run_cells(self, run: str, after: int = -1) -> list[tuple[int, dict[str, Any]]]:
        """Return (position, table cell as JSON values) of a run's cells with position > ``after``."""
        rows = self._rows(
            "SELECT position, cell FROM run_cell WHERE run=? AND position>? ORDER BY position", (run, after)
        )
        found = [(position, self._decoded(cell, dict, "a table cell")) for position, cell in rows]
        return found if found or after >= 0 else self._earlier_cells(run)

    def _earlier_cells(self, run: str) -> list[tuple[int, dict[str, Any]]]:
        """Return the cells of an earlier version's execution, which stored them in ``info``."""
        known = self.run(run)
        cells = [] if known is None else self._checked(known["info"].get("cells", []), list, "table cells")
        return [(position, self._checked(cell, dict, "a table cell")) for position, cell in enumerate(cells)]

    def run_going(self, run: str) -> bool:
        """Return whether an execution is open and none began later; cheap, as it reads no spec and no info."""
        newest = self._rows("SELECT id, status FROM run ORDER BY started DESC LIMIT 1")
        return newest == [(run, "running")]

    def run_tasks(self, run: str, after: int = -1) -> list[tuple[int, TaskId, bool, str | None]]:
        """Return (position, task, cached, state) of a run's tasks with position > ``after``."""
        rows = self._rows(
            "SELECT position, task, cached, state FROM run_task WHERE run=? AND position>? ORDER BY position",
            (run, after),
        )
        return [(p, TaskId(self._checked(t, str, "a task's id")), bool(c), s) for p, t, c, s in rows]

    # Studies and mirrored entries

    def trials(self, study: str) -> dict[int, dict[str, Any]]:
        """Return number -> document of a study's trials, in order."""
        rows = self._rows("SELECT number, document FROM trial WHERE study=? ORDER BY number", (study,))
        return {self._checked(n, int, "a trial's number"): self._decoded(text, dict, "a trial") for n, text in rows}

    def studies(self) -> list[str]:
        """Return the names of all studies with trials in this store."""
        rows = self._rows("SELECT DISTINCT study FROM trial ORDER BY study")
        return [self._checked(name, str, "a study's name") for (name,) in rows]

    def sent(self, destination: str, experiment: str) -> dict[TaskId, str]:
        """Return task -> MLflow run of all entries sent to ``destination`` under ``experiment``."""
        rows = self._rows(
            "SELECT task, mlflow_run FROM sent WHERE destination=? AND experiment=?", (destination, experiment)
        )
        return {TaskId(t): r for t, r in rows}
