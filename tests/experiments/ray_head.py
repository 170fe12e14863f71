"""A Ray head node as an administrator runs it: ``ray start``, its dashboard on loopback, a token."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

TREE = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Head:
    """A running head node.

    Attributes:
        address: of its dashboard.
        token: the file of its token.
        folder: where it keeps its session.
    """

    address: str
    token: Path
    folder: Path

    def environment(self, *, token: Path | None = None) -> dict[str, str]:
        """What a client's environment holds; another token if one is given."""
        return environment(token or self.token)

    def packages(self) -> list[Path]:
        """Unpacked working folders of jobs: what was uploaded."""
        return [p for p in self.folder.glob("session_2*/runtime_resources/working_dir_files/*") if p.is_dir()]

    def everything_written(self) -> bytes:
        """All logs of the session."""
        return b"".join(p.read_bytes() for p in self.folder.glob("session_2*/logs/**/*") if p.is_file())


def environment(token: Path) -> dict[str, str]:
    """One in which ``python`` is this one, Ray wants the token, and nothing of the tester's own settings shows."""
    kept = {n: v for n, v in os.environ.items() if not n.startswith(("RAY_", "WMARENA_", "MLFLOW_", "AWS_"))}
    return kept | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }


@contextmanager
def ray_head(num_cpus: int = 2, own: Mapping[str, str] | None = None) -> Iterator[Head]:
    """Start a head node and take it down again with all its processes.

    Args:
        own: what its environment holds and its clients' does not.
    """
    folder = Path(tempfile.mkdtemp(prefix="wm", dir="/tmp"))  # a short name: paths of sockets are limited
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    port, agent, client = _free_ports(3)
    command = [
        *(str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats"),
        *("--port=0", "--num-cpus", str(num_cpus), "--temp-dir", str(folder / "ray")),
        *("--dashboard-host=127.0.0.1", f"--dashboard-port={port}", f"--dashboard-agent-listen-port={agent}"),
        f"--ray-client-server-port={client}",
    ]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment(token) | dict(own or {}), cwd="/", stdout=log, stderr=log)
    try:
        _await_dashboard(port, process)
        yield Head(f"http://127.0.0.1:{port}", token, folder / "ray")
    finally:
        family = [process, *_descendants(process.pid)]
        for member in family:
            member.kill()
        psutil.wait_procs([m for m in family if isinstance(m, psutil.Process)], timeout=30)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _await_dashboard(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 300.0
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5.0):
            return
        time.sleep(0.2)
    raise TimeoutError("expected a dashboard within 300 s, got none; see the log of `ray start`")


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _free_ports(n: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
