"""A journal on PostgreSQL that several drivers share: each task is run by one of them.

A driver holds an advisory lock for its run and for every task that it runs. The server releases them when the
driver's session ends in any way, so tasks of a killed driver are free at once.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from wmarena.orchestrator.files.errors import StoreBusy
from wmarena.orchestrator.files.locks import WAIT, ask_until
from wmarena.orchestrator.journal.journal import Journal
from wmarena.orchestrator.journal.migrations import migrate
from wmarena.orchestrator.journal.postgres import PostgresConnection
from wmarena.orchestrator.plan.evidence import Lease, Record
from wmarena.orchestrator.plan.task import Task, TaskId


class PostgresJournal(Journal):
    """The journal at a ``postgresql://`` address."""

    shared = True
    _way_out = "check that its server can be reached and that its user may create tables"
    _db: PostgresConnection  # type: ignore[assignment]

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._settled: set[TaskId] = set()

    def _connect(self, address: object) -> PostgresConnection:  # type: ignore[override]
        return PostgresConnection(str(address))

    def _prepare(self) -> None:
        """Create or migrate the tables under a lock, because several drivers may start together."""
        self._db.lock("schema")
        try:
            self._db.execute("CREATE TABLE IF NOT EXISTS journal_format (format INTEGER PRIMARY KEY) WITHOUT ROWID")
            migrate(self._db, self._path, self._format, self._set_format)
        finally:
            self._db.unlock(["schema"])

    def _format(self) -> int:
        ((found,),) = self._db.execute("SELECT COALESCE(MAX(format), 0) FROM journal_format").fetchall()
        return int(found)

    def _set_format(self, number: int) -> None:
        self._db.execute("DELETE FROM journal_format")
        self._db.execute("INSERT INTO journal_format VALUES (?)", (number,))

    # Leases

    def claim(self, ids: Sequence[TaskId]) -> Lease:
        with self._store_errors():
            mine = {TaskId(name) for name in self._db.try_lock(ids)}
        # Another driver may have finished a task and released its lock since this one last looked.
        done = self.finished(mine)
        self._unlock(done)
        return Lease(mine - done.keys(), done)

    def record(self, run: str, task: Task, record: Record, trace: str = "") -> None:
        self._settled.add(task.id)
        super().record(run, task, record, trace)

    def flush(self) -> None:
        super().flush()
        self._unlock(self._settled)
        self._settled.clear()

    def _unlock(self, names: Iterable[str]) -> None:
        with self._store_errors():
            self._db.unlock(names)

    # Runs

    def _interrupt_others(self, run: str) -> None:
        """Mark runs whose driver has ended: their lock is free."""
        for (other,) in self._db.execute("SELECT id FROM run WHERE status='running'").fetchall():
            if not self._db.holds(_run(other)) and self._db.try_lock([_run(other)]):
                self._db.execute("UPDATE run SET status='interrupted' WHERE id=?", (other,))
                self._db.unlock([_run(other)])
        self._db.lock(_run(run))

    def finish_run(self, run: str, status: str) -> None:
        super().finish_run(run, status)
        self._unlock([_run(run)])

    def run_going(self, run: str) -> bool:
        """Return whether its driver holds its lock."""
        if self._db.holds(_run(run)):
            return True
        if self._rows("SELECT status FROM run WHERE id=?", (run,)) != [("running",)]:
            return False
        with self._store_errors():
            gone = self._db.try_lock([_run(run)])
            self._db.unlock(gone)
        return not gone

    @contextmanager
    def holding(self, what: str, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
        def granted() -> bool:
            with self._store_errors():
                return bool(self._db.try_lock([what]))

        if not granted():
            if waiting is None:
                raise StoreBusy(f"expected {what} free, got one that another driver is running; {WAIT} when it is")
            waiting(f"waiting for {what}, which another driver of this journal is running")
            ask_until(granted)
        try:
            yield
        finally:
            self._unlock([what])

    @contextmanager
    def exclusive(self, what: str) -> Iterator[None]:
        with self._store_errors():
            self._db.lock(what)
        try:
            yield
        finally:
            self._unlock([what])


def _run(run: str) -> str:
    return f"run {run}"
