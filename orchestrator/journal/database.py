"""The journal's database: connection, transactions, checks of column types. Its tables are in ``migrations.py``."""

import json
import math
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from wmarena.orchestrator.files.addresses import shown
from wmarena.orchestrator.files.errors import StoreError
from wmarena.orchestrator.journal.migrations import migrate

T = TypeVar("T")

# For a damaged file, even sqlite3's message may be undecodable.
_FAULTS = (sqlite3.Error, UnicodeDecodeError)

_YEAR_10000 = 253_402_300_800

_CACHE_KIB = 8_000
_CHECKPOINT_PAGES = 4_000


class Database:
    """One SQLite connection in WAL mode; a commit survives a killed process, not a power failure.

    Raises:
        StoreError: the file cannot be read or written, or has a newer format.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = path if isinstance(path, Path) else shown(path)
        try:
            self._db = self._connect(path)
            self._prepare()
        except _FAULTS as error:
            full = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
            way_out = "free space" if full else self._way_out
            raise StoreError(
                f"expected a journal that can be read and written, got {self._path} ({error}); {way_out}"
            ) from None

    _way_out = "move it away: finished tasks are found again by their artifacts"

    def _connect(self, address: Path | str) -> sqlite3.Connection:
        return sqlite3.connect(address, isolation_level=None, check_same_thread=False, timeout=20.0)

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        # Ids are random, so a large plan touches pages all over the file: keep them cached, and write a page that is
        # changed often back only once.
        self._db.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
        self._db.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
        migrate(self._db, self._path, self._format, self._set_format)

    def _format(self) -> int:
        """Return the number of applied migrations; SQLite stores it in the file's header."""
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def _set_format(self, number: int) -> None:
        self._db.execute(f"PRAGMA user_version={number}")

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with self._store_errors():
            return self._db.execute(query, values).fetchall()

    def _decoded(self, text: object, kind: type[T], what: str) -> T:
        """Decode a JSON column and check its type."""
        try:
            value = json.loads(text)  # type: ignore[arg-type]
        except (TypeError, ValueError, RecursionError):
            value = None
        return self._checked(value, kind, what)

    def _checked(self, value: object, kind: type[T], what: str) -> T:
        """Check the type of a column: SQLite stores any type."""
        number = kind is float and isinstance(value, int) and abs(value) < 2**53
        if not (isinstance(value, kind) or number) or (isinstance(value, float) and not math.isfinite(value)):
            raise self._unreadable(f"{what} that is no {kind.__name__}")
        return value  # type: ignore[return-value]

    def _moment(self, value: object, what: str) -> None:
        """Check that a column is a time between 1970 and the year 10000."""
        if not 0 <= self._checked(value, float, what) < _YEAR_10000:
            raise self._unreadable(f"{what} that is no date")

    def _unreadable(self, what: str) -> StoreError:
        return StoreError(f"expected a valid journal, got {self._path} with {what}; {self._way_out}")

    @contextmanager
    def _store_errors(self) -> Iterator[None]:
        """Turn database errors inside into StoreError."""
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
                f"expected to write the journal {self._path}, got: {error}; free space and check its permissions"
            ) from error
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def close(self) -> None:
        """Close the connection."""
        self._db.close()
