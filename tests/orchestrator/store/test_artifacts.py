"""Artifacts: written atomically, and checked when they are read."""

import json
import os
from pathlib import Path

import pytest
import torch

from tests.orchestrator.toys import files, put, task
from wmarena.orchestrator.files.errors import StoreError
from wmarena.orchestrator.plan.task import Task
from wmarena.orchestrator.store.local import CorruptArtifact, Store, tensors_to_bytes
from wmarena.orchestrator.store.manifest import MANIFEST

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


def test_a_file_damaged_after_its_check_is_detected(store: Store, item: Task) -> None:
    """``read`` hashes the bytes that it returns, even if time stamp and size are unchanged."""
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
