"""The journal: no written row is lost, none is written twice."""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.orchestrator.toys import diamond, done, named, task
from wmarena.orchestrator.files.errors import StoreError
from wmarena.orchestrator.journal import journal as journal_module
from wmarena.orchestrator.journal import reader as journal_reader
from wmarena.orchestrator.journal.journal import FLUSH_ROWS, Journal
from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.plan import Cell, Plan
from wmarena.orchestrator.plan.task import State, Task, TaskId


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of the journal."""
    return tmp_path / "journal.sqlite"


@pytest.fixture
def plan() -> Plan:
    """A small graph."""
    return diamond()


@pytest.fixture
def journal(path: Path, plan: Plan) -> Iterator[Journal]:
    """An open journal with one run of the plan."""
    with Journal(path) as opened:
        opened.start_run("run", "experiment", "spec: text", {"code_version": "1"}, plan, set())
        yield opened


def cell(name: str) -> Cell:
    """A cell of some verify task."""
    ids = {role: TaskId(f"{role} {name}") for role in ("verify", "embed", "suspect", "clean")}
    names = {"workload": "w", "metric": "accuracy", "scheme": "s", "attack": "a"}
    return Cell(**ids, **names, scheme_params={"bits": 8}, attack_params={}, seed=0)


def failed(item: Task, attempt: int = 1) -> Record:
    """The record of a task that failed."""
    return Record(item.id, State.FAILED, error="error: boom", attempt=attempt, worker="w")


def count(path: Path, table: str = "task") -> int:
    """Return the rows that another connection sees: those that would survive a kill now."""
    with closing(sqlite3.connect(path)) as db:
        (found,) = db.execute(f"SELECT COUNT(*) FROM {table}").fetchone()
    return int(found)


def test_a_finished_task_is_found_again_as_cached(journal: Journal) -> None:
    """Everything but the label and the time comes back; failed and unknown tasks do not."""
    good, bad = task("good"), task("bad")
    result = {"metric": 0.1, "nested": {"log10_p": -180.6, "caveats": ["a"]}, "none": None}
    record = Record(
        good.id, State.DONE, result=result, seconds=2.5, attempt=2, worker="w1", caveats=("recomputed", "b")
    )
    journal.record("run", good, record)
    journal.record("run", bad, failed(bad))
    journal.flush()

    found = journal.finished([good.id, bad.id, TaskId("unknown")])

    assert found == {good.id: replace(record, cached=True)}


def test_more_tasks_than_sqlite_takes_variables(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking is cut into parts, and no part is lost."""
    monkeypatch.setattr(journal_reader, "_MOST_VARIABLES", 3)
    tasks = [task(f"t{i}") for i in range(8)]
    for one in tasks:
        journal.record("run", one, done(one))
    journal.flush()

    assert journal.finished(t.id for t in tasks).keys() == {t.id for t in tasks}


def test_writes_are_coalesced(journal: Journal, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows but one of a batch wait, the last writes all of them in one transaction."""
    monkeypatch.setattr(journal_module, "FLUSH_S", 1e9)
    tasks = [task(f"t{i}") for i in range(FLUSH_ROWS)]
    for one in tasks[:-1]:
        journal.record("run", one, done(one))
    before = count(path)
    journal.record("run", tasks[-1], done(tasks[-1]))

    assert (before, count(path)) == (0, FLUSH_ROWS)


@pytest.mark.parametrize("step", [2 * journal_module.FLUSH_S, -3600.0])
def test_nothing_waits_longer_than_it_may(
    journal: Journal, path: Path, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    """After ``FLUSH_S``, or once the clock was set back, the next tick writes; before, it does not."""
    clock = [1000.0]
    monkeypatch.setattr(time, "time", lambda: clock[0])
    one = task("one")
    journal.record("run", one, done(one))
    journal.tick()
    waiting = (journal.pending, count(path))
    clock[0] += step
    journal.tick()

    assert waiting == (True, 0)
    assert (journal.pending, count(path)) == (False, 1)


def test_leaving_writes_what_is_pending(path: Path, plan: Plan) -> None:
    """A journal is a context manager, also when the run fails."""
    root = named(plan, "root")

    def failing_run() -> None:
        with Journal(path) as journal:
            journal.start_run("run", "e", "", {}, plan, set())
            journal.record("run", root, done(root))
            raise RuntimeError("the run fails")

    with pytest.raises(RuntimeError, match="the run fails"):
        failing_run()

    with Journal(path) as again:
        assert again.finished([root.id]).keys() == {root.id}


def test_a_killed_process_loses_only_what_was_pending(path: Path, plan: Plan) -> None:
    """After os._exit the rows that were flushed are there and intact, whatever was under way."""
    tasks = [task(f"t{i}") for i in range(FLUSH_ROWS + 6)]
    child = os.fork()
    if not child:
        journal = Journal(path)
        journal.start_run("run", "e", "", {}, plan, set())
        journal_module.FLUSH_S = 1e9
        for one in tasks:
            journal.record("run", one, done(one))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    with Journal(path) as journal:
        assert len(journal.finished(t.id for t in tasks)) == FLUSH_ROWS
        assert [r["status"] for r in journal.runs()] == ["running"]


def test_the_last_record_of_a_task_counts(journal: Journal) -> None:
    """A task that failed and is done later is done; one with a missing artifact is forgotten."""
    one = task("one")
    journal.record("run", one, failed(one))
    journal.record("run", one, done(one))
    journal.flush()
    assert journal.finished([one.id]).keys() == {one.id}

    journal.forget([one.id])
    assert journal.finished([one.id]) == {}


def test_every_attempt_is_kept(journal: Journal, path: Path) -> None:
    """Also those that were repeated; a cached task makes none."""
    one, cached = task("one"), task("cached")
    journal.attempt("run", one.id, failed(one, attempt=1))
    journal.record("run", one, Record(one.id, State.DONE, result={}, attempt=2, worker="w"))
    journal.record("run", cached, done(cached))
    journal.flush()

    with closing(sqlite3.connect(path)) as db:
        rows = db.execute("SELECT attempt, state, error FROM attempt ORDER BY attempt").fetchall()
    assert rows == [(1, "failed", "error: boom"), (2, "done", None)]


def test_a_run_knows_its_tasks(journal: Journal, plan: Plan) -> None:
    """In planning order, with tasks added later and their states."""
    root, late = named(plan, "root"), task("late")
    journal.extend_run("run", [late.id], {late.id})
    journal.record("run", root, Record(root.id, State.DONE, result={}, attempt=1))
    journal.flush()

    rows = journal.run_tasks("run")

    assert [i for _, i, _, _ in rows] == [*plan.tasks, late.id]
    assert [p for p, _, _, _ in rows] == list(range(6))
    assert {i: (cached, state) for _, i, cached, state in rows if state} == {
        root.id: (False, "done"),
        late.id: (True, "done"),
    }
    assert [i for _, i, _, _ in journal.run_tasks("run", after=4)] == [late.id]


def test_cells_join_in_order(journal: Journal) -> None:
    """Those of a growing run follow the first ones; an execution of an earlier version has them among its facts."""
    one, two, three = (cell(f"{n}") for n in range(3))
    journal.start_run("grows", "e", "", {}, Plan([], [one]), set())
    journal.extend_run("grows", [], set(), [two, three])
    journal.start_run("earlier", "e", "", {"cells": [one.document()]}, Plan(), set())

    assert [c for _, c in journal.run_cells("grows")] == [c.document() for c in (one, two, three)]
    assert journal.run_cells("grows", after=1) == [(2, three.document())]
    assert journal.run_cells("earlier") == [(0, one.document())]


def test_runs_are_listed_newest_first(journal: Journal, plan: Plan) -> None:
    """With spec, facts and status; a run that was killed is noticed when the next one begins."""
    journal.start_run("second", "experiment", "spec", {}, plan, set())
    journal.finish_run("second", "done")
    journal.start_run("other", "another", "spec", {}, plan, set())

    assert [(r["id"], r["status"]) for r in journal.runs("experiment")] == [("second", "done"), ("run", "interrupted")]
    assert [r["id"] for r in journal.runs()] == ["other", "second", "run"]
    oldest = journal.runs()[-1]
    assert (oldest["spec"], oldest["info"], oldest["finished"]) == ("spec: text", {"code_version": "1"}, None)


def test_a_finished_run_is_written_whole(
    journal: Journal, path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When ``finish_run`` returns, another process sees every task that the run recorded, however recent."""
    monkeypatch.setattr(journal_module, "FLUSH_S", 1e9)
    root = named(plan, "root")
    journal.record("run", root, done(root))
    before = count(path)
    journal.finish_run("run", "done")

    assert (before, count(path), journal.pending) == (0, 1, False)
    with Journal(path) as other:
        assert other.finished([root.id]).keys() == {root.id}
        assert [state for _, known, _, state in other.run_tasks("run") if known == root.id] == ["done"]


def test_an_id_of_a_run_is_used_once(journal: Journal, plan: Plan) -> None:
    """A second run of that name is an error, and the journal goes on working."""
    with pytest.raises(StoreError, match="UNIQUE"):
        journal.start_run("run", "e", "", {}, plan, set())
    one = task("one")
    journal.record("run", one, done(one))
    journal.flush()

    assert journal.finished([one.id]).keys() == {one.id}


def test_a_write_that_fails_stays_pending(journal: Journal, path: Path) -> None:
    """A full disk is a StoreError with the way out; once there is room, nothing is missing."""
    one = task("one")
    journal.record("run", one, done(one))
    journal._db.execute("PRAGMA query_only=1")
    with pytest.raises(StoreError, match="expected to write the journal"):
        journal.flush()
    journal._db.execute("PRAGMA query_only=0")
    journal.flush()

    assert count(path) == 1


def test_durations_are_medians_of_finished_tasks(journal: Journal) -> None:
    """By kind, workload, scheme and attack; failures do not count."""
    for index, seconds in enumerate((1.0, 2.0, 9.0)):
        one = task(f"t{index}", workload="w", scheme="s", attack="a")
        journal.record("run", one, Record(one.id, State.DONE, result={}, seconds=seconds))
    bad = task("bad", workload="w", scheme="s", attack="a")
    journal.record("run", bad, Record(bad.id, State.FAILED, error="x", seconds=500.0))
    journal.flush()

    assert journal.durations() == {("train", "w", "s", "a"): 2.0}


def test_whole_rows_are_decoded(journal: Journal) -> None:
    """For recorders and listings: identity, result and caveats as values, in the order asked for."""
    one, two = task("one"), task("two", scheme="s")
    journal.record("run", one, done(one, metric=0.5))
    journal.record("run", two, failed(two), trace="Traceback")
    journal.flush()

    rows = journal.task_rows([two.id, TaskId("unknown"), one.id])

    assert [r["label"] for r in rows] == ["two", "one"]
    assert (rows[0]["error"], rows[0]["result"], rows[0]["scheme"]) == ("error: boom", None, "s")
    assert (rows[1]["result"], rows[1]["identity"], rows[1]["caveats"]) == ({"metric": 0.5}, one.identity(), [])


def test_sent_entries_are_stored_per_destination(journal: Journal) -> None:
    """Once per destination, experiment and task; sending again replaces."""
    one = task("one").id
    journal.mark_sent("sqlite://a", "e", {one: "r1"})
    journal.mark_sent("sqlite://a", "e", {one: "r2"})
    journal.mark_sent("sqlite://b", "e", {one: "r3"})

    assert journal.sent("sqlite://a", "e") == {one: "r2"}
    assert journal.sent("sqlite://a", "other") == {}


def test_another_process_reads_while_the_driver_writes(journal: Journal, path: Path) -> None:
    """A recorder marks what it has sent through its own connection; neither blocks the other."""
    one = task("one")
    with Journal(path) as recorder:
        journal.record("run", one, done(one))
        journal.flush()
        recorder.mark_sent("d", "e", {one.id: "r"})

        assert recorder.finished([one.id]).keys() == {one.id}
    assert journal.sent("d", "e") == {one.id: "r"}


def test_a_damaged_journal_is_an_error(path: Path) -> None:
    """A StoreError with advice, never sqlite's own exception."""
    path.write_bytes(b"this is no database, but it is long enough to look at" * 20)

    with pytest.raises(StoreError, match="found again by their artifacts"):
        Journal(path)


def test_a_journal_in_no_folder_says_so(tmp_path: Path) -> None:
    """The store was not opened, or was removed."""
    with pytest.raises(StoreError, match="unable to open"):
        Journal(tmp_path / "absent" / "journal.sqlite")


def test_one_run_is_asked_for_by_its_id(journal: Journal, plan: Plan) -> None:
    """With the fields of the list; None for what the journal does not know; going while it is open and the newest."""
    going = journal.run_going("run")
    journal.start_run("next", "experiment", "", {}, plan, set())

    assert journal.run("run") == journal.runs()[-1]
    assert journal.run("unknown") is None
    assert (going, journal.run_going("run"), journal.run_going("next")) == (True, False, True)
