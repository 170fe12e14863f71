"""Runs with a passphrase: keys are sealed, results are the same, and the passphrase is never stored or shown."""

import base64
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.experiments.conftest import Finished, Wmarena
from tests.experiments.spec_texts import TINY, problems
from wmarena.experiments.cli import main
from wmarena.experiments.results.table import read_results
from wmarena.experiments.running.context import ExpectedSeconds
from wmarena.experiments.running.execution import RunSummary, run
from wmarena.experiments.running.pool import Pool, make_executor
from wmarena.experiments.spec.experiment import ExperimentSpec
from wmarena.orchestrator.keys.encryption import PASSPHRASE, Passphrase, SealError
from wmarena.orchestrator.keys.storage import load_key
from wmarena.orchestrator.plan.events import Event, Listener
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.task import TaskId
from wmarena.orchestrator.store.keys import sealed_keys
from wmarena.orchestrator.store.local import Store

SECRET = "seventeen-plover-eggs"
ROOT = hashlib.sha512(b"a root of an owner").digest()
INLINE = Pool(executor="inline")
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> None:
    """The passphrase in the environment."""
    monkeypatch.setenv(PASSPHRASE, SECRET)


def verdicts(summary: RunSummary) -> list[tuple[object, ...]]:
    """Verdict columns of each row."""
    return [(r.scheme, r.attack, r.strength, r.control, r.log10_p) for r in read_results(Path(summary.results))]


# Results


def test_sealing_changes_no_result(given: None, finished_once: Finished, tmp_path: Path) -> None:
    """Same table, every key sealed; a second run computes nothing and needs no passphrase."""
    spec = ExperimentSpec.load(finished_once.spec)
    summary = run(spec, store=tmp_path / "store", record=False, pool=INLINE)
    store = Store(tmp_path / "store")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(PASSPHRASE)
        again = run(spec, store=tmp_path / "store", record=False, pool=INLINE)

    assert verdicts(summary) == verdicts(finished_once.summary)
    assert sealed_keys(store) == sorted(p.name for p in (store.root / "keys").iterdir() if p.is_dir())
    assert (again.executed, again.cached) == (0, summary.executed)


def test_a_passphrase_file_is_relative_to_the_spec(tmp_path: Path) -> None:
    """``keys: {passphrase: FILE}`` beside the spec, as ``root``; alone or together."""
    path = tmp_path / "my.yaml"
    path.write_text(TINY + "keys: {passphrase: words.txt}\n")
    keys = ExperimentSpec.load(path).keys

    assert keys is not None
    assert (keys.root, keys.passphrase) == (None, tmp_path / "words.txt")


def test_an_empty_block_of_keys_is_refused() -> None:
    """An empty block is probably a mistake."""
    assert problems(TINY + "keys: {}\n") == [
        "line 9: keys: expected `root`, `passphrase` or both, got neither; leave `keys` out for none"
    ]
    assert problems(TINY + "keys: {passphrase: 3}\n") == [
        "line 9: keys.passphrase: expected the path of a secret file, got 3"
    ]


# A passphrase that is missing or wrong


@pytest.fixture
def sealed(finished: Finished, given: None, capsys: Capture) -> Finished:
    """A finished store whose keys were sealed by the command line."""
    assert main(["--store", str(finished.store), "--json", "store", "encrypt"]) == 0
    assert len(json.loads(capsys.readouterr().out)["sealed"]) == 1
    return finished


@pytest.mark.parametrize(
    ("wrong", "said"), [(None, "got none; set WMARENA_PASSPHRASE"), ("another-eight", "got another for 1 key")]
)
def test_nothing_runs_without_the_right_passphrase(
    sealed: Finished, wmarena: Wmarena, capsys: Capture, monkeypatch: pytest.MonkeyPatch, wrong: str | None, said: str
) -> None:
    """Status 2 and one message before the first task; the right one then verifies with the sealed key."""
    monkeypatch.delenv(PASSPHRASE)
    if wrong is not None:
        monkeypatch.setenv(PASSPHRASE, wrong)
    arguments = ("run", sealed.spec, "--executor", "inline", "--set", "attacks.finetune.epochs=[1,2,3]", "--json")
    before = sorted(p.name for p in sealed.store.rglob("manifest.json"))

    assert wmarena(*arguments) == 2
    assert said in capsys.readouterr().err
    assert sorted(p.name for p in sealed.store.rglob("manifest.json")) == before
    assert wmarena("verify", "--model", sealed.marked, "--key", sealed.key) == 2
    assert "passphrase" in capsys.readouterr().err
    monkeypatch.setenv(PASSPHRASE, SECRET)
    assert wmarena(*arguments) == 0
    assert json.loads(capsys.readouterr().out)["failed"] == 0
    assert wmarena("verify", "--model", sealed.marked, "--key", sealed.key) == 0


def test_a_missing_passphrase_file_is_refused(tmp_path: Path) -> None:
    """No task runs; the message tells how to make one."""
    spec = ExperimentSpec.parse(TINY + f"keys: {{passphrase: {tmp_path / 'nothing'}}}\n")
    with pytest.raises(SealError, match="chmod 600"):
        run(spec, store=tmp_path / "store", record=False, pool=INLINE)

    assert not any((tmp_path / "store" / "artifacts").iterdir())


def test_encrypting_is_told_in_words(
    finished: Finished, wmarena: Wmarena, capsys: Capture, given: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sealed, and that it may be repeated; without a passphrase or with a damaged key it is no success."""
    assert wmarena("store", "encrypt") == 0
    assert capsys.readouterr().out == "sealed 1 keys; 0 were sealed before\n"
    assert wmarena("store", "encrypt") == 0
    assert capsys.readouterr().out == "sealed 0 keys; 1 were sealed before\n"
    wmarena("store", "ls", "--json")
    rows = json.loads(capsys.readouterr().out)
    assert [row["task_id"] for row in rows if row["sealed"]] == [finished.key.name]

    (finished.key / "secret.sealed").write_bytes(b"")
    assert wmarena("store", "encrypt") == 1
    assert "altered or damaged" in capsys.readouterr().out
    monkeypatch.delenv(PASSPHRASE)
    assert wmarena("store", "encrypt") == 2
    assert "set WMARENA_PASSPHRASE" in capsys.readouterr().err


# Where the passphrase is not


def readable(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Every file below a folder."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield path, path.read_bytes()


def processes(name: str) -> dict[int, bytes]:
    """Read the command line or environment of every readable process in /proc."""
    found: dict[int, bytes] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            found[int(folder.name)] = (folder / name).read_bytes()
        except OSError:  # it has ended, or belongs to somebody else
            continue
    return found


class Observer:
    """Reads command lines, worker environments and Ray's files at every event."""

    def __init__(self) -> None:
        self.lines: set[bytes] = set()
        self.informed = 0
        self.token = ""
        self.files: dict[Path, bytes] = {}

    @contextmanager
    def watch(self, plan: Plan, cached: set[TaskId], seconds: ExpectedSeconds) -> Iterator[Listener]:
        """As what shows a run."""
        self.plan = plan
        yield self.hear

    def hear(self, event: Event) -> None:
        """Look around."""
        import ray

        self.token = os.environ["RAY_AUTH_TOKEN"]
        self.lines |= set(processes("cmdline").values())
        holders = {pid for pid, raw in processes("environ").items() if SECRET.encode() in raw}
        self.informed = max(self.informed, len(holders - {os.getpid()}))
        session = ray._private.worker._global_node
        if session is not None:
            self.files |= dict(readable(Path(session.get_session_dir_path())))


def forms(secret: bytes) -> list[bytes]:
    """Encodings of a secret in a file: raw, hexadecimal, or base64 at any offset."""
    shifted = [base64.b64encode(b"\0" * n + secret)[n + n // 2 + 1 : -4] for n in range(3)]
    return [secret, secret.hex().encode(), secret.hex().upper().encode(), *shifted]


@pytest.mark.parametrize("before", range(4))
def test_the_search_would_find_a_secret(before: int) -> None:
    """In the middle of base64 as well, wherever its group of three bytes begins."""
    text = base64.b64encode(b"." * before + ROOT + b"...")

    assert any(form in text for form in forms(ROOT))
    assert not any(form in base64.b64encode(bytes(range(200))) for form in forms(ROOT))


@pytest.mark.ray
@pytest.mark.parametrize("source", ["environment", "file"])
def test_secrets_are_never_readable(
    source: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """On Ray, with MLflow: workers seal and open keys, yet passphrase, key root, a key's seed and the cluster's token
    are in no payload, log, Ray session, journal, record, report or command line.

    Only worker processes that inherit the driver's environment have the passphrase there; with a file not even these.
    """
    import ray.cloudpickle

    (tmp_path / "root").write_bytes(ROOT)
    (tmp_path / "secret.txt").write_text(SECRET + "\n")
    keys = f"root: {tmp_path / 'root'}"
    if source == "file":
        keys += f", passphrase: {tmp_path / 'secret.txt'}"
    else:
        monkeypatch.setenv(PASSPHRASE, SECRET)
    text = TINY.replace("[1, 2]", "1") + f"keys: {{{keys}}}\n"
    caplog.set_level(logging.DEBUG)
    spec, observer, store = ExperimentSpec.parse(text), Observer(), Store(tmp_path / "store")
    summary = run(spec, store=store.root, pool=Pool(workers=1), watch=observer.watch)

    payload = ray.cloudpickle.dumps((make_executor(Pool(), spec, store, None), list(observer.plan)))
    captured = capfd.readouterr()
    kept = dict(readable(store.root)) | observer.files
    shown = [payload, caplog.text.encode(), captured.out.encode(), captured.err.encode(), *observer.lines]
    (made,) = sealed_keys(store)
    key = load_key(store.key_dir(made), Passphrase(SECRET.encode()))
    secrets = {
        "passphrase": SECRET.encode(),
        "root": ROOT,
        "seed": key.seed,
        "token": observer.token.encode(),
    }
    assert summary.complete
    assert (key.scheme, key.public["simulated"]) == ("uchida", False)
    for name, secret in secrets.items():
        assert [str(path) for path, raw in kept.items() if any(f in raw for f in forms(secret))] == [], name
        assert [raw for raw in shown if any(f in raw for f in forms(secret))] == [], name
    # The search has looked where something could have been.
    assert {"journal.sqlite", "mlflow.db", "report.html", "recorder.log"} <= {p.name for p in kept}
    assert any("raylet" in path.name for path in observer.files)
    assert any(b"raylet" in line for line in observer.lines)
    assert (observer.informed > 0) == (source == "environment")
