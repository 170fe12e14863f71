"""Stores: manifests, weights, checkpoints, plans and journals, corrupted or forged."""

import contextlib
import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.experiments.conftest import Finished
from tests.fuzz.mutations import VALUES, altered_bytes, altered_value, fenced
from wmarena.experiments.cli import main
from wmarena.experiments.judging.verification import read_weights
from wmarena.experiments.spec.problems import SpecError
from wmarena.orchestrator.files.errors import StoreError
from wmarena.orchestrator.journal.journal import Journal
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.task import TaskId
from wmarena.orchestrator.recorders.links import ComparisonLinks
from wmarena.orchestrator.store.backends import FolderCheckpoints
from wmarena.orchestrator.store.checkpoints import Curves, StoredCheckpoints, _name
from wmarena.orchestrator.store.local import Store, safe_name, tensors_to_bytes
from wmarena.orchestrator.store.manifest import MANIFEST, CorruptArtifact, _manifest_digest

ID = TaskId("ab" * 32)
IDENTITY = {"kind": "train", "config": {"workload": {"name": "digits_mlp"}, "scheme": None}, "seed": 0, "parents": []}
WEIGHTS = tensors_to_bytes({"layer.weight": torch.ones(4, 3), "layer.bias": torch.zeros(4)})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with one artifact, and a secret beside it."""
    made = Store(tmp_path / "store").open()
    made.commit(ID, IDENTITY, {"seconds": 1.0}, {"model.safetensors": WEIGHTS, "history.json": b"[]"})
    (tmp_path / "outside").write_bytes(b"not ours")
    return made


def read_all(store: Store) -> None:
    """Every way in which an artifact is read: the answer, or CorruptArtifact."""
    with fenced(store.root):
        assert store.has(ID)
        for row in store.ls():
            json.dumps(row)
        found = store.verify()
        assert found["checked"] == 1
        try:
            manifest = store.manifest(ID)
        except CorruptArtifact:
            assert len(found["damaged"]) == 1
            return
        assert manifest is not None
        for name in [*manifest["files"], "../../../outside", "/etc/passwd", "model.safetensors"]:
            try:
                raw = store.read(ID, name)
                assert store.path(ID, name).parent == store.folder(ID)
                assert raw != b"not ours"
                store.load_tensors(ID, name)
            except CorruptArtifact:
                pass


@given(data=st.data())
def test_rotten_manifests(data: st.DataObject, store: Store) -> None:
    """Any mutation of its bytes."""
    path = store.folder(ID) / MANIFEST
    raw = path.read_bytes()
    path.write_bytes(data.draw(altered_bytes(raw)))
    read_all(store)
    path.write_bytes(raw)


@given(data=st.data())
def test_forged_manifests(data: st.DataObject, store: Store) -> None:
    """Other values under a digest that fits, names of files that lead elsewhere among them."""
    path = store.folder(ID) / MANIFEST
    raw = path.read_bytes()
    body = data.draw(altered_value({k: v for k, v in json.loads(raw).items() if k != "digest"}))
    if isinstance(body, dict):
        names = data.draw(st.sampled_from(["../../../outside", "/etc/passwd", "..", "", "a\0b", "model.safetensors"]))
        if isinstance(body.get("files"), dict) and data.draw(st.booleans()):
            body["files"][names] = {"sha256": "0" * 64, "bytes": 8}
        body["digest"] = _manifest_digest(body)
    path.write_text(json.dumps(body))
    read_all(store)
    path.write_bytes(raw)


@given(
    name=st.text(max_size=200) | st.sampled_from([v for v in VALUES if isinstance(v, str)]), more=st.text(max_size=5)
)
def test_names_stay_in_the_store(name: str, more: str, store: Store) -> None:
    """Whatever an experiment is called, its report is in the store; an artifact's file has a plain name or none."""
    folder = store.report_dir(name, name + more)

    assert folder.parent.parent == store.root / "reports"
    assert len(safe_name(name).encode()) <= 100
    with fenced(store.root):
        folder.mkdir(parents=True, exist_ok=True)
        if set(name) & {"/", "\0"} or name in ("", ".", ".."):
            with pytest.raises(ValueError, match="plain names"):
                store.commit(TaskId("cd" * 32), IDENTITY, {}, {name: b"x"})


@given(data=st.data())
def test_altered_weights(data: st.DataObject, finished_once: Finished, tmp_path: Path) -> None:
    """A suspect's file, rotten or forged: evidence, or a refusal; exit status 0, 1 or 2."""
    raw = finished_once.marked.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header, body = raw[8 : 8 + length], raw[8 + length :]
    forged = altered_value(json.loads(header)).map(lambda v: json.dumps(v).encode())
    head = data.draw(altered_bytes(header) | forged)
    path = tmp_path / "model.safetensors"
    path.write_bytes(data.draw(altered_bytes(raw) | st.just(len(head).to_bytes(8, "little") + head + body)))
    with fenced(tmp_path):
        with contextlib.suppress(SpecError):
            read_weights(path)
        status = main(["verify", "--model", str(path), "--key", str(finished_once.key)])
    assert status in (0, 1, 2)


@given(data=st.data())
def test_forged_checkpoints(data: st.DataObject, tmp_path: Path) -> None:
    """Files whose names fit their bytes, whatever these are: a state with its curves, or none."""
    curves = json.dumps(data.draw(altered_value([{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.4}]))).encode()
    state = {"w": torch.ones(3), "wmarena.curves": torch.frombuffer(bytearray(curves), dtype=torch.uint8)}
    raw = data.draw(st.just(tensors_to_bytes(state)) | altered_bytes(tensors_to_bytes(state)))
    for old in tmp_path.glob("*.safetensors"):
        old.unlink()
    (tmp_path / _name(7, "keep", raw)).write_bytes(raw)
    kept = Curves()
    with fenced(tmp_path):
        found = StoredCheckpoints(
            FolderCheckpoints(tmp_path), every_s=1.0, cancelled=lambda: False, curves=kept
        ).latest()

    assert found is None or (found[0] == 7 and "wmarena.curves" not in found[1])
    assert found is not None or kept.points == []


@given(data=st.data())
def test_altered_cells(data: st.DataObject, tmp_path: Path) -> None:
    """What a recorder reads of a run's table cells: links, or StoreError."""
    cell = {"verify": "a", "embed": "b", "clean": "c", "scratch": None, "strength_name": "epochs", "strength": 1.0}
    path = tmp_path / "journal.sqlite"
    path.unlink(missing_ok=True)
    with fenced(tmp_path), Journal(path) as journal:
        journal.start_run("run", "e", "", {"cells": data.draw(altered_value([cell]))}, Plan(), set())
        try:
            ComparisonLinks(journal, "run").refresh()
        except StoreError as error:
            assert "journal" in str(error)


# Journals


COLUMNS = {
    "task": ("id", "kind", "label", "workload", "scheme", "attack", "seed", "identity", "state", "attempt", "worker"),
    "run": ("id", "experiment", "started", "finished", "status", "spec", "info"),
    "run_task": ("position", "task", "cached", "state"),
    "run_cell": ("position", "cell"),
}
MORE = ("finished", "seconds", "result", "error", "caveats")
SQL = [
    None,
    0,
    -1,
    2**62,
    1e308,
    float("inf"),
    "",
    "x",
    "../../x",
    b"\xff\0",
    "\0",
    "[]",
    "{}",
    "[" * 3000,
    "NaN",
    "null",
]


@pytest.fixture(scope="module")
def copied(finished_once: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store that may be changed; its journal is restored for every input."""
    store = tmp_path_factory.mktemp("journals") / "store"
    shutil.copytree(finished_once.store, store)
    return store


def fresh_journal(store: Path, source: Path) -> Path:
    """The journal as the run left it."""
    for path in store.glob("journal.sqlite*"):
        path.unlink(missing_ok=True)
    made = store / "journal.sqlite"
    with closing(sqlite3.connect(source / "journal.sqlite")) as old, closing(sqlite3.connect(made)) as new:
        old.backup(new)
    return made


def commands(store: Path, finished: Finished, folder: Path) -> None:
    """Everything that reads a journal ends with a status."""
    base = ["--store", str(store), "--tracking-uri", "none"]
    with fenced(folder):
        assert main([*base, "report", finished.summary.run_id]) in (0, 2, 3)
        assert main([*base, "store", "gc"]) in (0, 2, 3)
        try:
            with Journal(store / "journal.sqlite") as journal:
                journal.finished(Store(store).task_ids())
                journal.durations()
                journal.task_rows(Store(store).task_ids())
        except StoreError as error:
            assert "journal" in str(error)


@given(data=st.data())
def test_forged_journals(data: st.DataObject, copied: Path, finished_once: Finished) -> None:
    """Any column of any row with another value: reports are rebuilt, or it is told that the journal was altered."""
    path = fresh_journal(copied, finished_once.store)
    table = data.draw(st.sampled_from(sorted(COLUMNS)))
    column = data.draw(st.sampled_from([*COLUMNS[table], *(MORE if table == "task" else ())]))
    with closing(sqlite3.connect(path)) as db, db:
        keys = [
            row[0] for row in db.execute(f"SELECT {'rowid' if table == 'task' else COLUMNS[table][0]} FROM {table}")
        ]
        key = data.draw(st.sampled_from(keys))
        where = f"{'rowid' if table == 'task' else COLUMNS[table][0]}=?"
        ((old,),) = db.execute(f"SELECT {column} FROM {table} WHERE {where}", (key,))
        value: Any = data.draw(st.sampled_from(SQL))
        if column in ("identity", "result", "info", "caveats", "cell") and old is not None and data.draw(st.booleans()):
            value = json.dumps(data.draw(altered_value(json.loads(old))))
        try:
            db.execute(f"UPDATE {table} SET {column}=? WHERE {where}", (value, key))
        except (sqlite3.Error, UnicodeEncodeError, OverflowError):
            return  # no such journal can be written
    commands(copied, finished_once, copied)


def test_a_run_at_no_date_is_told(copied: Path, finished_once: Finished, capsys: pytest.CaptureFixture[str]) -> None:
    """A start time that is no date is reported as a fault of the journal, without a traceback."""
    path = fresh_journal(copied, finished_once.store)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE run SET started=?", (2**62,))

    base = ["--store", str(copied), "--tracking-uri", "none"]
    assert main([*base, "report", finished_once.summary.run_id]) in (2, 3)
    assert "a run's start that is no date" in capsys.readouterr().err


def test_a_schema_that_is_no_text_is_told(
    copied: Path, finished_once: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    """SQLite quotes the damage in its own message, which Python then cannot decode."""
    path = fresh_journal(copied, finished_once.store)
    path.write_bytes(path.read_bytes().replace(b"CREATE TABLE task (", b"CREATE TABLE task \x80", 1))

    assert main(["--store", str(copied), "--tracking-uri", "none", "report", finished_once.summary.run_id]) in (2, 3)
    assert "expected a journal that can be read" in capsys.readouterr().err


@given(data=st.data())
def test_rotten_journals(data: st.DataObject, copied: Path, finished_once: Finished) -> None:
    """Any mutation of the file's bytes."""
    path = fresh_journal(copied, finished_once.store)
    path.write_bytes(data.draw(altered_bytes(path.read_bytes())))
    commands(copied, finished_once, copied)
