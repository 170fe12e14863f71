"""``wmarena ui``: MLflow on the records, on this machine only."""

import os
import subprocess
import sys
from argparse import Namespace

from experiments.commands.terminal import NO_RECORDS, Terminal
from experiments.problems import Problem, SpecError
from orchestrator.recorders.addresses import is_remote, resolve, shown, sqlite_file
from orchestrator.sealing import without_passphrase


def ui(terminal: Terminal, args: Namespace) -> int:
    """Serve MLflow until Ctrl-C; where a tracking server has the records, say where it is."""
    given = None if terminal.tracking_uri == NO_RECORDS else terminal.tracking_uri
    uri = resolve(given, terminal.store)
    if is_remote(uri):
        terminal.text(f"The records are at {shown(uri)}")
        return 0
    database = sqlite_file(uri)
    if database is not None and not database.is_file():
        raise SpecError(
            [Problem(f"expected records in {database}, got no such file; run a spec first, or pass --store")]
        )
    terminal.note(
        f"MLflow at http://127.0.0.1:{args.port}/?workflowType=machine_learning on {shown(uri)}; Ctrl-C ends it"
    )
    environment = without_passphrase({**os.environ})
    return subprocess.run(ui_command(uri, args.port), check=False, env=environment).returncode


def ui_command(uri: str, port: int) -> list[str]:
    """The server's command line: loopback only."""
    return [
        sys.executable,
        "-m",
        "mlflow",
        "ui",
        "--backend-store-uri",
        uri,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
