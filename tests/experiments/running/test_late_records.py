"""MLflow unreachable during a run: the run finishes, and ``wmarena report --sync`` sends all records once."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.experiments.conftest import Finished
from tests.real_servers import free_port, mlflow_server
from wmarena.experiments.cli import main
from wmarena.orchestrator.journal.journal import Journal

NAME = "tiny"


@pytest.fixture(scope="module")
def port() -> int:
    """A free port for the tracking server."""
    return free_port()


@pytest.fixture(scope="module")
def missed(port: int, finished_once: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that ran the tiny spec while its tracking server was away."""
    store = tmp_path_factory.mktemp("missed") / "store"
    spec = ["run", str(finished_once.spec), "--executor", "inline"]
    assert main(["--store", str(store), "--tracking-uri", f"http://127.0.0.1:{port}", *spec]) == 0
    return store


@pytest.fixture(scope="module")
def server(missed: Path, port: int) -> Iterator[str]:
    """An MLflow server that is reachable again."""
    folder = missed.parent / "server"
    folder.mkdir()
    with mlflow_server(folder, port) as address:
        yield address


def entries(uri: str, executions: int = 1) -> dict[str, tuple[Any, ...]]:
    """Task id -> data of its only MLflow run; fails if a task has two."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(NAME)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    nested = [r for r in runs if "wmarena.task_id" in r.data.tags]
    assert max(Counter(r.data.tags["wmarena.task_id"] for r in nested).values()) == 1
    assert len(runs) - len(nested) == executions
    return {
        r.data.tags["wmarena.task_id"]: (r.info.run_name, r.info.status, r.data.metrics, r.data.params) for r in nested
    }


def sync(store: Path, uri: str) -> list[str]:
    """The command line that sends all missing records."""
    return ["--store", str(store), "--tracking-uri", uri, "report", "--sync"]


def test_a_sync_while_the_server_is_away_may_be_repeated(missed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The message says that nothing is lost; exit status 3."""
    assert main(sync(missed, f"http://127.0.0.1:{free_port()}")) == 3
    assert "nothing is lost, the store has it all" in capsys.readouterr().err


def test_everything_is_sent_once_the_server_is_back(
    missed: Path, server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same entries, numbers and parameters as a mirror that was never away; a second sync adds nothing."""
    assert main([*sync(missed, server), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["complete"]
    late = entries(server)
    elsewhere = f"sqlite:///{tmp_path}/mlflow.db"
    assert main(sync(missed, elsewhere)) == 0
    capsys.readouterr()
    assert main(sync(missed, server)) == 0

    assert late == entries(elsewhere) == entries(server)
    assert "sent 0 entries" in capsys.readouterr().err


def test_an_interrupted_sync_goes_on(tmp_path: Path, finished_once: Finished) -> None:
    """After SIGKILL the next sync sends the rest: no entry twice, none incomplete."""
    database = f"sqlite:///{tmp_path}/mlflow.db"
    store = tmp_path / "store"
    shutil.copytree(finished_once.store, store)
    environment = dict(os.environ)
    command = [sys.executable, "-m", "wmarena", *sync(store, database)]
    sending = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    wait_for(lambda: count(database) >= 3, sending)
    sending.send_signal(signal.SIGKILL)
    sending.wait()
    begun = count(database)
    assert main(sync(store, database)) == 0

    whole = entries(database)
    assert begun <= len(whole) + 1
    assert {status for _, status, _, _ in whole.values()} == {"FINISHED"}
    with Journal(store / "journal.sqlite") as journal:
        rows = journal.task_rows(t for _, t, _, _ in journal.run_tasks(finished_once.summary.run_id))
    assert whole.keys() == {row["id"] for row in rows if row["kind"] != "attack"}


def count(uri: str) -> int:
    """Count runs by SQL, because MLflow itself would create tables."""
    try:
        with closing(sqlite3.connect(f"file:{uri.removeprefix('sqlite:///')}?mode=ro", uri=True)) as db:
            return int(db.execute("SELECT COUNT(*) FROM runs").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


def wait_for(ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Wait for a condition while a process runs."""
    deadline = time.monotonic() + 300.0
    while not ready():
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)
