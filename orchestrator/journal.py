"""The system of record: one SQLite file per store (WAL, commits coalesced).

Ray's state, the MLflow database and every report can be thrown away and rebuilt from here and the artifacts. The
driver writes tasks and runs, a recorder what it has mirrored; each through its own connection.
"""

import contextlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Self

from orchestrator.artifacts import StoreError
from orchestrator.database import Database
from orchestrator.evidence import Claim, Record
from orchestrator.plan import Cell, Plan
from orchestrator.retry import QUARANTINED
from orchestrator.task import State, Task, TaskId

_COLUMNS = (
    *("id", "kind", "label", "workload", "scheme", "attack", "seed", "identity", "state", "attempt", "worker"),
    *("finished", "seconds", "result", "error", "caveats"),
)

_RUN_COLUMNS = ("id", "experiment", "started", "finished", "status", "spec", "info")

_STATES = frozenset(State)

FLUSH_S = 0.05
FLUSH_ROWS = 512
"""So many rows are written at once even within ``FLUSH_S``: each transaction rewrites the pages that it touches."""
_MOST_VARIABLES = 30_000


class Journal(Database):
    """Tasks, attempts, runs. A context manager: leaving it writes what is pending.

    Attributes:
        shared: True if several drivers may use it at the same time.
    """

    shared = False

    def __init__(self, path: Path | str) -> None:
        super().__init__(path)
        self._tasks: list[tuple[Any, ...]] = []
        self._attempts: list[tuple[Any, ...]] = []
        self._run_states: list[tuple[Any, ...]] = []
        self._positions: dict[str, dict[TaskId, int]] = {}
        self._oldest = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # An error that is on its way out says more than the one that it causes here.
        with contextlib.suppress(StoreError) if error is not None else contextlib.nullcontext():
            self.close()

    def close(self) -> None:
        """Write what is pending and let go of the file."""
        try:
            self.flush()
        finally:
            super().close()

    # Tasks

    def finished(self, ids: Iterable[TaskId]) -> dict[TaskId, Record]:
        """Records of those among ``ids`` that are done, as cached."""
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
        """Rows of ``query`` for any number of ids, which stand at ``{marks}``."""
        wanted = list(ids)
        for start in range(0, len(wanted), _MOST_VARIABLES):
            part = wanted[start : start + _MOST_VARIABLES]
            yield from self._rows(query.format(marks=",".join("?" * len(part))), part)

    def _caveats(self, text: object) -> list[str]:
        return [self._checked(c, str, "a caveat") for c in self._decoded(text, list, "caveats")]

    def record(self, run: str, task: Task, record: Record, trace: str = "") -> None:
        """Note that a task was settled; written within 50 ms, or at ``flush``; never fails."""
        now = time.time()
        result = None if record.result is None else json.dumps(record.result)
        self._tasks.append(
            (
                task.id,
                task.kind.value,
                task.label,
                task.workload,
                task.scheme,
                task.attack,
                task.seed,
                task.text,
                record.state.value,
                record.attempt,
                record.worker,
                now,
                record.seconds,
                result,
                record.error,
                trace or None,
                json.dumps(record.caveats) if record.caveats else "[]",
            )
        )
        self._run_states.append((record.state.value, run, self._position(run, task.id)))
        if record.attempt and not record.cached:
            self.attempt(run, task.id, record, now)
        self._note(now)

    def attempt(self, run: str, task_id: TaskId, record: Record, now: float | None = None) -> None:
        """Note one attempt, also one that will be repeated; never fails."""
        now = time.time() if now is None else now
        self._attempts.append(
            (task_id, run, record.attempt, record.worker, record.state.value, now, record.seconds, record.error)
        )
        self._note(now)

    def _note(self, now: float) -> None:
        # What cannot be written stays pending: the next `tick` says so.
        with contextlib.suppress(StoreError):
            self._tick(now)

    def _position(self, run: str, task_id: TaskId) -> int | None:
        """Where a task stands in a run: held here, because an index over random ids costs a large plan more."""
        if run not in self._positions:
            self._positions[run] = {t: position for position, t, _, _ in self.run_tasks(run)}
        return self._positions[run].get(task_id)

    def _tick(self, now: float) -> None:
        if not self._oldest:
            self._oldest = now
        # A clock that was set back must not keep rows waiting.
        if len(self._tasks) >= FLUSH_ROWS or not 0 <= now - self._oldest < FLUSH_S:
            self.flush()

    @property
    def pending(self) -> bool:
        """True if something waits to be written: call ``tick`` within ``FLUSH_S``."""
        return bool(self._oldest)

    def tick(self) -> None:
        """Write what has been pending for 50 ms.

        Raises:
            StoreError: it cannot be written; it stays pending.
        """
        if self._oldest:
            self._tick(time.time())

    def flush(self) -> None:
        """Write everything pending in one transaction.

        Raises:
            StoreError: it cannot be written; it stays pending.
        """
        if not (self._tasks or self._attempts or self._run_states):
            return
        with self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO task VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)", self._tasks)
            self._db.executemany("INSERT INTO attempt VALUES (?,?,?,?,?,?,?,?)", self._attempts)
            self._db.executemany("UPDATE run_task SET state=? WHERE run=? AND position=?", self._run_states)
        self._tasks.clear()
        self._attempts.clear()
        self._run_states.clear()
        self._oldest = 0.0

    def forget(self, ids: Sequence[TaskId]) -> None:
        """Drop tasks whose artifacts are gone or damaged, so that they are computed again."""
        self.flush()
        with self._transaction():
            self._db.executemany("DELETE FROM task WHERE id=?", [(i,) for i in ids])

    def quarantined(self) -> dict[TaskId, str]:
        """Tasks that a run gave up as poison, with what it said."""
        rows = self._rows("SELECT id, error FROM task WHERE state='failed' AND error LIKE ?", (f"{QUARANTINED}%",))
        return {TaskId(task_id): error for task_id, error in rows}

    def durations(self) -> dict[tuple[str, str, str, str], float]:
        """Median seconds of done tasks by (kind, workload, scheme, attack)."""
        found: dict[tuple[str, str, str, str], list[float]] = {}
        rows = self._rows("SELECT kind, workload, scheme, attack, seconds FROM task WHERE state='done'")
        for kind, workload, scheme, attack, seconds in rows:
            found.setdefault((kind, workload, scheme, attack), []).append(self._checked(seconds, float, "seconds"))
        return {key: median(values) for key, values in found.items()}

    def seconds(self, ids: Iterable[TaskId]) -> dict[TaskId, float]:
        """What those among ``ids`` took that are done."""
        rows = self._of("SELECT id, seconds FROM task WHERE state='done' AND id IN ({marks})", ids)
        return {TaskId(task_id): self._checked(seconds, float, "seconds") for task_id, seconds in rows}

    def gpu_peaks(self) -> dict[tuple[str, str, str, str], tuple[int, int]]:
        """(bytes taken at most, bytes that the GPU has) of done tasks by (kind, workload, scheme, attack).

        Of several the one that took the largest part; what ran on a CPU says nothing about a GPU.
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
        """Whole rows (identity and result decoded) of settled tasks, for recorders and listings."""
        out: list[dict[str, Any]] = []
        for task_id in ids:
            for row in self._rows(f"SELECT {','.join(_COLUMNS)} FROM task WHERE id=?", (task_id,)):
                out.append(self._task_row(dict(zip(_COLUMNS, row, strict=True))))
        return out

    def _task_row(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row with identity, result and caveats decoded, all columns of their types."""
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
        """Distinct configurations of what was done with a scheme."""
        rows = self._rows("SELECT identity FROM task WHERE state='done' AND kind=? AND scheme=?", (kind, scheme))
        found = [self._decoded(text, dict, "an identity").get("config") for (text,) in rows]
        return [json.loads(text) for text in sorted({json.dumps(config, sort_keys=True) for config in found})]

    # Runs

    def start_run(
        self, run: str, experiment: str, spec: str, info: Mapping[str, Any], plan: Plan, cached: set[TaskId]
    ) -> None:
        """Open a run: its spec (text), facts, tasks in planning order, which were finished before, table cells.

        The caller holds the store, so a run that still counts as running was killed.
        """
        with self._transaction():
            self._interrupt_others(run)
            self._db.execute(
                "INSERT INTO run VALUES (?,?,?,NULL,'running',?,?)",
                (run, experiment, time.time(), spec, json.dumps(dict(info))),
            )
            self._add_tasks(run, list(plan.tasks), cached, 0)
            self._add_cells(run, plan.cells, 0)

    def _interrupt_others(self, run: str) -> None:
        """``run`` begins: what still counts as running was killed."""
        self._db.execute("UPDATE run SET status='interrupted' WHERE status='running'")

    def claim(self, ids: Sequence[TaskId]) -> Claim:
        """Ask for tasks before working on them; each is let go once it is settled and written."""
        return Claim(set(ids), {})

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Do something that no other process does on this journal meanwhile, as far as the journal is shared."""
        yield

    def extend_run(self, run: str, new: Sequence[TaskId], cached: set[TaskId], cells: Sequence[Cell] = ()) -> None:
        """Tasks that joined while the run was under way, and the table cells that they answer."""
        with self._transaction():
            self._add_tasks(run, new, cached, self._end("run_task", run))
            self._add_cells(run, cells, self._end("run_cell", run))

    def _end(self, table: str, run: str) -> int:
        """The first free position."""
        ((position,),) = self._rows(f"SELECT COALESCE(MAX(position) + 1, 0) FROM {table} WHERE run=?", (run,))
        return int(position)

    def _add_tasks(self, run: str, ids: Sequence[TaskId], cached: set[TaskId], start: int) -> None:
        self._positions.setdefault(run, {}).update((t, i) for i, t in enumerate(ids, start))
        rows = ((run, i, t, int(t in cached), "done" if t in cached else None) for i, t in enumerate(ids, start))
        self._db.executemany("INSERT INTO run_task VALUES (?,?,?,?,?)", rows)

    def _add_cells(self, run: str, cells: Iterable[Cell], start: int) -> None:
        """One row each: a plan of many never stands in one text, and one that grows adds to what is there."""
        rows = ((run, i, json.dumps(cell.document())) for i, cell in enumerate(cells, start))
        self._db.executemany("INSERT INTO run_cell VALUES (?,?,?)", rows)

    def finish_run(self, run: str, status: str) -> None:
        """Close a run: done, failed, interrupted."""
        self.flush()
        with self._transaction():
            self._db.execute("UPDATE run SET finished=?, status=? WHERE id=?", (time.time(), status, run))
        self._positions.pop(run, None)

    def runs(self, experiment: str | None = None) -> list[dict[str, Any]]:
        """Executions, newest first: id, experiment, started, finished, status, spec, info."""
        where, values = ("WHERE experiment=?", (experiment,)) if experiment else ("", ())
        rows = self._rows(f"SELECT {','.join(_RUN_COLUMNS)} FROM run {where} ORDER BY started DESC", values)
        return [self._run_row(dict(zip(_RUN_COLUMNS, row, strict=True))) for row in rows]

    def run(self, run: str) -> dict[str, Any] | None:
        """One execution with the fields of ``runs``, or None."""
        for row in self._rows(f"SELECT {','.join(_RUN_COLUMNS)} FROM run WHERE id=?", (run,)):
            return self._run_row(dict(zip(_RUN_COLUMNS, row, strict=True)))
        return None

    def _run_row(self, row: dict[str, Any]) -> dict[str, Any]:
        for name in ("id", "experiment", "status", "spec"):
            self._checked(row[name], str, f"a run's {name}")
        self._moment(row["started"], "a run's start")
        if row["finished"] is not None:
            self._moment(row["finished"], "a run's end")
        return {**row, "info": self._decoded(row["info"], dict, "a run's facts")}

    def run_cells(self, run: str, after: int = -1) -> list[tuple[int, dict[str, Any]]]:
        """(position, table cell as JSON values) of a run's cells with position > ``after``."""
        rows = self._rows(
            "SELECT position, cell FROM run_cell WHERE run=? AND position>? ORDER BY position", (run, after)
        )
        found = [(position, self._decoded(cell, dict, "a table cell")) for position, cell in rows]
        return found if found or after >= 0 else self._earlier_cells(run)

    def _earlier_cells(self, run: str) -> list[tuple[int, dict[str, Any]]]:
        """Executions of earlier versions have their cells among the facts."""
        known = self.run(run)
        cells = [] if known is None else self._checked(known["info"].get("cells", []), list, "table cells")
        return [(position, self._checked(cell, dict, "a table cell")) for position, cell in enumerate(cells)]

    def run_going(self, run: str) -> bool:
        """True while an execution is open and none began later: cheap to ask often, whatever its spec and info hold."""
        newest = self._rows("SELECT id, status FROM run ORDER BY started DESC LIMIT 1")
        return newest == [(run, "running")]

    def run_tasks(self, run: str, after: int = -1) -> list[tuple[int, TaskId, bool, str | None]]:
        """(position, task, cached, state) of a run's tasks with position > ``after``."""
        rows = self._rows(
            "SELECT position, task, cached, state FROM run_task WHERE run=? AND position>? ORDER BY position",
            (run, after),
        )
        return [(p, TaskId(self._checked(t, str, "a task's id")), bool(c), s) for p, t, c, s in rows]

    # Trials of studies

    def record_trial(self, study: str, number: int, document: Mapping[str, Any]) -> None:
        """Write what is known of a trial, at once: it is told to the sampler only afterwards."""
        self.flush()
        with self._transaction():
            row = (study, number, json.dumps(dict(document)))
            self._db.execute("INSERT OR REPLACE INTO trial VALUES (?,?,?)", row)

    def trials(self, study: str) -> dict[int, dict[str, Any]]:
        """Number -> document of a study's trials, in order."""
        rows = self._rows("SELECT number, document FROM trial WHERE study=? ORDER BY number", (study,))
        return {self._checked(n, int, "a trial's number"): self._decoded(text, dict, "a trial") for n, text in rows}

    def studies(self) -> list[str]:
        """Names of all studies that this store has trials of."""
        rows = self._rows("SELECT DISTINCT study FROM trial ORDER BY study")
        return [self._checked(name, str, "a study's name") for (name,) in rows]

    # What has been mirrored where

    def sent(self, destination: str, experiment: str) -> dict[TaskId, str]:
        """Task -> MLflow run, for everything already recorded at ``destination`` under ``experiment``."""
        rows = self._rows(
            "SELECT task, mlflow_run FROM sent WHERE destination=? AND experiment=?", (destination, experiment)
        )
        return {TaskId(t): r for t, r in rows}

    def mark_sent(self, destination: str, experiment: str, sent: Mapping[TaskId, str]) -> None:
        """Remember what was mirrored, so that it is mirrored exactly once."""
        rows = [(destination, experiment, t, r) for t, r in sent.items()]
        with self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO sent VALUES (?,?,?,?)", rows)
