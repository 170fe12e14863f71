"""Journal and MLflow's records on a real PostgreSQL server, by the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.experiments.conftest import Finished
from tests.experiments.running.test_late_records import entries
from tests.real_servers import free_port
from wmarena.experiments.cli import main
from wmarena.experiments.commands.browsing import mlflow_server
from wmarena.orchestrator.files.addresses import shown

Capture = pytest.CaptureFixture[str]


def test_a_run_with_everything_on_postgresql(
    postgres: Callable[[], str],
    finished_once: Finished,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    """Every entry is recorded once, a second run executes nothing, and the password is in no file and no output."""
    journal, records, store = postgres(), postgres(), tmp_path / "store"
    monkeypatch.setenv("WMARENA_JOURNAL", journal)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", records)
    command = ["--store", str(store), "--json", "--tracking-uri", records]
    executed, cached = [], []
    for _ in range(2):
        assert main([*command, "run", str(finished_once.spec), "--executor", "inline"]) == 0
        summary = json.loads(capsys.readouterr().out)
        executed.append(summary["executed"])
        cached.append(summary["cached"])
    assert main([*command, "report", "--sync"]) == 0
    said = capsys.readouterr()

    assert (executed, cached) == ([14, 0], [0, 14])
    assert len(entries(records, executions=2)) == 12
    assert not (store / "journal.sqlite").exists()
    assert not (store / "mlflow.db").exists()
    content = b"".join(p.read_bytes() for p in store.rglob("*") if p.is_file())
    assert b"axolotl-secret" not in content + said.out.encode() + said.err.encode()


def test_an_unreachable_record_server_is_reported(finished_once: Finished, capsys: Capture) -> None:
    """Exit status 3, one line without the password, at once instead of after MLflow's two minutes of trying."""
    uri = f"postgresql://owner:swordfish@127.0.0.1:{free_port()}/x"
    assert main(["--store", str(finished_once.store), "--tracking-uri", uri, "report", "--sync"]) == 3
    said = capsys.readouterr().err
    assert "nothing is lost" in said
    assert "swordfish" not in said


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("postgresql://owner:swordfish@host:5432/x", "postgresql://host:5432/x"),
        (
            "postgresql://host/x?user=owner&password=swordfish&sslmode=require",
            "postgresql://host/x?user=owner&sslmode=require",
        ),
        ("https://host/?api_key=swordfish", "https://host/"),
        ("sqlite:////tmp/a b.db", "sqlite:////tmp/a b.db"),
    ],
)
def test_addresses_are_shown_without_secrets(uri: str, expected: str) -> None:
    """User part and query are masked; addresses without secrets are unchanged."""
    assert shown(uri) == expected


def test_the_browser_of_records_shows_no_password() -> None:
    """A database's password goes to MLflow's server by its environment: others see a command line."""
    server = mlflow_server("postgresql://owner:swordfish@host/x", 5000)
    open_one = mlflow_server("postgresql://host/x", 5000)

    assert not any("swordfish" in word for word in server.command)
    assert server.secrets == {"MLFLOW_BACKEND_STORE_URI": "postgresql://owner:swordfish@host/x"}
    assert "postgresql://host/x" in open_one.command
    assert not open_one.secrets
