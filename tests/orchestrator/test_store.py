"""The store: whole or nothing, checked when read, held by one run, never left by a name."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.artifacts import MANIFEST
from orchestrator.store import CorruptArtifact, Store, StoreBusy, StoreError, safe_name, tensors_to_bytes
from orchestrator.task import Task, TaskId
from tests.orchestrator.toys import task

RESULT = {"metric_test": 0.5, "verdict": {"caveats": ("a",), "log10_p": -180.6}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store").open()


@pytest.fixture
def item() -> Task:
    """A task."""
    return task("one", config={"workload": {"name": "toy"}})


def put(store: Store, item: Task, raw: bytes = b"weights", **result: Any) -> dict[str, Any]:
    """Commit an artifact of two files."""
    return store.commit(item.id, item.identity(), {**RESULT, **result}, {"model": raw, "history": b"[]"})


def files(folder: Path) -> dict[str, bytes]:
    """Relative path -> content of everything under a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# Writing


def test_what_is_read_back_equals_what_commit_returned(store: Store, item: Task) -> None:
    """Writer and reader go on with the same manifest, types included (JSON has lists, no tuples)."""
    manifest = put(store, item)

    assert store.manifest(item.id) == manifest
    assert manifest["result"]["verdict"]["caveats"] == ["a"]
    assert manifest["identity"] == json.loads(item.text)
    assert store.read(item.id, "model") == b"weights"
    assert store.path(item.id, "history").read_bytes() == b"[]"


def test_committing_twice_keeps_the_first(store: Store, item: Task) -> None:
    """The second writer is told what the store holds, so that the journal never says otherwise."""
    first = put(store, item, seconds=1.0)
    before = files(store.root)

    second = put(store, item, b"other", seconds=2.0)

    assert second == first
    assert files(store.root) == before


@pytest.mark.parametrize("state", ["no manifest", "torn manifest"])
def test_a_broken_artifact_in_the_way_is_set_aside(store: Store, item: Task, state: str) -> None:
    """A folder without a manifest that can be trusted never blocks its task for ever."""
    put(store, item)
    path = store.folder(item.id) / MANIFEST
    path.write_bytes(path.read_bytes()[:-9]) if state == "torn manifest" else path.unlink()

    put(store, item, b"again")

    assert store.read(item.id, "model") == b"again"
    assert len(list((store.root / "set_aside").iterdir())) == 1


def test_a_writer_killed_at_any_moment_leaves_nothing_that_a_reader_sees(
    store: Store, item: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every state before the rename counts as absent, and gc removes it."""
    seen: list[list[str]] = []

    def killed(self: Path, target: Path) -> Path:
        seen.append(sorted(files(self)))
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", killed)
    monkeypatch.setattr("shutil.rmtree", lambda *a, **k: None)
    with pytest.raises(KeyboardInterrupt):
        put(store, item)
    monkeypatch.undo()

    assert seen == [["history", MANIFEST, "model"]]
    assert not store.has(item.id)
    assert store.manifest(item.id) is None
    assert store.task_ids() == []
    assert store.verify()["unfinished"] == 1
    assert store.gc([], apply=True)["removed"] == 1
    assert files(store.root / "artifacts") == {}


def test_a_failed_write_leaves_nothing_and_says_what_to_do(
    store: Store, item: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is a StoreError; no half artifact stays behind."""

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device; free space in"):
        put(store, item)

    assert files(store.root / "artifacts") == {}


def test_a_result_that_is_no_json_is_refused_before_anything_is_written(store: Store, item: Task) -> None:
    """An array or a set in a result is the task's error."""
    with pytest.raises(TypeError):
        put(store, item, wrong={1, 2})

    assert files(store.root / "artifacts") == {}


# Reading


@pytest.mark.parametrize("how", ["flip", "shorten", "remove"])
def test_a_damaged_file_is_noticed(store: Store, item: Task, how: str) -> None:
    """One changed byte, a missing tail, a missing file: never used, always named."""
    put(store, item)
    path = store.path(item.id, "model")
    if how == "remove":
        path.unlink()
    else:
        path.write_bytes(b"weightt" if how == "flip" else b"weigh")

    for read in (store.read, store.path, store.load_tensors):
        with pytest.raises(CorruptArtifact, match="model") as caught:
            read(item.id, "model")
        assert caught.value.task_id == item.id
    assert store.verify()["damaged"][0]["task_id"] == item.id


def test_a_file_that_rots_after_it_was_checked_is_noticed(store: Store, item: Task) -> None:
    """``read`` hashes the bytes that it returns, even if time stamp and size say that nothing happened."""
    put(store, item)
    path = store.path(item.id, "model")
    stamp = path.stat().st_mtime_ns
    path.write_bytes(b"weightt")
    os.utime(path, ns=(stamp, stamp))

    with pytest.raises(CorruptArtifact):
        store.read(item.id, "model")
    assert len(store.verify()["damaged"]) == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"0.5", b"0.6"), (b'"format": 1', b'"format": 2'), (b"{", b"["), (b"-180.6", b"-180.7"), (b"toy", b"tot")],
)
def test_an_altered_manifest_is_noticed(store: Store, item: Task, old: bytes, new: bytes) -> None:
    """Results are adopted from manifests, so a changed digit in one is damage like any other."""
    put(store, item)
    path = store.folder(item.id) / MANIFEST
    path.write_bytes(path.read_bytes().replace(old, new, 1))

    with pytest.raises(CorruptArtifact, match=MANIFEST):
        store.manifest(item.id)
    assert store.intact_manifest(item.id) is None
    assert "damaged" in store.ls()[0]


def test_another_tasks_artifact_is_not_taken_for_ones_own(store: Store, item: Task) -> None:
    """A folder that was copied or renamed by hand does not pass."""
    put(store, item)
    other = task("other")
    store.folder(other.id).parent.mkdir(exist_ok=True)
    store.folder(item.id).rename(store.folder(other.id))

    with pytest.raises(CorruptArtifact, match="not the manifest of this task"):
        store.manifest(other.id)


def test_tensors_survive_the_store(store: Store, item: Task) -> None:
    """Values, types, shapes; tied and transposed tensors too; equal tensors give equal bytes in any order."""
    weight = torch.arange(6.0).reshape(2, 3)
    tensors = {"w": weight, "tied": weight, "t": weight.T, "n": torch.tensor(3), "h": torch.zeros(2, dtype=torch.half)}
    raw = tensors_to_bytes(tensors)
    put(store, item, raw)
    found = store.load_tensors(item.id, "model")

    assert raw == tensors_to_bytes(dict(reversed(tensors.items())))
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in tensors.items())


def test_bytes_that_are_no_tensors_are_damage(store: Store, item: Task) -> None:
    """A model file that matches its manifest but cannot be decoded is set aside, not a crash."""
    put(store, item, b"not safetensors")

    with pytest.raises(CorruptArtifact):
        store.load_tensors(item.id, "model")


def test_what_was_set_aside_is_gone_and_can_be_inspected(store: Store, item: Task) -> None:
    """The task counts as not done; nothing was deleted; doing it twice is no error."""
    put(store, item)
    store.set_aside(item.id)
    store.set_aside(item.id)

    assert not store.has(item.id)
    (kept,) = (store.root / "set_aside").iterdir()
    assert kept.name.startswith(item.id)
    assert (kept / "model").read_bytes() == b"weights"


# Housekeeping


def test_listing_says_what_is_there(store: Store, item: Task) -> None:
    """Kind, names, size, and where a key is."""
    put(store, item)
    store.key_dir(item.id).mkdir()
    (row,) = store.ls()

    assert (row["task_id"], row["kind"], row["workload"], row["seed"]) == (item.id, "train", "toy", 0)
    assert row["bytes"] == sum(map(len, files(store.folder(item.id)).values()))
    assert row["key"] == str(store.key_dir(item.id))


def test_collecting_removes_what_nothing_reaches(store: Store) -> None:
    """Artifacts, keys, checkpoints and what was set aside go, what is kept stays; without ``apply`` nothing happens."""
    kept, lost, damaged = task("kept"), task("lost"), task("damaged")
    for one in (kept, lost, damaged):
        put(store, one)
        store.key_dir(one.id).mkdir()
        store.checkpoint_dir(one.id).mkdir()
    store.checkpoint_dir("trajectory").mkdir()
    store.set_aside(damaged.id)
    before = sorted(store.root.rglob("*"))

    counted = store.gc([kept.id], apply=False, trajectories=["trajectory"])
    assert sorted(store.root.rglob("*")) == before
    done = store.gc([kept.id], apply=True, trajectories=["trajectory"])

    assert {**counted, "applied": True} == done
    assert (done["kept"], done["removed"]) == (1, 6)
    assert store.task_ids() == [kept.id]
    assert [p.name for p in (store.root / "keys").iterdir()] == [kept.id]
    assert sorted(p.name for p in (store.root / "checkpoints").iterdir()) == sorted([kept.id, "trajectory"])


def test_nothing_is_collected_under_a_run(store: Store) -> None:
    """The unfinished artifact of a living writer is no leftover."""
    with store.exclusive(), pytest.raises(StoreBusy):
        store.gc([], apply=True)


# Names and places


@given(st.text(max_size=300))
def test_no_experiment_name_can_leave_the_store(name: str) -> None:
    """Whatever a spec is called, its reports are two folders below ``reports``, with names that file systems accept."""
    store = Store("/somewhere")
    folder = store.report_dir(name, name)

    assert folder.parent.parent == store.root / "reports"
    assert ".." not in folder.parts
    assert len(os.fsencode(safe_name(name))) <= 255
    assert not set(safe_name(name)) & set("/\\\0\n")


@pytest.mark.parametrize("name", ["", "..", ".", "../../etc/passwd", "/etc", "a/../..", "~", "\0", ".ssh", "ä" * 200])
def test_hostile_names_become_harmless(name: str, tmp_path: Path) -> None:
    """They can really be made, inside."""
    store = Store(tmp_path / "store").open()
    folder = store.report_dir(name, "run")
    folder.mkdir(parents=True)

    assert folder.resolve().is_relative_to(store.root.resolve() / "reports")
    assert not folder.parent.name.startswith(".")


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    """Before anything runs, with the way out."""
    (tmp_path / "file").write_text("")

    with pytest.raises(StoreError, match=r"can be written, got .*file/store .*; choose another with --store DIR"):
        Store(tmp_path / "file" / "store").open()


@pytest.mark.parametrize("url", ["s3://bucket/store", "gs://x", Path("s3://bucket/store")])
def test_a_url_is_no_folder(url: str | Path) -> None:
    """A URL is refused, also after a Path has eaten one of its slashes, and never made into a folder named s3:."""
    with pytest.raises(StoreError, match="expected a local folder as store, got the URL"):
        Store(url)


def test_keys_are_for_the_owner_only(store: Store) -> None:
    """The folder of keys is closed to others."""
    assert (store.root / "keys").stat().st_mode & 0o777 == 0o700


def test_a_store_is_held_by_one_process(store: Store) -> None:
    """A second run in another process is refused, and can begin once the first has ended."""

    def another_process_is_refused() -> bool:
        child = os.fork()
        if child:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
        try:
            with Store(store.root).exclusive():
                os._exit(0)
        except StoreBusy:
            os._exit(1)

    with store.exclusive():
        assert another_process_is_refused()
    assert not another_process_is_refused()


def test_a_second_run_is_told_what_to_do(store: Store) -> None:
    """Wait, or use another store."""
    with store.exclusive(), pytest.raises(StoreBusy, match="another run holds; wait for it, or use another --store"):
        store.exclusive().__enter__()


def test_ids_are_no_paths(store: Store) -> None:
    """Whether an artifact is there is asked by id alone."""
    assert not store.has(TaskId("0" * 64))
    assert store.manifest(TaskId("0" * 64)) is None
