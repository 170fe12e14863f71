"""``wmarena ui``: serve MLflow and optuna-dashboard on this machine only."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wmarena.experiments.commands.terminal import NO_RECORDS, Terminal
from wmarena.experiments.spec.problems import SpecError
from wmarena.orchestrator.files.addresses import has_credentials, is_remote, resolve, shown, sqlite_file
from wmarena.orchestrator.keys.encryption import without_passphrase
from wmarena.orchestrator.running.stopping import terminate_as_interrupt
from wmarena.orchestrator.store.local import safe_name

LOOPBACK = "127.0.0.1"
STUDIES = "studies"
"""Folder of a store with one Optuna journal file per study."""

_STOP_S = 10.0
_TICK_S = 0.2


def ui(terminal: Terminal, args: Namespace) -> int:
    """Serve until Ctrl-C; print the address of a remote tracking server instead."""
    servers = [*_mlflow(terminal, args.port), *_dashboard(terminal, args.study, args.port + 1)]
    return serve(servers) if servers else 0


@dataclass(frozen=True)
class Server:
    """A program to run.

    Attributes:
        command: its command line, visible to other users of the machine.
        secrets: environment variables, not visible to them.
    """

    command: Sequence[str]
    secrets: Mapping[str, str] = field(default_factory=dict)


def _mlflow(terminal: Terminal, port: int) -> list[Server]:
    """Prepare MLflow's server, unless the records are on a remote one."""
    given = None if terminal.tracking_uri == NO_RECORDS else terminal.tracking_uri
    uri = resolve(given, terminal.open_store().root)
    if is_remote(uri):
        terminal.text(f"The records are at {shown(uri)}")
        return []
    database = sqlite_file(uri)
    if database is not None and not database.is_file():
        raise SpecError.of(f"expected records in {database}, got no such file; run a spec first, or pass --store")
    _check_free(port)
    terminal.note(
        f"MLflow at http://{LOOPBACK}:{port}/#/experiments?workflowType=machine_learning on {shown(uri)}; "
        "Ctrl-C ends it"
    )
    return [mlflow_server(uri, port)]


def mlflow_server(uri: str, port: int) -> Server:
    """Make MLflow's server on loopback only; an address with a password is not put on its command line."""
    command = [sys.executable, "-m", "mlflow", "ui", "--host", LOOPBACK, "--port", str(port)]
    if has_credentials(uri):
        return Server(command, {"MLFLOW_BACKEND_STORE_URI": uri})
    return Server([*command, "--backend-store-uri", uri])


def _dashboard(terminal: Terminal, chosen: str | None, port: int) -> list[Server]:
    """Prepare optuna-dashboard, if there is a study to show."""
    storage = _storage(terminal, chosen)
    if storage is None:
        return []
    program = shutil.which("optuna-dashboard", path=str(Path(sys.executable).parent)) or shutil.which(
        "optuna-dashboard"
    )
    if program is None:
        message = "expected optuna-dashboard to show studies, got no such program; `pip install optuna-dashboard`"
        if chosen is not None:
            raise SpecError.of(message)
        terminal.note(message)
        return []
    _check_free(port)
    terminal.note(f"optuna-dashboard at http://{LOOPBACK}:{port}/ on {shown(storage)}; Ctrl-C ends it")
    return [dashboard_server(program, storage, port)]


def dashboard_server(program: str, storage: str, port: int) -> Server:
    """Make optuna-dashboard's server on loopback only; ``wsgiref`` needs no further package."""
    where = ["--host", LOOPBACK, "--port", str(port), "--server", "wsgiref", "--quiet"]
    kind = [] if "://" in storage else ["--storage-class", "JournalFileStorage"]
    return Server([program, storage, *kind, *where])


def _storage(terminal: Terminal, chosen: str | None) -> str | None:
    """Return the study's storage: the URL given, the named study's file, else the newest file."""
    if chosen is not None and "://" in chosen:
        return chosen
    folder = terminal.open_store().root / STUDIES
    files = sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime)
    names = ", ".join(sorted(path.stem for path in files)) or "none"
    if chosen is None:
        if len(files) > 1:
            terminal.note(f"several studies: {names}; the newest is shown, another by --study NAME")
        return str(files[-1]) if files else None
    file = folder / f"{safe_name(chosen)}.log"
    if file not in files:
        raise SpecError.of(f"expected a study of {folder} or a storage URL, got {chosen!r}; there: {names}")
    return str(file)


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            message = f"expected a free port, got {port} ({error.strerror}); pass --port N: N and N + 1 are used"
            raise SpecError.of(message) from None


def serve(servers: Sequence[Server]) -> int:
    """Run servers until one ends, Ctrl-C or SIGTERM, then stop all.

    Returns:
        0 after a signal, else the status of the server that ended.
    """
    processes: list[subprocess.Popen[bytes]] = []
    try:
        with terminate_as_interrupt():
            for server in servers:
                processes.append(start(server))
            while True:
                for process in processes:
                    status = process.poll()
                    if status is not None:
                        return status
                time.sleep(_TICK_S)
    except KeyboardInterrupt:
        return 0
    finally:
        stop(processes)


def start(server: Server) -> "subprocess.Popen[bytes]":
    """Start a server in its own process group, so that ``stop`` can signal it together with its children."""
    environment = without_passphrase({**os.environ, **server.secrets})
    return subprocess.Popen(server.command, start_new_session=True, env=environment)


def stop(servers: Sequence[subprocess.Popen[bytes]]) -> None:
    """Stop servers with all their children: SIGTERM, then SIGKILL."""
    for server in servers:
        _signal(server, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_S
    for server in servers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(max(0.0, deadline - time.monotonic()))
        _signal(server, signal.SIGKILL)
        server.wait()


def _signal(server: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(server.pid, number)
