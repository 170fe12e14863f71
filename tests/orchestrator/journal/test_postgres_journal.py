"""The journal on a real PostgreSQL server: the same content as on SQLite, and no task run by two drivers."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.orchestrator.journal.test_migrations import FORMAT_1, ROWS
from tests.orchestrator.toys import done, echo, executions, named, task
from tests.real_servers import free_port
from wmarena.orchestrator.executors.inline import InlineExecutor
from wmarena.orchestrator.files.errors import StoreBusy, StoreError
from wmarena.orchestrator.journal import migrations
from wmarena.orchestrator.journal.journal import Journal
from wmarena.orchestrator.journal.opening import journal_address, open_journal
from wmarena.orchestrator.journal.postgres import PostgresConnection
from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.task import Kind, State, Task, TaskId
from wmarena.orchestrator.running.runner import RunRequest, run_plan
from wmarena.orchestrator.store.local import Store
from wmarena.orchestrator.worker.context import Setup

Database = Callable[[], str]


@pytest.fixture
def url(postgres: Database) -> str:
    """An empty database."""
    return postgres()


def wide() -> Plan:
    """A root, ten branches, a leaf on each."""
    root = task("root")
    branches = [task(f"branch{i}", root) for i in range(10)]
    return Plan([root, *branches, *(task(f"leaf{i}", b, kind=Kind.VERIFY) for i, b in enumerate(branches))])


def everything(journal: Journal, plan: Plan) -> dict[str, Any]:
    """Return a journal's content after writing all kinds of rows, without times."""
    root, odd = named(plan, "root"), task("odd", config={"text": "naïve ✓"})
    journal.start_run("r1", "experiment", "spec: ü", {"code_version": "1", "cells": []}, plan, {root.id})
    journal.record("r1", root, done(root))
    trace = Record(odd.id, State.FAILED, error="bad byte", attempt=1, worker="w", seconds=0.1)
    journal.attempt("r1", odd.id, trace)
    journal.record("r1", odd, trace, "trace")
    again = Record(odd.id, State.DONE, result={"x": 0.1, "n": 2**40}, attempt=2, seconds=1 / 3, caveats=("a",))
    journal.record("r1", odd, again)
    journal.extend_run("r1", [odd.id], set())
    journal.flush()
    journal.mark_sent("there", "experiment", {root.id: "one"})
    journal.mark_sent("there", "experiment", {root.id: "two"})
    going = journal.run_going("r1")
    journal.finish_run("r1", "done")
    (row,) = journal.task_rows([odd.id])
    (run,) = journal.runs("experiment")
    return {
        "finished": journal.finished([root.id, odd.id, TaskId("unknown")]),
        "row": {k: v for k, v in row.items() if k != "finished"},
        "run": {k: v for k, v in run.items() if k not in ("started", "finished")},
        "tasks": journal.run_tasks("r1"),
        "durations": journal.durations(),
        "sent": journal.sent("there", "experiment"),
        "going": (going, journal.run_going("r1")),
        "missing": (journal.run("r2"), journal.task_rows([TaskId("unknown")])),
    }


def test_both_databases_have_equal_content(store: Store, url: str) -> None:
    """Every table, floats to the last bit, whole numbers beyond 32 bits, text of any kind."""
    with open_journal(store) as here, open_journal(store, url) as there:
        assert everything(here, wide()) == everything(there, wide())


def test_text_that_postgresql_refuses_is_escaped(store: Store, url: str) -> None:
    """An error message may hold NUL or a lone surrogate: these are escaped."""
    one = task("one")
    with open_journal(store, url) as journal:
        journal.start_run("r1", "e", "", {}, Plan([one]), set())
        journal.record("r1", one, Record(one.id, State.FAILED, error="bad\0byte \ud800", attempt=1, worker="w"))
        journal.flush()
        (row,) = journal.task_rows([one.id])

    assert row["error"] == "bad\\0byte \\ud800"


def test_what_was_written_outlives_the_connection(store: Store, url: str) -> None:
    """Another connection, and one that reconnects after a loss, read and continue."""
    one = task("one")
    with open_journal(store, url) as journal:
        journal.start_run("r1", "e", "", {}, Plan([one]), set())
        journal.record("r1", one, done(one))
        journal.flush()
        journal._db._db.close()  # type: ignore[attr-defined]
        assert journal.finished([one.id]).keys() == {one.id}
    with open_journal(store, url) as other:
        assert other.finished([one.id]).keys() == {one.id}
        other.forget([one.id])
        assert other.finished([one.id]) == {}


def test_a_run_goes_on_while_its_driver_lives(store: Store, url: str) -> None:
    """Not until a later one begins, as on SQLite: several may go on; those of killed drivers are found interrupted."""
    first, second, mirror = (open_journal(store, url) for _ in range(3))
    first.start_run("r1", "e", "", {}, wide(), set())
    second.start_run("r2", "e", "", {}, wide(), set())
    assert [mirror.run_going(r) for r in ("r1", "r2", "r3")] == [True, True, False]
    first.close()
    wait_until(lambda: not mirror.run_going("r1"))  # the server notices in its own time
    assert mirror.run_going("r2")
    mirror.start_run("r4", "e", "", {}, wide(), set())

    assert {r["id"]: r["status"] for r in second.runs()} == {"r1": "interrupted", "r2": "running", "r4": "running"}
    second.close()
    mirror.close()


def test_a_task_is_claimed_by_one_driver(store: Store, url: str) -> None:
    """Until it is settled and written, or the driver has ended; records of finished tasks are returned."""
    one, two = task("one"), task("two")
    first, second = open_journal(store, url), open_journal(store, url)
    first.start_run("r1", "e", "", {}, Plan([one, two]), set())
    assert first.claim([one.id, two.id]).mine == {one.id, two.id}
    assert second.claim([one.id, two.id]) == (set(), {})
    first.record("r1", one, done(one))
    first.flush()
    claim = second.claim([one.id, two.id])
    assert (claim.mine, claim.done.keys()) == (set(), {one.id})
    first.close()
    wait_until(lambda: second.claim([two.id]).mine == {two.id})
    second.close()


def test_a_study_is_tuned_by_one_driver(store: Store, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another is refused, or says so and waits until the first has released it; other studies are free."""
    first, second = open_journal(store, url), open_journal(store, url)
    holding, heard = first.holding("study 's'"), list[str]()
    holding.__enter__()
    with pytest.raises(StoreBusy, match=r"study 's' free, .*`wmarena tune --wait`"), second.holding("study 's'"):
        pass
    with second.holding("study 't'"):
        pass
    monkeypatch.setattr("wmarena.orchestrator.files.locks.time.sleep", lambda s: holding.__exit__(None, None, None))
    with second.holding("study 's'", heard.append):
        assert heard == ["waiting for study 's', which another driver of this journal is running"]
    first.close()
    second.close()


DRIVER = """
import os, signal, sys, time
from pathlib import Path
from wmarena.orchestrator.store.local import Store
from tests.orchestrator.journal.test_postgres_journal import drive, wide
from tests.orchestrator.toys import echo

def slow(context, item):
    time.sleep(0.05)
    if sys.argv[4] == item.label:
        (context.store.root / "holding").touch()
        while not (context.store.root / "go").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return echo(context, item)

records = drive(Store(Path(sys.argv[1])).open(), sys.argv[2], sys.argv[3], slow)
print(sum(not r.cached for r in records.values()), {r.state.value for r in records.values()})
"""


def drive(store: Store, address: str | None, run: str, perform: Any = echo) -> dict[TaskId, Record]:
    """Execute the wide plan in this process."""
    executor = InlineExecutor(Setup(store=store.root, device="cpu"), perform=perform)
    with open_journal(store, address) as journal:
        return run_plan(wide(), RunRequest(run, "toys", "", {}), store=store, journal=journal, executor=executor)


@pytest.fixture
def driver(store: Store, url: str) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a driver of the wide plan in a process of its own; it may hold a task and die of it."""
    begun: list[subprocess.Popen[str]] = []

    def start(run: str, deadly: str = "") -> subprocess.Popen[str]:
        command = [sys.executable, "-c", DRIVER, str(store.root), url, run, deadly]
        environment = dict(os.environ)
        begun.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def test_two_drivers_do_each_task_once(store: Store, driver: Callable[..., subprocess.Popen[str]], url: str) -> None:
    """On one PostgreSQL journal they share a plan: 21 tasks, 21 executions, and both end with all of them done."""
    both = [driver("r1"), driver("r2")]
    said = [process.communicate(timeout=300)[0].split(" ", 1) for process in both]

    assert [process.returncode for process in both] == [0, 0]
    assert sum(int(number) for number, _ in said) == 21
    assert {states.strip() for _, states in said} == {"{'done'}"}
    assert max(Counter(executions(store)).values()) == 1
    assert len(executions(store)) == 21
    with open_journal(store, url) as journal:
        assert [r["status"] for r in journal.runs()] == ["done", "done"]


def test_a_killed_drivers_tasks_are_taken_over(
    store: Store, driver: Callable[..., subprocess.Popen[str]], url: str
) -> None:
    """SIGKILL in the middle of a task: the other driver, which has waited for it, runs it and the rest."""
    dying = driver("r1", "root")
    wait_until(lambda: (store.root / "holding").exists())
    other = driver("r2")
    with open_journal(store, url) as journal:
        wait_until(lambda: journal.run_going("r2"))
        (store.root / "go").touch()
        dying.wait(300)
        said = other.communicate(timeout=300)[0]

        assert dying.returncode == -signal.SIGKILL
        assert said.strip() == "21 {'done'}"
        assert executions(store) == sorted(t.label for t in wide())
        assert {r["id"]: r["status"] for r in journal.runs()} == {"r1": "running", "r2": "done"}
        assert not journal.run_going("r1")


def wait_until(so: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + 300.0
    while not so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_database_of_an_earlier_format_is_migrated(url: str, store: Store) -> None:
    """Its rows stay, tables that it lacks are made, a failed migration changes nothing, a newer format is refused."""
    old = PostgresConnection(url)
    for statement in filter(None, map(str.strip, f"{FORMAT_1}{ROWS}".split(";"))):
        old.execute(statement)
    old.execute("CREATE TABLE IF NOT EXISTS journal_format (format INTEGER PRIMARY KEY) WITHOUT ROWID")
    old.execute("INSERT INTO journal_format VALUES (1)")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migrations, "MIGRATIONS", [*migrations.MIGRATIONS, "DELETE FROM task; SELECT x FROM nowhere"])
        with pytest.raises(StoreError, match="nowhere"):
            open_journal(store, url)
    assert old.execute("SELECT format FROM journal_format").fetchall() == [(1,)]
    assert old.execute("SELECT id FROM task").fetchall() == [("old",)]

    with open_journal(store, url) as journal:
        assert journal.finished([TaskId("old")])[TaskId("old")].result == {"accuracy": 0.5}
        assert journal.semantics() == 1
        journal.set_semantics(2)
        assert journal.semantics() == 2
    newest = len(migrations.MIGRATIONS)
    assert old.execute("SELECT format FROM journal_format").fetchall() == [(newest,)]
    old.execute("UPDATE journal_format SET format=?", (newest + 1,))
    with pytest.raises(StoreError, match=f"of format {newest} or older, got .* of format {newest + 1}") as error:
        open_journal(store, url)
    assert "axolotl" not in str(error.value)
    old.close()


def test_an_unreachable_server_is_a_one_line_error(store: Store) -> None:
    """Which journal, why, and no password."""
    with pytest.raises(StoreError, match="expected a journal that can be read and written") as error:
        open_journal(store, f"postgresql://owner:swordfish@127.0.0.1:{free_port()}/x")
    assert "\n" not in str(error.value)
    assert "swordfish" not in str(error.value)


def test_other_addresses_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By option or environment; the message shows no password."""
    monkeypatch.setenv("WMARENA_JOURNAL", "mysql://owner:swordfish@host/x")
    with pytest.raises(StoreError, match="expected a journal as postgresql://") as error:
        journal_address()
    assert "swordfish" not in str(error.value)
    assert journal_address("postgresql://host/x") == "postgresql://host/x"


def test_claims_cost_nothing_on_sqlite(store: Store) -> None:
    """The store is locked by one run, so it may run every task."""
    items: list[Task] = [task("one"), task("two")]
    with open_journal(store) as journal:
        assert journal.claim([t.id for t in items]) == ({t.id for t in items}, {})
