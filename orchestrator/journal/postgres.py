"""PostgreSQL behind the part of ``sqlite3.Connection`` that the journal uses, and advisory locks.

Statements are written once, for SQLite, and translated here; errors are raised as sqlite3's, so that the journal
handles one kind.
"""

import hashlib
import re
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import psycopg
from psycopg.pq import TransactionStatus

T = TypeVar("T")

_CONNECT_S = 10
_UPSERT = re.compile(r"INSERT OR REPLACE INTO (\w+) ")
_TABLE = re.compile(r"CREATE TABLE IF NOT EXISTS (\w+) \((.*)\)( WITHOUT ROWID)?", re.DOTALL)
_OPTIONS: dict[str, Any] = {"keepalives": 1, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}


class PostgresConnection:
    """One session of a PostgreSQL server.

    Args:
        url: ``postgresql://…``; libpq adds missing parts (PGPASSWORD, ~/.pgpass, services).

    Raises:
        sqlite3.Error: it cannot be reached, read or written.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._locks: dict[str, int] = {}
        self._conflicts: dict[str, str] = {}
        self._db = self._connected()

    def _connected(self) -> psycopg.Connection[tuple[Any, ...]]:
        return self._sqlite_errors(
            lambda: psycopg.connect(
                self._url, autocommit=True, connect_timeout=_CONNECT_S, application_name="wmarena", **_OPTIONS
            )
        )

    def _sqlite_errors(self, do: Callable[[], T]) -> T:
        try:
            return do()
        except (psycopg.Error, UnicodeError, OSError) as error:
            raise sqlite3.OperationalError(" ".join(str(error).split())) from None

    def _conflict(self, table: str) -> str:
        """Return the ON CONFLICT clause that implements ``INSERT OR REPLACE`` for a table."""
        columns = self.execute(
            "SELECT column_name FROM information_schema.columns WHERE table_name=? AND table_schema=current_schema() "
            "AND column_name <> 'rowid'",
            (table,),
        )
        keys = self.execute(
            "SELECT a.attname FROM pg_index i JOIN pg_attribute a ON a.attrelid=i.indrelid AND a.attnum=ANY(i.indkey) "
            "WHERE i.indrelid=CAST(? AS regclass) AND i.indisprimary",
            (table,),
        )
        by = ",".join(name for (name,) in keys.fetchall())
        values = ",".join(f"{name}=EXCLUDED.{name}" for (name,) in columns.fetchall())
        return f" ON CONFLICT ({by}) DO UPDATE SET {values}"

    # The interface of sqlite3.Connection

    @property
    def in_transaction(self) -> bool:
        """True between BEGIN and its end."""
        return self._db.info.transaction_status not in (TransactionStatus.IDLE, TransactionStatus.UNKNOWN)

    def execute(self, statement: str, values: Sequence[object] = ()) -> psycopg.Cursor[tuple[Any, ...]]:
        """Run one statement; reconnect first if the session was lost."""
        self._reconnect()
        translated = self._translated(statement)
        return self._sqlite_errors(lambda: self._db.execute(translated.encode(), _plain(values) or None))

    def executemany(self, statement: str, rows: Iterable[Sequence[object]]) -> None:
        """Run one statement for many rows."""
        found = [_plain(row) for row in rows]
        if found:
            self._sqlite_errors(lambda: self._db.cursor().executemany(self._translated(statement).encode(), found))

    def close(self) -> None:
        """End the session, which releases its locks."""
        self._db.close()

    def _translated(self, statement: str) -> str:
        if statement.startswith("BEGIN"):
            return "BEGIN"
        if statement.startswith("CREATE TABLE"):
            return _TABLE.sub(_table, statement)
        upsert = _UPSERT.match(statement)
        if upsert is not None:
            name = upsert[1]
            self._conflicts[name] = self._conflicts.get(name) or self._conflict(name)
            statement = statement.replace("INSERT OR REPLACE", "INSERT", 1) + self._conflicts[name]
        return statement.replace("%", "%%").replace("?", "%s") if "?" in statement else statement

    def _reconnect(self) -> None:
        if not (self._db.closed or self._db.broken):
            return
        self._db = self._connected()
        # The server released the old session's locks: take them again before another driver does.
        locks, self._locks = self._locks, {}
        self.try_lock(list(locks))

    # Locks, released when the session ends in any way

    def try_lock(self, names: Sequence[str]) -> set[str]:
        """Try to lock ``names`` without waiting; return those that this session holds."""
        wanted = [name for name in names if name not in self._locks]
        if wanted:
            numbers = [_number(name) for name in wanted]
            rows = self.execute("SELECT pg_try_advisory_lock(n) FROM unnest(CAST(? AS bigint[])) AS n", (numbers,))
            self._locks |= dict.fromkeys((n for n, (got,) in zip(wanted, rows.fetchall(), strict=True) if got), 1)
        return {name for name in names if name in self._locks}

    def holds(self, name: str) -> bool:
        """Return whether this session holds ``name``."""
        return name in self._locks

    def lock(self, name: str) -> None:
        """Wait until no other session holds ``name``."""
        self.execute("SELECT pg_advisory_lock(?)", (_number(name),))
        self._locks[name] = 1

    def unlock(self, names: Iterable[str]) -> None:
        """Release those of ``names`` that this session holds."""
        mine = [name for name in names if self._locks.pop(name, 0)]
        if mine:
            numbers = [_number(name) for name in mine]
            self.execute("SELECT pg_advisory_unlock(n) FROM unnest(CAST(? AS bigint[])) AS n", (numbers,))


def _number(name: str) -> int:
    """Return the 64-bit number of a lock in PostgreSQL."""
    return int.from_bytes(hashlib.sha256(f"wmarena {name}".encode()).digest()[:8], signed=True)


def _plain(values: Sequence[object]) -> list[object]:
    """Replace what PostgreSQL text cannot hold: NUL and lone surrogates."""
    return [
        v.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode() if isinstance(v, str) else v for v in values
    ]


def _table(found: re.Match[str]) -> str:
    """Translate a table's types, and add the row ids that SQLite has implicitly."""
    columns = found[2].replace("INTEGER", "BIGINT").replace("REAL", "DOUBLE PRECISION")
    rowid = "" if found[3] else ", rowid BIGSERIAL"
    return f"CREATE TABLE IF NOT EXISTS {found[1]} ({columns}{rowid})"
