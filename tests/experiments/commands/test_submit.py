"""Submission to a cluster: the uploaded files, and a run independent of its client."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.experiments.ray_head import TREE, Head, environment, ray_head
from tests.experiments.spec_texts import TINY
from tests.import_guard import FOLDERS
from wmarena.experiments.cli import main
from wmarena.experiments.commands.submitting import _exit_status
from wmarena.experiments.running.upload import pack
from wmarena.orchestrator.executors.jobs import ClusterJob

SECRET = "correct horse battery staple, which nobody else may read"
LONG = TINY.replace("epochs: 1,", "epochs: 100000,")


def command(head: Head, *arguments: object, token: Path | None = None) -> "subprocess.Popen[str]":
    """The command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "wmarena", *map(str, arguments), "--address", head.address],
        cwd=TREE,
        env=head.environment(token=token),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """(exit status, stdout, stderr)."""
    out, err = process.communicate(timeout=400)
    return process.returncode, out, err


def document(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """What a command prints with --json."""
    code, out, err = finished(process)
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def until(head: Head, job: str, *states: str) -> dict[str, Any]:
    """The job once it is in one of these states."""
    deadline = time.monotonic() + 300.0
    while time.monotonic() < deadline:
        found = document(command(head, "status", job, "--json"))
        if found["status"] in states:
            return found
    raise AssertionError(f"{job} never became {states}")


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A cluster of one node that requires a token."""
    with ray_head() as running:
        yield running


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """A spec beside files that must not be uploaded."""
    folder = tmp_path / "project"
    (folder / ".git").mkdir(parents=True)
    (folder / "wmarena-store" / "keys").mkdir(parents=True)
    for name in (".git/config", "wmarena-store/keys/key.safetensors", "owner.secret", "data.npy"):
        (folder / name).write_text(SECRET)
    path = folder / "tiny.yaml"
    path.write_text(TINY)
    return path


# Upload


def test_only_code_and_spec_are_uploaded(tmp_path: Path) -> None:
    """The upload holds the packages' sources, their version and the spec; it can plan by itself."""
    pack(TINY, tmp_path / "upload")
    here = {str(p.relative_to(tmp_path / "upload")) for p in (tmp_path / "upload").rglob("*") if p.is_file()}
    listed = subprocess.run(["git", "ls-files", *FOLDERS], cwd=TREE, capture_output=True, text=True, check=True)
    tracked = {f"wmarena/{name}" for name in listed.stdout.split()} | {"wmarena/__init__.py", "wmarena/__main__.py"}
    extra = here - tracked - {"spec.yaml", "wmarena/py.typed"}
    untracked = {name for name in extra if not re.fullmatch(r"wmarena-[^/]+\.dist-info/METADATA", name)}
    planned = subprocess.run(
        [sys.executable, "-m", "wmarena", "--json", "--store", str(tmp_path / "store"), "plan", "spec.yaml"],
        cwd=tmp_path / "upload",
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )

    assert {name for name in untracked if not (TREE / name.removeprefix("wmarena/")).is_file()} == set()
    assert {Path(name).suffix for name in here} <= {".py", ".typed", ".yaml", ".j2", ".css", ".js", ""}
    assert tracked - here == set()
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["counts"]["verify"] > 0


@pytest.mark.ray
def test_a_submitted_run_is_followed_to_its_end(head: Head, spec: Path, tmp_path: Path) -> None:
    """Its log and exit status arrive, its table is in the store; no secret was uploaded, no log has the token."""
    store = tmp_path / "store"
    code, out, err = finished(command(head, "submit", spec, "--store", store, "--tracking-uri", "none"))
    (package,) = (p for p in head.packages() if (p / "spec.yaml").read_text() == TINY)
    uploaded = [p for p in package.rglob("*") if p.is_file()]

    assert code == 0, out + err
    assert "SUCCEEDED" in out
    assert "0 failed" in out
    assert list(store.glob("reports/tiny/*/results.parquet"))
    assert {p.name for p in package.iterdir() if not p.name.endswith(".dist-info")} == {"wmarena", "spec.yaml"}
    assert not any(SECRET.encode() in p.read_bytes() for p in uploaded)
    assert head.token.read_bytes() not in head.everything_written()


@pytest.mark.ray
def test_a_run_goes_on_when_its_client_is_killed(head: Head, spec: Path, tmp_path: Path) -> None:
    """SIGKILL of the client does not stop the run; a second submission finds all tasks done."""
    store = ("--store", tmp_path / "store", "--tracking-uri", "none")
    client = command(head, "submit", spec, *store)
    assert client.stderr is not None
    said = next(line for line in client.stderr if "runs on the cluster" in line)
    client.kill()
    client.communicate()
    job = said.split()[0]
    ended = until(head, job, "SUCCEEDED", "FAILED", "STOPPED")
    again = command(head, "submit", spec, *store, "--json")
    out, err = again.communicate(timeout=400)

    assert (ended["status"], ended["exit_code"]) == ("SUCCEEDED", 0)
    assert again.returncode == 0, err
    assert json.loads(out)["status"] == "SUCCEEDED"
    assert " 0 executed" in err


@pytest.mark.ray
def test_a_cancelled_run_stops_and_can_be_resumed(head: Head, spec: Path, tmp_path: Path) -> None:
    """It ends as interrupted, not as failed; finished tasks are kept."""
    spec.write_text(LONG)
    store = tmp_path / "store"
    job = document(command(head, "submit", spec, "--store", store, "--tracking-uri", "none", "--no-wait", "--json"))[
        "job_id"
    ]
    until(head, job, "RUNNING")
    deadline = time.monotonic() + 200.0
    while not list(store.glob("reports/tiny/*/plan.json")) and time.monotonic() < deadline:
        time.sleep(0.2)
    stopped = document(command(head, "cancel", job, "--json"))

    assert stopped["status"] == "STOPPED"
    from wmarena.orchestrator.journal.journal import Journal

    with Journal(store / "journal.sqlite") as journal:
        assert {run["status"] for run in journal.runs()} <= {"interrupted"}


@pytest.mark.ray
def test_files_missing_on_the_cluster_are_refused_before_the_run(head: Head, spec: Path, tmp_path: Path) -> None:
    """A store, data or a key that it does not see, a job that it does not know, a wrong token: one line, exit 2."""
    sealed = spec.with_name("sealed.yaml")
    sealed.write_text(TINY + "keys: {root: /nowhere/owner.secret}\n")
    wrong = tmp_path / "token"
    wrong.write_text("0" * 64)
    cases = {
        "--store /nowhere": command(head, "submit", spec, "--store", "/nowhere/store"),
        "--data-root /absent": command(head, "submit", spec, "--store", tmp_path / "s", "--data-root", "/absent"),
        "secrets are never uploaded": command(head, "submit", sealed, "--store", tmp_path / "s"),
        "expected a job of the cluster": command(head, "status", "raysubmit_unknown"),
        "RAY_AUTH_TOKEN_PATH to the token's file": command(head, "status", "raysubmit_unknown", token=wrong),
    }
    for message, process in cases.items():
        code, out, err = finished(process)
        assert (code, out) == (2, ""), err
        assert message in err
        assert "Traceback" not in err
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "expected a store that every node of the cluster sees, got 'wmarena-store'"),
        (("--store", "s3://name:secret@bucket/store"), "expected no password in --store"),
        (("--store", "/shared", "--tracking-uri", "http://me:secret@host"), "expected no password in --tracking-uri"),
        (("--store", "/shared", "--tracking-uri", "sqlite:///runs.db"), "means the same on the cluster"),
        (("--store", "/shared", "--data-root", "data"), "expected an absolute path on the cluster as --data-root"),
    ],
)
def test_local_addresses_are_refused(
    options: tuple[str, ...],
    message: str,
    spec: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nobody is asked: the words themselves are wrong for a cluster. A password is not repeated."""
    for name in ("WMARENA_STORE", "WMARENA_DATA", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)

    assert main(["submit", str(spec), "--address", "http://127.0.0.1:9", *options]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "secret@" not in err


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 1, 1),
        ("FAILED", 2, 2),
        ("FAILED", 3, 3),
        ("FAILED", 137, 3),
        ("STOPPED", None, 3),
    ],
)
def test_the_exit_status_is_the_runs(status: str, code: int | None, expected: int) -> None:
    """Any other end is resumable: 3."""
    assert _exit_status(ClusterJob("job", status, code, "", None, None)) == expected
