"""The command line on a shared store, against a real S3 server: same table as a local store, from any machine."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.experiments.conftest import Finished
from tests.real_servers import CREDENTIALS
from wmarena.experiments.cli import main
from wmarena.experiments.results.table import read_results
from wmarena.orchestrator.keys.encryption import PASSPHRASE
from wmarena.orchestrator.store.remote import Remote

WORDS = "seventeen-plover-eggs"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def ran(s3: Callable[[], str], finished_once: Finished, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a store in which one machine has run the tiny spec, recording into MLflow; look, do not touch."""
    url, cache = s3(), tmp_path_factory.mktemp("one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        patch.setenv(PASSPHRASE, WORDS)
        assert main(["--store", url, "run", str(finished_once.spec), "--executor", "inline"]) == 0
        yield url
        assert_silent(b"".join(p.read_bytes() for p in cache.rglob("*") if p.is_file()))


def assert_silent(content: bytes) -> None:
    """Neither credentials nor the passphrase are in it."""
    for secret in (CREDENTIALS["AWS_SECRET_ACCESS_KEY"], WORDS):
        assert secret.encode() not in content


@pytest.fixture
def wmarena(ran: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command line on that store, on another machine without MLflow."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return lambda *arguments: main(["--store", ran, "--tracking-uri", "none", "--json", *map(str, arguments)])


def table(results: Path | str) -> list[dict[str, Any]]:
    """Rows without what differs between any two runs: their ids, times and origin."""
    skipped = {"run_id", "cached", "seconds_embed", "seconds_attack", "seconds_verify"}
    return [{k: v for k, v in row.to_record().items() if k not in skipped} for row in read_results(Path(results))]


def test_the_table_equals_a_local_stores(wmarena: Callable[..., int], finished_once: Finished, capsys: Capture) -> None:
    """Another machine finds every task in the bucket, runs none, needs no key, and writes the local run's table."""
    assert wmarena("run", finished_once.spec, "--executor", "inline") == 0
    summary = json.loads(capsys.readouterr().out)

    assert (summary["executed"], summary["failed"]) == (0, 0)
    assert summary["cached"] == finished_once.summary.executed
    assert table(summary["results"]) == table(finished_once.summary.results)
    assert summary["shared_report"].startswith("s3://")


def test_stored_artifacts_are_planned_listed_and_checked(
    wmarena: Callable[..., int], finished_once: Finished, capsys: Capture
) -> None:
    """``plan`` counts what the bucket has, ``store ls`` names it, ``store verify`` finds no damage."""
    assert wmarena("plan", finished_once.spec) == 0
    planned = json.loads(capsys.readouterr().out)
    assert wmarena("store", "ls") == 0
    listed = json.loads(capsys.readouterr().out)
    assert wmarena("store", "verify") == 0
    checked = json.loads(capsys.readouterr().out)

    assert planned["cached"] == len(planned["tasks"]) == len(listed) == checked["checked"]
    assert checked["damaged"] == []


def test_gc_on_a_shared_store_needs_keep(wmarena: Callable[..., int], finished_once: Finished, capsys: Capture) -> None:
    """Without --keep nothing is removed; with it, what is young stays."""
    assert wmarena("store", "gc", "--apply") == 2
    assert "expected --keep SPEC" in capsys.readouterr().err
    assert wmarena("store", "gc", "--apply", "--keep", finished_once.spec) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == 0


def test_a_model_is_judged_from_the_store(
    wmarena: Callable[..., int], ran: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Model and key by the task that made them, from another machine that has the passphrase; unknown ones are said."""
    assert wmarena("store", "ls") == 0
    (marked,) = [row["task_id"] for row in json.loads(capsys.readouterr().out) if row["kind"] == "embed"]
    monkeypatch.setenv(PASSPHRASE, WORDS)
    assert wmarena("verify", "--model", marked, "--key", marked[:12]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"]
    assert wmarena("verify", "--model", "0123456789ab", "--key", marked) == 2
    assert "expected one task 0123456789ab in s3://" in capsys.readouterr().err


def test_nothing_secret_is_in_the_bucket(ran: str) -> None:
    """Keys are sealed; credentials and passphrase are not in any object."""
    remote = Remote(ran)
    names = [s.name for s in remote.listing("")]

    assert {n.rpartition("/")[2] for n in names if n.startswith("keys/")} == {"sealed-key.json", "passphrase-check"}
    assert_silent(b"".join(remote.get(name) or b"" for name in names))


def test_a_run_without_a_place_for_keys_is_refused(
    s3: Callable[[], str], finished_once: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Exit status 2 and both ways out; with --keys the plain keys stay there and none is in the bucket."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(PASSPHRASE, raising=False)
    url, keys = s3(), tmp_path / "keys"
    command = ["--store", url, "--tracking-uri", "none", "run", str(finished_once.spec), "--executor", "inline"]
    assert main(command) == 2
    assert "pass --keys DIR" in capsys.readouterr().err
    assert main(["--keys", str(keys), *command]) == 0

    assert len([p for p in keys.iterdir() if p.is_dir() and not p.name.startswith(".")]) == 1
    assert Remote(url).listing("keys") == []
