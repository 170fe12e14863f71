"""``wmarena ui``: real servers side by side on loopback, which end together."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from tests.drills.drill import restore_ctrl_c
from tests.servers import answers, fetched, free_ports
from wmarena.experiments.cli import main
from wmarena.experiments.commands.browsing import STUDIES, Server, dashboard_server, mlflow_server, serve

TREE = Path(__file__).resolve().parents[3]
Capture = pytest.CaptureFixture[str]

pytestmark = pytest.mark.server


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with an empty MLflow database."""
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "mlflow.db").touch()
    return folder


def make_study(store: Path, name: str) -> None:
    """A study of one trial, in the store's folder of studies."""
    folder = store / STUDIES
    folder.mkdir(exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(folder / f"{name}.log")))
    study = optuna.create_study(study_name=name, storage=storage)
    study.tell(study.ask({"lambda1": optuna.distributions.FloatDistribution(0.02, 0.2)}), 1.0)


@contextmanager
def running(store: Path, port: int, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """Start ``wmarena ui``; stop it with all its children at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "wmarena", "--store", str(store), "ui", "--port", str(port), *arguments],
        cwd=store,
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=restore_ctrl_c,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


def test_mlflow_and_the_dashboard_stand_side_by_side(store: Path) -> None:
    """Both answer, the dashboard knows the study, Ctrl-C ends both with status 0."""
    make_study(store, "lambda")
    port = free_ports()
    with running(store, port) as process:
        page = fetched(f"http://127.0.0.1:{port}/", lambda: process.poll() is None)
        studies = fetched(f"http://127.0.0.1:{port + 1}/api/studies", lambda: process.poll() is None)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)

    assert b"MLflow" in page[1]
    assert [s["study_name"] for s in json.loads(studies[1])["study_summaries"]] == ["lambda"]
    assert process.returncode == 0
    assert f"http://127.0.0.1:{port}/" in said
    assert f"http://127.0.0.1:{port + 1}/" in said
    assert not answers(port)
    assert not answers(port + 1)


def test_servers_are_reachable_from_this_machine_only() -> None:
    """Both command lines bind to loopback, at the ports that were asked for."""
    for server in (mlflow_server("sqlite:///x.db", 5123), dashboard_server("optuna-dashboard", "x.log", 5123)):
        assert server.command[server.command.index("--host") + 1] == "127.0.0.1"
        assert server.command[server.command.index("--port") + 1] == "5123"


def test_one_server_takes_the_other_with_it(tmp_path: Path) -> None:
    """If one ends, so does the other, and its status is what is returned."""
    alive = tmp_path / "pid"
    stays = f"import os, time; open({str(alive)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    ends = f"import os, sys, time\nwhile not os.path.exists({str(alive)!r}): time.sleep(0.05)\nsys.exit(7)"

    status = serve([Server([sys.executable, "-c", stays]), Server([sys.executable, "-c", ends])])

    assert status == 7
    time.sleep(0.1)
    with pytest.raises(ProcessLookupError):
        os.kill(int(alive.read_text()), 0)


def test_sigterm_ends_the_servers(tmp_path: Path) -> None:
    """SIGTERM stops all servers, as Ctrl-C does."""
    alive = tmp_path / "pid"
    stays = f"import os, time; open({str(alive)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    program = (
        "import sys; from wmarena.experiments.commands.browsing import Server, serve; "
        f"sys.exit(serve([Server([sys.executable, '-c', {stays!r}])]))"
    )
    serving = subprocess.Popen([sys.executable, "-c", program], cwd=TREE)
    while not (alive.exists() and alive.read_text()) and serving.poll() is None:
        time.sleep(0.05)
    serving.terminate()

    assert serving.wait(timeout=60) == 0
    with pytest.raises(ProcessLookupError):
        os.kill(int(alive.read_text()), 0)


def test_servers_do_not_get_the_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server's environment lacks the passphrase."""
    monkeypatch.setenv("WMARENA_PASSPHRASE", "not for browsers")

    program = "import os, sys; sys.exit(3 + ('WMARENA_PASSPHRASE' in os.environ))"

    assert serve([Server([sys.executable, "-c", program])]) == 3


def test_a_servers_secrets_are_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One server's environment variables are not passed to the other."""
    monkeypatch.delenv("MLFLOW_BACKEND_STORE_URI", raising=False)
    told = tmp_path / "told"
    first = f"import os, time; open({str(told)!r}, 'w').write(os.environ['MLFLOW_BACKEND_STORE_URI']); time.sleep(600)"
    second = (
        f"import os, sys, time\nwhile not os.path.exists({str(told)!r}) or not os.path.getsize({str(told)!r}): "
        "time.sleep(0.05)\nsys.exit(3 + ('MLFLOW_BACKEND_STORE_URI' in os.environ))"
    )
    servers = [
        Server([sys.executable, "-c", first], {"MLFLOW_BACKEND_STORE_URI": "postgresql://owner:swordfish@host/x"}),
        Server([sys.executable, "-c", second]),
    ]

    assert serve(servers) == 3
    assert told.read_text() == "postgresql://owner:swordfish@host/x"


def test_a_taken_port_is_refused(store: Path, capsys: Capture) -> None:
    """The message names the port and the way out; nothing is started."""
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        status = main(["--store", str(store), "ui", "--port", str(port)])

    assert status == 2
    assert f"expected a free port, got {port}" in capsys.readouterr().err


def test_an_unknown_study_is_refused(store: Path, capsys: Capture) -> None:
    """The message lists the studies that there are."""
    make_study(store, "lambda")
    status = main(["--store", str(store), "ui", "--port", str(free_ports()), "--study", "gamma"])

    assert status == 2
    assert "got 'gamma'; there: lambda" in capsys.readouterr().err


def test_without_the_dashboard_the_message_says_how_to_get_it(
    store: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study was asked for, its viewer is not installed: exit 2 with the command that installs it."""
    make_study(store, "lambda")
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    status = main(["--store", str(store), "ui", "--port", str(free_ports()), "--study", "lambda"])

    assert status == 2
    assert "pip install optuna-dashboard" in capsys.readouterr().err


def test_a_store_without_records_is_refused(tmp_path: Path, capsys: Capture) -> None:
    """There is nothing to browse: run a spec first."""
    status = main(["--store", str(tmp_path), "ui"])

    assert status == 2
    assert "run a spec first" in capsys.readouterr().err
