"""A Ray cluster that the run starts: on loopback only, and only for clients with its token."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from wmarena.orchestrator.executors.ray import RayExecutor
from wmarena.orchestrator.store.local import Store
from wmarena.orchestrator.worker.context import Setup

LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
"""127.0.0.1, the same written as IPv6, and ::1, as /proc/net spells them."""

_KNOCK = """
import sys
from ray._raylet import GcsClient
try:
    GcsClient(address=sys.argv[1]).internal_kv_keys(b"", None)
except Exception as error:
    sys.exit(type(error).__name__)
print("admitted")
"""


def family(pid: int) -> Iterator[int]:
    """Return a process and its descendants."""
    yield pid
    try:
        children = [c for listed in Path(f"/proc/{pid}/task").glob("*/children") for c in listed.read_text().split()]
    except OSError:  # the process has ended meanwhile
        return
    for child in children:
        yield from family(int(child))


def doors(pid: int) -> list[str]:
    """Return the addresses that a process listens on; none if it has ended meanwhile."""
    try:
        links = [os.readlink(f) for f in Path(f"/proc/{pid}/fd").iterdir() if f.is_symlink()]
        rows = [r.split() for n in ("tcp", "tcp6") for r in Path(f"/proc/{pid}/net/{n}").read_text().splitlines()[1:]]
    except OSError:
        return []
    return [row[1].partition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in links]


def knock(address: str, **environment: str) -> str:
    """Request the cluster's keys; return "admitted" or the name of the error."""
    others = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    command = [sys.executable, "-c", _KNOCK, address]
    done = subprocess.run(command, env={**others, **environment}, capture_output=True, text=True, timeout=120)
    return (done.stdout + done.stderr).strip().splitlines()[-1]


@pytest.mark.ray
def test_a_local_cluster_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No socket can be reached from outside; a client without the token, or with another, is refused."""
    import ray

    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    setup = Setup(store=Store(tmp_path).open().root, device="cpu")
    with RayExecutor(setup, workers=1, gpus_per_worker=0, perform="tests.orchestrator.toys:echo"):
        address = ray.get_runtime_context().gcs_address
        ours = {name: os.environ[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
        found = [(pid, door) for pid in family(os.getpid()) for door in doors(pid)]
        answers = [
            knock(address, **ours),
            knock(address, RAY_AUTH_MODE="disabled"),
            knock(address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64),
        ]

    assert len(found) > 5
    assert [(pid, door) for pid, door in found if door not in LOOPBACK] == []
    assert answers == ["admitted", "AuthenticationError", "AuthenticationError"]
    assert not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"} & os.environ.keys()


def test_a_users_own_mode_and_token_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Authentication variables of the environment are not replaced."""
    from wmarena.orchestrator.executors.guard import token_guarded

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/some/where")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    with token_guarded():
        assert os.environ["RAY_AUTH_MODE"] == "disabled"
        assert "RAY_AUTH_TOKEN" not in os.environ
