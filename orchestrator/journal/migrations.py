"""The journal's tables, as a list of numbered changes.

A journal stores the number of changes applied to it. Opening it applies the rest, in order and in one transaction: a
process killed meanwhile leaves the journal unchanged. Statements are written for SQLite; ``postgres.py`` translates
them. Append a change; never edit a released one.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from wmarena.orchestrator.files.errors import StoreError

# Long rows (`task`, `run_cell`, `trial`) have row ids: they are appended, and only the index is sorted.
_FIRST_TABLES = """
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

# SEMANTICS of a store's earlier tasks: task ids cover it, so another number means other ids.
_SEMANTICS = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO meta SELECT 'semantics', '1' WHERE EXISTS (SELECT 1 FROM task WHERE state='done');
"""

MIGRATIONS: list[str] = [
    _FIRST_TABLES,
    # Format 1 did not change when `run_cell` and the index were added: the first journals lack them.
    _FIRST_TABLES + _SEMANTICS,
]
"""Migration from each format to the next; no statement contains a semicolon."""


class Connection(Protocol):
    """The part of ``sqlite3.Connection`` that a migration needs."""

    @property
    def in_transaction(self) -> bool:
        """True between BEGIN and its end."""

    def execute(self, statement: str, values: Sequence[Any] = ..., /) -> Any:
        """Run one statement."""


def migrate(db: Connection, name: object, number: Callable[[], int], stamp: Callable[[int], None]) -> None:
    """Migrate a journal to this version's format.

    Args:
        name: the journal in messages.
        number: reads its format; 0 for an empty journal.
        stamp: writes its format inside a transaction.

    Raises:
        StoreError: a newer version wrote it.
        sqlite3.Error: it cannot be read or written; it is unchanged.
    """
    newest = len(MIGRATIONS)
    if _known(name, number()) == newest:
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        # Read again: another process may have migrated it while this one waited for the lock.
        for migration in MIGRATIONS[max(_known(name, number()), 0) :]:
            for statement in filter(None, map(str.strip, migration.split(";"))):
                db.execute(statement)
        stamp(newest)
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def _known(name: object, found: int) -> int:
    """Return the format of a journal; refuse one that only a newer version knows."""
    newest = len(MIGRATIONS)
    if found > newest:
        raise StoreError(
            f"expected a journal of format {newest} or older, got {name} of format {found}, which a newer version of "
            "WMArena wrote; use that version, or another --store or --journal"
        )
    return found
