"""A shared store on a real S3 server: complete artifacts only, with concurrent, killed and damaged writers."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.orchestrator.toys import diamond, echo, executions, named, put, task
from wmarena.orchestrator.executors.inline import InlineExecutor
from wmarena.orchestrator.files.errors import StoreError
from wmarena.orchestrator.journal.journal import Journal
from wmarena.orchestrator.keys.encryption import Cost, Passphrase, SealError
from wmarena.orchestrator.keys.storage import load_key, save_key
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.task import Task, TaskId
from wmarena.orchestrator.running.runner import RunRequest, run_plan
from wmarena.orchestrator.store import shared as shared_store
from wmarena.orchestrator.store.backends import EncryptedCheckpoints
from wmarena.orchestrator.store.checkpoints import Curves, StoredCheckpoints
from wmarena.orchestrator.store.keys import check_passphrase
from wmarena.orchestrator.store.local import Store
from wmarena.orchestrator.store.manifest import CorruptArtifact
from wmarena.orchestrator.store.opening import open_store
from wmarena.orchestrator.store.shared import SharedStore
from wmarena.orchestrator.store.shared_artifacts import in_parallel
from wmarena.orchestrator.worker.context import Setup, WorkerContext
from wmarena.schemes.keys import Key, KeyFileError

WORDS = Passphrase(b"long enough", Cost(log2_n=4))
Nodes = Callable[[str], Path]
Folder = Callable[[], str]


@pytest.fixture
def url(s3: Folder, caches: Nodes) -> str:
    """An empty shared folder; this process is node-a."""
    return s3()


@pytest.fixture
def shared(url: str) -> SharedStore:
    """A store in it."""
    store = open_store(url).open()
    assert isinstance(store, SharedStore)
    return store


def elsewhere(shared: Store, caches: Nodes, node: str = "node-b") -> SharedStore:
    """The same store as another node sees it."""
    caches(node)
    return SharedStore(shared.address)


def rot(shared: SharedStore, item: Task, name: str = "model") -> None:
    """Change one byte of a file in the bucket."""
    (found,) = [s.name for s in shared.remote.listing(f"artifacts/{item.id[:2]}/{item.id}") if s.name.endswith(name)]
    raw = shared.remote.get(found) or b""
    shared.remote.put(found, raw[:-1] + b"\x00")


def run(store: Store, plan: Plan, number: int = 1) -> dict[TaskId, object]:
    """Execute a plan of toys in this process; task -> what it says of itself."""
    executor = InlineExecutor(Setup(store=store.address, device="cpu"), perform=echo)
    with Journal(store.journal_path) as journal:
        request = RunRequest(f"run-{number}", "toys", "", {})
        records = run_plan(plan, request, store=store, journal=journal, executor=executor)
    return {i: (r.state.value, (r.result or {}).get("content"), r.cached, r.caveats) for i, r in records.items()}


# Artifacts


def test_another_node_reads_what_one_wrote(shared: SharedStore, caches: Nodes, item: Task) -> None:
    """Manifest and bytes are the same; nothing but the bucket has travelled."""
    written = put(shared, item, b"weights")
    other = elsewhere(shared, caches)

    assert other.root != shared.root
    assert other.has(item.id)
    assert other.manifest(item.id) == written
    assert other.read(item.id, "model") == b"weights"
    assert other.path(item.id, "model").read_bytes() == b"weights"
    assert other.uri(item.id, "model").startswith("s3://shared/")


def test_committing_twice_keeps_the_first(shared: SharedStore, caches: Nodes, item: Task) -> None:
    """A node that comes later gets the manifest that is there, and its own bytes are dropped."""
    first = put(shared, item, b"one")
    second = put(elsewhere(shared, caches), item, b"other")

    assert second == first
    assert shared.read(item.id, "model") == b"one"


def test_writers_at_the_same_time_never_mix(
    shared: SharedStore, caches: Nodes, item: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another node commits other bytes between one's files and its manifest: whichever manifest stands is whole."""
    other, upload = elsewhere(shared, caches), shared.remote.put

    def overtaken(name: str, raw: bytes) -> None:
        if name.endswith("manifest.json"):
            put(other, item, b"other")
        upload(name, raw)

    monkeypatch.setattr(shared.remote, "put", overtaken)
    kept = put(shared, item, b"one")
    third = elsewhere(shared, caches, "node-c")

    assert third.manifest(item.id) == kept
    assert third.read(item.id, "model") == b"one"
    assert third.verify()["damaged"] == []


WRITER = """
import sys
from wmarena.orchestrator.store.opening import open_store
from tests.orchestrator.toys import task
item = task("one", config={"workload": {"name": "toy"}})
files = {f"part{i}": bytes([i]) * 6_000_000 for i in range(40)}
open_store(sys.argv[1]).commit(item.id, item.identity(), {}, files)
"""


def test_a_writer_killed_while_uploading_leaves_nothing_committed(shared: SharedStore, item: Task) -> None:
    """SIGKILL after the first file is up: no artifact, no torn file; the next writer commits whole."""
    writer = subprocess.Popen([sys.executable, "-c", WRITER, shared.address])
    deadline = time.monotonic() + 120.0
    while not (up := shared.remote.listing("artifacts")):
        assert writer.poll() is None
        assert time.monotonic() < deadline
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    left = shared.remote.listing("artifacts")

    assert 1 <= len(up) <= len(left) < 41
    assert {s.size for s in left} == {6_000_000}
    assert not shared.has(item.id)
    assert shared.verify() == {"checked": 0, "files": 0, "damaged": [], "unfinished": 1}
    put(shared, item)
    assert shared.verify() == {"checked": 1, "files": 2, "damaged": [], "unfinished": 0}


def test_bit_rot_in_the_bucket_is_found_and_set_aside(shared: SharedStore, caches: Nodes, item: Task) -> None:
    """A reader refuses the file; what was right stays for the next writer, what was wrong can be inspected."""
    put(shared, item)
    rot(shared, item)
    other = elsewhere(shared, caches)
    with pytest.raises(CorruptArtifact, match="model does not match its manifest"):
        other.read(item.id, "model")
    assert [d["task_id"] for d in other.verify()["damaged"]] == [item.id]
    other.set_aside(item.id)

    assert not other.has(item.id)
    aside = sorted(s.name.rpartition("-")[2].rpartition("/")[2] for s in other.remote.listing("set_aside"))
    assert aside == ["manifest.json", "model"]
    put(other, item)
    assert other.verify()["damaged"] == []


def test_a_damaged_local_copy_is_downloaded_again(shared: SharedStore, item: Task) -> None:
    """The copy is hashed before use, and downloaded again from the bucket."""
    put(shared, item, b"weights")
    copy = shared.path(item.id, "model")
    copy.write_bytes(b"rotten!")

    assert SharedStore(shared.address).path(item.id, "model").read_bytes() == b"weights"
    copy.write_bytes(b"rotten!")
    assert shared.read(item.id, "model") == b"weights"


def test_a_lost_file_is_damage_and_a_lost_network_is_not(
    shared: SharedStore, item: Task, monkeypatch: pytest.MonkeyPatch, caches: Nodes
) -> None:
    """What is missing is computed again; what cannot be reached is tried again."""
    put(shared, item)
    other = elsewhere(shared, caches)
    for stored in other.remote.listing("artifacts"):
        if stored.name.endswith("model"):
            other.remote.drop(stored.name)
    with pytest.raises(CorruptArtifact, match="model is missing"):
        other.read(item.id, "model")

    away = SharedStore(other.address.replace("127.0.0.1", "127.0.0.2"))
    with pytest.raises(StoreError, match="expected to read") as error:
        away.read(item.id, "model")
    assert not isinstance(error.value, CorruptArtifact)


def test_many_questions_are_one_listing(shared: SharedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether 200 tasks are there is not asked one by one."""
    there = [task(f"t{i}") for i in range(3)]
    for one in there:
        put(shared, one)
    monkeypatch.setattr(shared.remote, "has", lambda name: pytest.fail("asked for a single object"))
    found = shared.having([*(t.id for t in there), *(task(f"u{i}").id for i in range(200))])

    assert found == {t.id for t in there}


# Runs


def test_a_lost_journal_is_rebuilt_from_the_bucket(shared: SharedStore, caches: Nodes) -> None:
    """Another machine, which has no journal, finds everything finished and runs nothing."""
    first = run(shared, diamond())
    other = elsewhere(shared, caches).open()
    second = run(other, diamond())

    assert {i: r[:2] for i, r in second.items()} == {i: r[:2] for i, r in first.items()}  # type: ignore[index]
    assert executions(shared) == ["bottom", "leaf", "left", "right", "root"]
    assert not (other.root / "executions.txt").exists()


def test_damage_is_repaired_while_running(shared: SharedStore, caches: Nodes) -> None:
    """A damaged parent in the bucket is computed again before its child, which reports it."""
    plan = diamond()
    run(shared, Plan([named(plan, "root")]))
    rot(shared, named(plan, "root"), "file")
    other = elsewhere(shared, caches).open()
    records = run(other, plan)

    assert {r[0] for r in records.values()} == {"done"}  # type: ignore[index]
    assert records[named(plan, "root").id][3] == ("recomputed",)  # type: ignore[index]
    assert other.verify()["damaged"] == []


DRIVER = """
import sys
from wmarena.orchestrator.store.opening import open_store
from tests.orchestrator.store.test_shared_store import run
from tests.orchestrator.toys import diamond
print(sorted(run(open_store(sys.argv[1]).open(), diamond()).values()))
"""


def test_two_drivers_at_once_never_corrupt_a_store(shared: SharedStore, caches: Nodes) -> None:
    """Both end with the same results; they may have done a task twice; every artifact is whole."""
    drivers = []
    for node in ("node-b", "node-c", "node-d"):
        caches(node)
        command = [sys.executable, "-c", DRIVER, shared.address]
        environment = dict(os.environ)
        drivers.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    said = [driver.communicate(timeout=300)[0] for driver in drivers]

    assert [d.returncode for d in drivers] == [0, 0, 0]
    assert all("bottom(left(root()),right(root()))" in words for words in said)
    found = shared.verify()
    assert (found["checked"], found["damaged"]) == (5, [])


# Keys and checkpoints


def key() -> Key:
    """A completed key."""
    return Key(scheme="toy", seed=bytes(32), public={"bits": 8}, secret={"head": torch.arange(4.0)})


def committed_with_key(shared: SharedStore, item: Task, passphrase: Passphrase) -> None:
    """What an embed task leaves: a sealed key, and an artifact that names its commitment."""
    save_key(key(), shared.key_dir(item.id), passphrase)
    shared.share_key(item.id)
    put(shared, item, commitment=key().commitment)


def test_sealed_keys_travel(shared: SharedStore, caches: Nodes, item: Task) -> None:
    """Another node with the passphrase opens the key; the bucket holds none of its secret bytes."""
    committed_with_key(shared, item, WORDS)
    other = elsewhere(shared, caches)
    other.receive_keys([item.id])
    (stored,) = shared.remote.listing("keys")
    files = json.loads(shared.remote.get(stored.name) or b"")

    assert load_key(other.key_dir(item.id), WORDS).verifies(key().commitment)
    assert (other.key_dir(item.id) / "key.json").stat().st_mode & 0o777 == 0o600
    assert not any(torch.arange(4.0).numpy().tobytes() in base64.b64decode(text) for text in files.values())
    with pytest.raises(SealError):
        load_key(other.key_dir(item.id), Passphrase(b"another one", Cost(log2_n=4)))


def test_workers_of_a_node_receive_a_key_at_the_same_time(shared: SharedStore, caches: Nodes, item: Task) -> None:
    """They share the folder: each finds the key whole, none trips over another's half-written file."""
    committed_with_key(shared, item, WORDS)
    other = elsewhere(shared, caches)
    list(in_parallel(other.receive_keys, [[item.id]] * 64))

    assert load_key(other.key_dir(item.id), WORDS).verifies(key().commitment)
    assert {p.name for p in other.key_dir(item.id).iterdir()} == {"key.json", "secret.sealed", "SHA256SUMS"}


def test_a_key_that_two_drivers_sealed_is_whole(
    shared: SharedStore, caches: Nodes, item: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same key has another seal each time; one driver overtakes the other, and what stands is one of the two."""
    save_key(key(), shared.key_dir(item.id), WORDS)
    second = elsewhere(shared, caches, "node-c")
    save_key(key(), second.key_dir(item.id), WORDS)
    upload = shared.remote.put

    def overtaken(name: str, raw: bytes) -> None:
        upload(name, raw)
        second.share_key(item.id)

    monkeypatch.setattr(shared.remote, "put", overtaken)
    shared.share_key(item.id)
    put(second, item, commitment=key().commitment)
    other = elsewhere(shared, caches)
    other.receive_keys([item.id])

    seals = [(store.key_dir(item.id) / "secret.sealed").read_bytes() for store in (shared, second, other)]
    assert seals[0] != seals[1] == seals[2]
    assert load_key(other.key_dir(item.id), WORDS).verifies(key().commitment)


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b'{"key.json": 3}', b'{"key.json": "?", "secret.sealed": "", "SHA256SUMS": ""}']
)
def test_a_key_of_another_form_is_missing(shared: SharedStore, caches: Nodes, item: Task, raw: bytes) -> None:
    """Nothing of it is written: its task runs again."""
    committed_with_key(shared, item, WORDS)
    (stored,) = shared.remote.listing("keys")
    shared.remote.put(stored.name, raw)
    other = elsewhere(shared, caches)
    other.receive_keys([item.id])

    assert not other.key_dir(item.id).exists()
    with pytest.raises(KeyFileError):
        load_key(other.key_dir(item.id), WORDS)


def test_plain_keys_never_go_to_the_bucket(shared: SharedStore, item: Task) -> None:
    """An upload of one is refused, and a run without a passphrase or --keys is refused before it begins."""
    save_key(key(), shared.key_dir(item.id), None)
    with pytest.raises(StoreError, match="expected a sealed key for a shared store, got a plain one"):
        shared.share_key(item.id)
    with pytest.raises(SealError, match=r"expected a place for keys.*set WMARENA_PASSPHRASE.*or pass --keys DIR"):
        check_passphrase(shared, [], None)
    assert shared.remote.listing("keys") == []


def test_a_shared_store_has_one_passphrase(shared: SharedStore, caches: Nodes) -> None:
    """Whoever comes second with other words is told so before anything runs."""
    check_passphrase(shared, [], WORDS)
    other = elsewhere(shared, caches)
    check_passphrase(other, [], WORDS)
    with pytest.raises(SealError, match="expected the passphrase that keys in s3://"):
        check_passphrase(other, [], Passphrase(b"another one", Cost(log2_n=4)))


def test_a_node_that_sees_another_folder_of_keys_is_refused(url: str, tmp_path: Path) -> None:
    """With --keys every worker compares what is written in the driver's folder with what it reads there itself."""
    keys, other = tmp_path / "keys", tmp_path / "not mounted"
    store = open_store(url, keys).open()
    setup = Setup(store=url, keys=keys, keys_mark=store.keys_mark(), device="cpu")

    assert WorkerContext(setup).store.keys_root == keys
    assert keys.stat().st_mode & 0o777 == 0o700
    with pytest.raises(StoreError, match="expected every node to see the driver's folder of keys"):
        WorkerContext(Setup(store=url, keys=other, keys_mark=store.keys_mark(), device="cpu"))


def test_a_long_task_resumes_on_another_node(shared: SharedStore, caches: Nodes) -> None:
    """A checkpoint goes to the bucket when it is written; what holds a part of a key is sealed there."""
    state = {"w": torch.arange(8.0)}

    def checkpoints(store: SharedStore, *, secret: bool) -> StoredCheckpoints:
        shelf = store.checkpoint_backend("walk", secret=secret)
        shelf = EncryptedCheckpoints(shelf, WORDS) if secret else shelf
        return StoredCheckpoints(shelf, every_s=0.0, cancelled=lambda: False, curves=Curves())

    for secret in (False, True):
        checkpoints(shared, secret=secret).offer(5, lambda: state)
        resumed = checkpoints(elsewhere(shared, caches), secret=secret)
        found = resumed.latest()
        assert found is not None
        assert found[0] == 5
        assert torch.equal(found[1]["w"], state["w"])
        raw = b"".join(shared.remote.get(s.name) or b"" for s in shared.remote.listing("checkpoints"))
        assert (state["w"].numpy().tobytes() in raw) is not secret
        resumed.clear()
        assert shared.remote.listing("checkpoints") == []


# Housekeeping


def test_collecting_spares_what_is_young(shared: SharedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other drivers may be at work: only what nothing reaches and is older than a day goes."""
    kept, lost = task("kept"), task("lost")
    for one in (kept, lost):
        put(shared, one)
    shared.remote.put(f"artifacts/00/{'0' * 64}/1234567890abcdef-model", b"left by a killed writer")
    shared.remote.put("checkpoints/old/1", b"state")

    assert shared.gc({kept.id}, apply=True)["removed"] == 0
    monkeypatch.setattr(shared_store, "_GRACE_S", -60.0)
    assert shared.gc({kept.id}, apply=False)["removed"] == 3
    assert shared.gc({kept.id}, apply=True)["removed"] == 3
    assert shared.task_ids() == [kept.id]
    assert shared.verify() == {"checked": 1, "files": 2, "damaged": [], "unfinished": 0}


def test_a_listing_says_what_is_there(shared: SharedStore) -> None:
    """Kind, names and bytes of each artifact; a manifest that was altered is named as damaged."""
    fine, bad = task("fine", config={"workload": {"name": "toy"}}), task("bad")
    put(shared, fine)
    put(shared, bad)
    shared.remote.put(f"artifacts/{bad.id[:2]}/{bad.id}/manifest.json", b"{}")
    rows = {row["task_id"]: row for row in shared.ls()}

    assert (rows[fine.id]["kind"], rows[fine.id]["workload"]) == ("train", "toy")
    assert rows[fine.id]["bytes"] > 9
    assert "damaged" in rows[bad.id]


def test_reports_are_shared(shared: SharedStore) -> None:
    """What was written in the report's folder is in the bucket; a folder elsewhere is the caller's own."""
    folder = shared.report_dir("toys", "r1")
    (folder / "figures").mkdir(parents=True)
    (folder / "report.html").write_text("page")
    (folder / "figures" / "one.svg").write_text("figure")
    where = shared.share_report(folder)

    assert where is not None
    assert where.partition("?")[0].endswith("/reports/toys/r1")
    assert shared.remote.get("reports/toys/r1/figures/one.svg") == b"figure"
    assert shared.share_report(shared.root.parent) is None
