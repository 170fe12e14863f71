"""Real servers for tests, each in a process of its own on a free loopback port: S3 (moto), PostgreSQL, MLflow."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import boto3
import pytest

_PATIENCE_S = 120.0
BUCKET = "shared"
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "wmarena-tests",
    "AWS_SECRET_ACCESS_KEY": "zyzzyva-quokka-secret",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(
    command: Sequence[str],
    port: int,
    environment: Mapping[str, str] | None = None,
    stop: signal.Signals = signal.SIGTERM,
) -> Iterator[None]:
    """A server's process, from when it answers until the end of the block."""
    own, nothing = {**os.environ, **(environment or {})}, subprocess.DEVNULL
    with subprocess.Popen(command, env=own, stdout=nothing, stderr=nothing, start_new_session=True) as process:
        try:
            _wait(lambda: _answers(port), process)
            yield
        finally:
            process.send_signal(stop)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_PATIENCE_S)
            with suppress(ProcessLookupError):  # helpers that the server has left behind
                os.killpg(process.pid, signal.SIGKILL)


def _answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _wait(ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not ready():
        assert process.poll() is None, f"the server ended with status {process.returncode}"
        assert time.monotonic() < deadline, "the server does not answer"
        time.sleep(0.05)


@contextmanager
def s3_server() -> Iterator[Callable[[], str]]:
    """An S3 server with a bucket; gives URLs of empty folders in it. Its credentials are in the environment."""
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        with serving([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port):
            boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}").create_bucket(Bucket=BUCKET)
            query = f"endpoint_override=127.0.0.1:{port}&scheme=http"
            yield lambda: f"s3://{BUCKET}/{uuid.uuid4().hex[:8]}?{query}"


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[str]:
    """An MLflow server on that loopback port, its files under ``folder``; gives its address."""
    places = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "files")]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with serving([*command, *places], port, {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}):
        yield f"http://127.0.0.1:{port}"


def postgres_binary(name: str) -> Path | None:
    """A program of Debian's PostgreSQL, the newest version that is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda p: int(p.parts[-3]))
    return found[-1] if found else None


@contextmanager
def postgres_server(folder: Path) -> Iterator[Callable[[], str]]:
    """A PostgreSQL server on loopback, its files under ``folder``; gives URLs of empty databases."""
    initdb, postgres, psql = (postgres_binary(name) for name in ("initdb", "postgres", "psql"))
    if initdb is None or postgres is None or psql is None:
        pytest.skip("needs a PostgreSQL server: apt-get install postgresql")
    if os.getuid() == 0 and shutil.which("setpriv") is None:
        pytest.skip("needs setpriv: PostgreSQL does not run as root")
    # PostgreSQL refuses to run as root; its own user must reach the folder.
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
    folder.mkdir(parents=True)
    if user:
        shutil.chown(folder, "postgres", "postgres")
    port, data = free_port(), folder / "data"
    (folder / "password").write_text("axolotl-secret")
    if user:
        shutil.chown(folder / "password", "postgres", "postgres")
    make = [initdb, "-D", data, "-U", "owner", "-A", "scram-sha-256", f"--pwfile={folder / 'password'}", "-N"]
    subprocess.run([*user, *map(str, make)], check=True, capture_output=True, cwd="/")
    options = ["-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}", "-c", "fsync=off"]
    # Told to terminate, it would wait for whoever is still connected; interrupted, it sends them away.
    with serving([*user, str(postgres), "-D", str(data), "-p", str(port), *options], port, stop=signal.SIGINT):
        environment = {**os.environ, "PGPASSWORD": "axolotl-secret"}

        def database() -> str:
            name = f"db{uuid.uuid4().hex[:8]}"
            command = [str(psql), "-h", "127.0.0.1", "-p", str(port), "-U", "owner", "-d", "postgres"]
            create = [*command, "-c", f"CREATE DATABASE {name}"]
            deadline = time.monotonic() + _PATIENCE_S
            while subprocess.run(create, env=environment, capture_output=True, check=False).returncode:
                assert time.monotonic() < deadline, "PostgreSQL makes no database"
                time.sleep(0.1)
            return f"postgresql://owner:axolotl-secret@127.0.0.1:{port}/{name}"

        yield database
