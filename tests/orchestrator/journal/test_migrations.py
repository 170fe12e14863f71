"""A journal of an earlier format opens with all its rows, a newer one is refused, and no format is half applied."""

import logging
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from tests.orchestrator.toys import World, diamond, named
from wmarena.orchestrator.files.errors import StoreError
from wmarena.orchestrator.journal import migrations
from wmarena.orchestrator.journal.journal import Journal
from wmarena.orchestrator.plan.identity import SEMANTICS
from wmarena.orchestrator.plan.task import State, TaskId

FORMAT_1 = """
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
"""The tables of version 0.1, as its own source had them."""

ROWS = """
INSERT INTO task VALUES ('old', 'train', 'train digits', 'digits', '', '', 0, '{"config": {}}', 'done', 1, 'w', 5.0,
    2.5, '{"accuracy": 0.5}', NULL, NULL, '["a caveat"]');
INSERT INTO attempt VALUES ('old', 'r1', 1, 'w', 'done', 5.0, 2.5, NULL);
INSERT INTO run VALUES ('r1', 'experiment', 1.0, 6.0, 'done', 'spec: text', '{"code_version": "0.1.0"}');
INSERT INTO run_task VALUES ('r1', 0, 'old', 0, 'done');
INSERT INTO run_cell VALUES ('r1', 0, '{"seed": 0}');
INSERT INTO trial VALUES ('study', 3, '{"params": {}}');
INSERT INTO sent VALUES ('there', 'experiment', 'old', 'm1');
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal as version 0.1 left it: one finished run of one task."""
    path = tmp_path / "journal.sqlite"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(f"{FORMAT_1}{ROWS}PRAGMA user_version=1;")
    return path


def content(path: Path) -> tuple[int, list[str]]:
    """Return the format and the content as SQL."""
    with closing(sqlite3.connect(path)) as db:
        (number,) = db.execute("PRAGMA user_version").fetchone()
        return int(number), list(db.iterdump())


def test_an_old_journal_keeps_its_rows(path: Path) -> None:
    """Tasks, runs, cells, trials and marks are read as they were written."""
    old = TaskId("old")
    with Journal(path) as journal:
        record = journal.finished([old])[old]

        assert (record.state, record.result, record.caveats) == (State.DONE, {"accuracy": 0.5}, ("a caveat",))
        assert [(r["id"], r["status"]) for r in journal.runs()] == [("r1", "done")]
        assert journal.run_tasks("r1") == [(0, old, False, "done")]
        assert journal.run_cells("r1") == [(0, {"seed": 0})]
        assert journal.trials("study") == {3: {"params": {}}}
        assert journal.sent("there", "experiment") == {old: "m1"}
        assert journal.semantics() == 1
    assert content(path)[0] == len(migrations.MIGRATIONS)


def test_tables_that_joined_format_1_later_are_made(path: Path) -> None:
    """The first journals had no cells of their own and no index; they were of format 1 all the same."""
    with closing(sqlite3.connect(path)) as db:
        db.executescript("DROP TABLE run_cell; DROP INDEX task_seconds;")
    with Journal(path) as journal:
        assert journal.run_cells("r1") == []
        assert journal.finished([TaskId("old")])


def test_opening_a_journal_of_this_format_writes_nothing(path: Path, tmp_path: Path) -> None:
    """Whether it was migrated or is new: another process may hold the transaction meanwhile."""
    for file in (path, tmp_path / "new.sqlite"):
        Journal(file).close()
        before = content(file)
        with closing(sqlite3.connect(file)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            Journal(file).close()

        assert content(file) == before


def test_a_failed_migration_leaves_the_old_journal(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of its statements done, the next one fails: tables, rows and format are as before, and it opens later."""
    before = content(path)
    broken = "CREATE TABLE IF NOT EXISTS more (a TEXT); DELETE FROM task; DROP TABLE trial; SELECT x FROM nowhere"
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "MIGRATIONS", [*migrations.MIGRATIONS, broken])
        with pytest.raises(StoreError, match=r"expected a journal that can be read and written, got .*nowhere"):
            Journal(path)

    assert content(path) == before
    with Journal(path) as journal:
        assert journal.finished([TaskId("old")])


KILLED = """
import os, sys
from pathlib import Path
from wmarena.orchestrator.journal.database import Database
from wmarena.orchestrator.journal.journal import Journal
Database._set_format = lambda self, number: os._exit(9)
Journal(Path(sys.argv[1]))
"""


def test_a_killed_migration_leaves_the_old_journal(path: Path) -> None:
    """The process ends after all statements and before the format is written: nothing of it stays."""
    before = content(path)
    environment = dict(os.environ)
    ran = subprocess.run([sys.executable, "-c", KILLED, str(path)], env=environment, check=False)

    assert ran.returncode == 9
    assert content(path) == before


def test_several_connections_migrate_one_journal(path: Path) -> None:
    """Each opens it, and one of them has migrated it."""
    with ThreadPoolExecutor(8) as pool:
        journals = list(pool.map(Journal, [path] * 8))
    for journal in journals:
        assert journal.finished([TaskId("old")])
        journal.close()


def test_a_newer_journal_is_refused(path: Path) -> None:
    """The message names both formats and the ways out; the journal is as it was."""
    newer = len(migrations.MIGRATIONS) + 1
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version={newer}")
    before = content(path)
    with pytest.raises(StoreError, match=rf"format {newer - 1} or older, got .* of format {newer}, .*use that version"):
        Journal(path)

    assert content(path) == before


def test_a_journal_that_a_newer_version_migrates_first_is_refused(path: Path) -> None:
    """It did so while this process waited for the lock: the newer format must not be stamped over."""
    newer = len(migrations.MIGRATIONS) + 1
    found, stamped = iter([1, newer]), list[int]()
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        with pytest.raises(StoreError, match=f"of format {newer}"):
            migrations.migrate(db, path, lambda: next(found), stamped.append)

        assert not db.in_transaction
    assert stamped == []


# What a new version computes anew


def anew(caplog: pytest.LogCaptureFixture) -> int:
    """Return how many such warnings were logged since the last call."""
    found = sum("computes all tasks" in record.getMessage() for record in caplog.records)
    caplog.clear()
    return found


def test_a_store_of_an_earlier_version_says_once_that_it_computes_anew(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One line at the first run that finds nothing, and none at the second, nor in a new store."""
    world = World(tmp_path / "new")
    world.run(diamond())
    assert anew(caplog) == 0

    old = World(tmp_path / "old")
    path.rename(old.store.journal_path)
    old.run(diamond())
    (line,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "\n" not in line.getMessage()
    assert str(old.store.root) in line.getMessage()
    assert anew(caplog) == 1
    old.run(diamond())
    assert anew(caplog) == 0
    with old.journal() as journal:
        assert journal.semantics() == SEMANTICS


@pytest.mark.parametrize("lose", [lambda world: None, lambda world: world.store.journal_path.unlink()])
def test_found_results_need_no_explanation(
    lose: Callable[[World], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where a task of the plan is found, or nothing is known of earlier versions, there is no such line."""
    world = World(tmp_path)
    world.run(diamond())
    with world.journal() as journal:
        journal.set_semantics(SEMANTICS - 1)
    lose(world)
    plan = diamond()
    world.run(plan)

    assert anew(caplog) == 0
    with world.journal() as journal:
        assert journal.semantics() == SEMANTICS
        assert journal.finished([named(plan, "left").id])
