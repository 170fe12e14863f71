"""The journal: one SQLite file per store (WAL, commits coalesced).

Ray's state, the MLflow database and every report can be rebuilt from the journal and the artifacts. The driver writes
tasks and runs, a recorder what it has mirrored; each through its own connection.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from wmarena.orchestrator.files.errors import StoreError
from wmarena.orchestrator.journal.reader import JournalReader
from wmarena.orchestrator.plan.evidence import Lease, Record
from wmarena.orchestrator.plan.plan import Cell, Plan
from wmarena.orchestrator.plan.task import Task, TaskId

FLUSH_S = 0.05
FLUSH_ROWS = 512
"""Rows that are written at once even within ``FLUSH_S``: each transaction rewrites the pages that it touches."""


class Journal(JournalReader):
    """Records tasks, attempts, runs and trials. A context manager: leaving it writes pending rows.

    Attributes:
        shared: True if several drivers may use it concurrently.
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

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # The first error is the cause: do not hide it behind one of closing.
        with contextlib.suppress(StoreError) if error is not None else contextlib.nullcontext():
            self.close()

    def close(self) -> None:
        """Write pending rows and close the file."""
        try:
            self.flush()
        finally:
            super().close()

    # Tasks

    def record(self, run: str, task: Task, record: Record, trace: str = "") -> None:
        """Record a settled task; written within 50 ms, or at ``flush``; never fails."""
        now = time.time()
        result = None if record.result is None else json.dumps(record.result)
        caveats = json.dumps(record.caveats) if record.caveats else "[]"
        what = (task.id, task.kind.value, task.label, task.workload, task.scheme, task.attack, task.seed, task.text)
        ended = (record.state.value, record.attempt, record.worker, now, record.seconds)
        self._tasks.append((*what, *ended, result, record.error, trace or None, caveats))
        self._run_states.append((record.state.value, run, self._position(run, task.id)))
        if record.attempt and not record.cached:
            self.attempt(run, task.id, record, now)
        self._try_tick(now)

    def attempt(self, run: str, task_id: TaskId, record: Record, now: float | None = None) -> None:
        """Record one attempt, also one that will be repeated; never fails."""
        now = time.time() if now is None else now
        self._attempts.append(
            (task_id, run, record.attempt, record.worker, record.state.value, now, record.seconds, record.error)
        )
        self._try_tick(now)

    def _try_tick(self, now: float) -> None:
        # Rows that cannot be written stay pending: the next `tick` raises the error.
        with contextlib.suppress(StoreError):
            self._tick(now)

    def _position(self, run: str, task_id: TaskId) -> int | None:
        """Return a task's position in a run; cached here, because a database index over random ids is slower."""
        if run not in self._positions:
            self._positions[run] = {t: position for position, t, _, _ in self.run_tasks(run)}
        return self._positions[run].get(task_id)

    def _tick(self, now: float) -> None:
        if not self._oldest:
            self._oldest = now
        # The bound of 0: a clock that was set back must not delay rows.
        if len(self._tasks) >= FLUSH_ROWS or not 0 <= now - self._oldest < FLUSH_S:
            self.flush()

    @property
    def pending(self) -> bool:
        """True if rows are pending: call ``tick`` within ``FLUSH_S``."""
        return bool(self._oldest)

    def tick(self) -> None:
        """Write rows that have been pending for 50 ms.

        Raises:
            StoreError: it cannot be written; it stays pending.
        """
        if self._oldest:
            self._tick(time.time())

    def flush(self) -> None:
        """Write all pending rows in one transaction.

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
        """Delete tasks whose artifacts are missing or damaged, so that they are computed again."""
        self.flush()
        with self._transaction():
            self._db.executemany("DELETE FROM task WHERE id=?", [(i,) for i in ids])

    # Runs

    def set_semantics(self, number: int) -> None:
        """Store the ``identity.SEMANTICS`` that tasks are computed with from now on."""
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('semantics', ?)", (str(number),))

    def start_run(
        self, run: str, experiment: str, spec: str, info: Mapping[str, Any], plan: Plan, cached: set[TaskId]
    ) -> None:
        """Open a run: its spec (text), facts, tasks in planning order, the cached ones, table cells."""
        with self._transaction():
            self._interrupt_others(run)
            self._db.execute(
                "INSERT INTO run VALUES (?,?,?,NULL,'running',?,?)",
                (run, experiment, time.time(), spec, json.dumps(dict(info))),
            )
            self._add_tasks(run, list(plan.tasks), cached, 0)
            self._add_cells(run, plan.cells, 0)

    def _interrupt_others(self, run: str) -> None:
        """Mark runs in state running as interrupted: the caller holds the store's lock, so their drivers are dead."""
        self._db.execute("UPDATE run SET status='interrupted' WHERE status='running'")

    def claim(self, ids: Sequence[TaskId]) -> Lease:
        """Lease tasks before running them; a lease ends once its task is settled and written."""
        return Lease(set(ids), {})

    @contextmanager
    def exclusive(self, what: str) -> Iterator[None]:
        """Exclude other processes on a shared journal from ``what``."""
        yield

    @contextmanager
    def holding(self, what: str, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
        """Be the only driver of ``what`` on a shared journal; otherwise the store's lock ensures that.

        Args:
            waiting: called with a message before waiting for another driver; None: do not wait.

        Raises:
            StoreBusy: another driver works on it.
        """
        yield

    def extend_run(self, run: str, new: Sequence[TaskId], cached: set[TaskId], cells: Sequence[Cell] = ()) -> None:
        """Add tasks to an open run, and the table cells that they compute."""
        with self._transaction():
            self._add_tasks(run, new, cached, self._end("run_task", run))
            self._add_cells(run, cells, self._end("run_cell", run))

    def _end(self, table: str, run: str) -> int:
        """Return the first free position."""
        ((position,),) = self._rows(f"SELECT COALESCE(MAX(position) + 1, 0) FROM {table} WHERE run=?", (run,))
        return int(position)

    def _add_tasks(self, run: str, ids: Sequence[TaskId], cached: set[TaskId], start: int) -> None:
        self._positions.setdefault(run, {}).update((t, i) for i, t in enumerate(ids, start))
        rows = ((run, i, t, int(t in cached), "done" if t in cached else None) for i, t in enumerate(ids, start))
        self._db.executemany("INSERT INTO run_task VALUES (?,?,?,?,?)", rows)

    def _add_cells(self, run: str, cells: Iterable[Cell], start: int) -> None:
        """Insert one row per cell, so that a large or growing plan is never one text."""
        rows = ((run, i, json.dumps(cell.document())) for i, cell in enumerate(cells, start))
        self._db.executemany("INSERT INTO run_cell VALUES (?,?,?)", rows)

    def finish_run(self, run: str, status: str) -> None:
        """Close a run with status done, failed or interrupted."""
        self.flush()
        with self._transaction():
            self._db.execute("UPDATE run SET finished=?, status=? WHERE id=?", (time.time(), status, run))
        self._positions.pop(run, None)

    # Trials of studies

    def record_trial(self, study: str, number: int, document: Mapping[str, Any]) -> None:
        """Write a trial at once: the sampler gets it only afterwards."""
        self.flush()
        with self._transaction():
            row = (study, number, json.dumps(dict(document)))
            self._db.execute("INSERT OR REPLACE INTO trial VALUES (?,?,?)", row)

    # Mirrored entries

    def mark_sent(self, destination: str, experiment: str, sent: Mapping[TaskId, str]) -> None:
        """Record mirrored entries, so that each is sent exactly once."""
        rows = [(destination, experiment, t, r) for t, r in sent.items()]
        with self._transaction():
            self._db.executemany("INSERT OR REPLACE INTO sent VALUES (?,?,?,?)", rows)
