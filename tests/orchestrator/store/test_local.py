"""The store: listing, garbage collection, locking, safe names."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.orchestrator.toys import files, put, task
from wmarena.orchestrator.files.errors import StoreBusy, StoreError
from wmarena.orchestrator.plan.task import Task, TaskId
from wmarena.orchestrator.store.local import Store, safe_name

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
    """A URL is refused, also after a Path has dropped one of its slashes; no folder named s3: is created."""
    with pytest.raises(StoreError, match="expected a local folder as store, got the URL"):
        Store(url)


def test_keys_are_for_the_owner_only(store: Store) -> None:
    """The folder of keys is closed to others."""
    assert (store.root / "keys").stat().st_mode & 0o777 == 0o700


def test_the_mark_of_a_folder_of_keys_is_never_seen_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may start at any moment of its being written; both see one mark."""
    store, seen = Store(tmp_path), [""]
    sync = os.fsync

    def meanwhile(handle: int) -> None:
        monkeypatch.setattr(os, "fsync", sync)
        seen[0] = Store(tmp_path).keys_mark()
        sync(handle)

    monkeypatch.setattr(os, "fsync", meanwhile)
    mark = store.keys_mark()

    assert len(mark) == 32
    assert seen == [mark] == [store.keys_mark()]


def test_a_store_is_locked_by_one_process(store: Store) -> None:
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
    """Who holds it and since when; wait, or use another store."""
    expected = rf"held by run r-1 \(process {os.getpid()} on .*, since 20.*\); `wmarena run --wait` .* another --store"
    with store.exclusive("r-1"), pytest.raises(StoreBusy, match=expected):
        store.exclusive().__enter__()


def test_ids_are_no_paths(store: Store) -> None:
    """Whether an artifact is there is asked by id alone."""
    assert not store.has(TaskId("0" * 64))
    assert store.manifest(TaskId("0" * 64)) is None
