"""A run submitted to a cluster, over a store whose credentials only the cluster has."""

import json
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.drills.drill import FULL, Drill
from tests.experiments.ray_head import Head, ray_head
from tests.import_paths import TREE
from tests.real_servers import CREDENTIALS
from wmarena.orchestrator.keys.encryption import PASSPHRASE

WORDS = "eleven-lapwing-eggs"
SECRETS = (CREDENTIALS["AWS_SECRET_ACCESS_KEY"], WORDS)
SHOWN = (
    *("api/jobs/", "api/v0/jobs", "api/v0/actors?detail=1", "api/v0/tasks?detail=1", "api/v0/workers?detail=1"),
    *("api/v0/runtime_envs?detail=1", "api/v0/nodes?detail=1", "nodes?view=summary", "logical/actors", "events"),
    *("api/cluster_status", "api/v0/cluster_events", "api/v0/cluster_metadata", "test/dump"),
)
"""What a cluster's dashboard and ``ray list`` are made of."""

pytestmark = pytest.mark.skipif(not FULL, reason="submitted runs over S3 are drilled by `make drill`")


DECOY = "decoy-that-travels-with-a-job"


def ask(head: Head, path: str, body: Mapping[str, object] | None = None) -> bytes:
    """Query the dashboard with its token."""
    request = urllib.request.Request(f"{head.address}/{path}", json.dumps(body).encode() if body else None)
    request.add_header("Authorization", f"Bearer {head.token.read_text()}")
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: bytes = answer.read()
        return found


def shown(head: Head) -> dict[str, bytes]:
    """Read all pages of the dashboard."""
    return {path: ask(head, path) for path in SHOWN}


def processes(cache: Path) -> list[psutil.Process]:
    """List processes with this cache folder: the head and its descendants."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("XDG_CACHE_HOME") == str(cache):
                found.append(process)
    return found


def command_lines() -> bytes:
    """Read the command lines of all processes of the machine."""
    return repr([process.info["cmdline"] for process in psutil.process_iter(["cmdline"])]).encode()


def at_work(cache: Path) -> dict[str, list[dict[str, str]]]:
    """Environments of the job's driver and of its workers."""
    found: dict[str, list[dict[str, str]]] = {"driver": [], "worker": []}
    for process in processes(cache):
        with suppress(psutil.Error):
            words, environment = " ".join(process.cmdline()), process.environ()
            if words.startswith("ray::GpuWorker"):
                found["worker"].append(environment)
            elif " -m wmarena run " in words and " submit " not in words:
                found["driver"].append(environment)
    return found


@pytest.mark.ray
def test_secrets_of_a_store_come_from_the_nodes(
    s3: Callable[[], str], tmp_path: Path, undisturbed: Drill, counts: Counter[str]
) -> None:
    """The client has none; driver and workers have them from their node; no page, log or command line shows them."""
    drill = Drill(tmp_path, url=s3(), environment={PASSPHRASE: WORDS})
    cache = Path(drill.environment["XDG_CACHE_HOME"])
    watched, environments = b"", dict[str, list[dict[str, str]]]()
    with ray_head(own={**CREDENTIALS, **drill.environment}) as head:
        words = ["submit", str(tmp_path / "spec.yaml"), "--store", str(drill.url), "--tracking-uri", "none"]
        said: list[str] = []
        with subprocess.Popen(
            [sys.executable, "-m", "wmarena", *words, "--address", head.address],
            cwd=TREE,
            env=head.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as client:
            assert client.stdout is not None
            for line in client.stdout:
                said.append(line)
                if "] done " in line and not watched:
                    watched = command_lines() + b"".join(shown(head).values())
                    environments = at_work(cache)
        # A secret sent with a job would be visible, as this decoy is.
        ask(head, "api/jobs/", {"entrypoint": "true", "runtime_env": {"env_vars": {"DECOY": DECOY}}})
        pages, logs = shown(head), head.everything_written()
    drill.check(undisturbed)

    assert client.returncode == 0, "".join(said)
    assert not set(SECRETS) & set(head.environment().values())
    assert b"--store" in pages["api/jobs/"]
    assert DECOY.encode() in pages["api/jobs/"]
    assert b"GpuWorker" in pages["api/v0/actors?detail=1"]
    for some in (environments["driver"], environments["worker"]):
        assert some
        assert all(set(SECRETS) <= set(environment.values()) for environment in some)
    for secret in SECRETS:
        assert secret.encode() not in watched + b"".join(pages.values()) + logs + "".join(said).encode()
    counts["runs submitted over S3"] += 1
