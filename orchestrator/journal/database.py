"""The journal's file: its tables, its connection, whole transactions."""

import json
import math
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from wmarena.orchestrator.files.addresses import shown
from wmarena.orchestrator.store.artifacts import StoreError

T = TypeVar("T")

# Of a rotten file, even sqlite3's own message may be no text.
_FAULTS = (sqlite3.Error, UnicodeDecodeError)

_YEAR_10000 = 253_402_300_800

# Rows of `task`, `run_cell`, `trial` are long: with a row id they are appended, and only what finds them is in order.
SCHEMA = """
CREATE TABLE IF NOT EXISTS task (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, label TEXT NOT NULL, workload TEXT NOT NULL, scheme TEXT NOT NULL,
    attack TEXT NOT NULL, seed INTEGER NOT NULL, identity TEXT NOT NULL,
    state TEXT NOT NULL, attempt INTEGER NOT NULL, worker TEXT NOT NULL, finished REAL NOT NULL, seconds REAL NOT NULL,
    result TEXT, error TEXT, trace TEXT, caveats TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS task_seconds ON task (state, kind, workload, scheme, attack, seconds);
CREATE TABLE IF NOT EXISTS attempt (
    task TEXT NOT NULL, run TEXT NOT NULL, attempt INTEGER NOT NULL, worker TEXT NOT NULL, state TEXT NOT NULL,
    finished REAL NOT NULL, seconds REAL NOT NULL, error TEXT
);
CREATE TABLE IF NOT EXISTS run (
    id TEXT PRIMARY KEY, experiment TEXT NOT NULL, started REAL NOT NULL, finished REAL, status TEXT NOT NULL,
    spec TEXT NOT NULL, info TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS run_task (
    run TEXT NOT NULL, position INTEGER NOT NULL, task TEXT NOT NULL, cached INTEGER NOT NULL, state TEXT,
    PRIMARY KEY (run, position)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS run_cell (
    run TEXT NOT NULL, position INTEGER NOT NULL, cell TEXT NOT NULL, PRIMARY KEY (run, position)
);
CREATE TABLE IF NOT EXISTS trial (
    study TEXT NOT NULL, number INTEGER NOT NULL, document TEXT NOT NULL, PRIMARY KEY (study, number)
);
CREATE TABLE IF NOT EXISTS sent (
    destination TEXT NOT NULL, experiment TEXT NOT NULL, task TEXT NOT NULL, mlflow_run TEXT NOT NULL,
    PRIMARY KEY (destination, experiment, task)
) WITHOUT ROWID;
"""

_CACHE_KIB = 8_000
_CHECKPOINT_PAGES = 4_000

FORMAT = 1
"""Raise when a table changes its meaning."""


class Database:
    """One SQLite connection in WAL mode; a commit is durable against a killed process, not against a lost machine.

    Raises:
        StoreError: the file cannot be read or written, or is of a newer format.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = path if isinstance(path, Path) else shown(path)
        try:
            self._db = self._connect(path)
            self._prepare()
        except _FAULTS as error:
            way_out = "free space" if _is_full(error) else self._way_out
            raise StoreError(
                f"expected a journal that can be read and written, got {self._path} ({error}); {way_out}"
            ) from None

    _way_out = "move it away: what is finished is found again by its artifacts"

    def _connect(self, address: Path | str) -> sqlite3.Connection:
        return sqlite3.connect(address, isolation_level=None, check_same_thread=False, timeout=20.0)

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        # Ids are random, so rows of a large plan land on pages all over the file: these stay at hand, and a page that
        # is changed often goes back into the file once.
        self._db.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
        self._db.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
        (found,) = self._db.execute("PRAGMA user_version").fetchone()
        if found > FORMAT:
            raise sqlite3.DatabaseError(f"format {found}, written by a newer version that knows more than {FORMAT}")
        self._db.executescript(SCHEMA)
        if not found:
            self._db.execute(f"PRAGMA user_version={FORMAT}")

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query.

        Raises:
            StoreError: the file cannot be read.
        """
        with self._asking():
            return self._db.execute(query, values).fetchall()

    def _decoded(self, text: object, kind: type[T], what: str) -> T:
        """JSON of a column, of the type that was written there.

        Raises:
            StoreError: it is something else.
        """
        try:
            value = json.loads(text)  # type: ignore[arg-type]
        except (TypeError, ValueError, RecursionError):
            value = None
        return self._checked(value, kind, what)

    def _checked(self, value: object, kind: type[T], what: str) -> T:
        """A column of the type that was written there: SQLite itself would hold anything."""
        number = kind is float and isinstance(value, int) and abs(value) < 2**53
        if not (isinstance(value, kind) or number) or (isinstance(value, float) and not math.isfinite(value)):
            raise self._unreadable(f"{what} that is no {kind.__name__}")
        return value  # type: ignore[return-value]

    def _moment(self, value: object, what: str) -> None:
        """Seconds since 1970 that a calendar has a date for."""
        if not 0 <= self._checked(value, float, what) < _YEAR_10000:
            raise self._unreadable(f"{what} that is no date")

    def _unreadable(self, what: str) -> StoreError:
        return StoreError(f"expected a journal as runs write it, got {self._path} with {what}; {self._way_out}")

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """What goes wrong inside is a StoreError."""
        try:
            yield
        except _FAULTS as error:
            raise self._unreadable(str(error)) from None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except _FAULTS as error:
            raise StoreError(
                f"expected to write the journal {self._path}, got: {error}; see that there is room and that it is ours"
            ) from error
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()


def _is_full(error: BaseException) -> bool:
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
