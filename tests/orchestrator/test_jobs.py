"""A cluster's dashboard that answers with nothing, with half an answer or with something else than JSON."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.experiments.spec_texts import TINY
from wmarena.experiments.cli import main
from wmarena.experiments.commands.submitting import _answer
from wmarena.orchestrator.executors.jobs import ClusterJobs, LostCluster, NoCluster, UnknownJob

RUNNING = {"type": "SUBMISSION", "submission_id": "job", "status": "RUNNING", "entrypoint": "true"}
VERSION = {"version": "4", "ray_version": "2.50.0", "ray_commit": "0"}
KINDS = ["empty", "page", "truncated", "null", "another document", "hung up", "internal error"]


class Dashboard(ThreadingHTTPServer):
    """A dashboard with one job; ``spoiled`` says how many of its answers to which questions are of what kind."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.job: dict[str, object] = dict(RUNNING)
        self.kind = "empty"
        self.spoiled: dict[str, float] = {}
        self.asked: list[str] = []
        self.accepted: list[str] = []

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, question: str, body: dict[str, object]) -> tuple[int, dict[str, object]]:
        """(status, document) of an honest answer."""
        if question == "GET /api/version":
            return 200, dict(VERSION)
        if question == "POST /api/jobs/":
            name = str(body["submission_id"])
            if name in self.accepted:
                return 400, {"error": f"Job with submission_id {name} already exists."}
            self.accepted.append(name)
            return 200, {"job_id": name, "submission_id": name}
        if question.startswith("GET") and question.endswith("/logs"):
            return 200, {"logs": "what it wrote\n"}
        if question.endswith("/stop"):
            self.job["status"] = "STOPPED"
            return 200, {"stopped": True}
        return (404, {}) if question.endswith("/unknown") else (200, self.job)


class Answers(BaseHTTPRequestHandler):
    """One request: the question is carried out before its answer is spoiled, as on a machine under load."""

    server: Dashboard

    def do_GET(self) -> None:
        """Answer, or fail to."""
        question = f"{self.command} {self.path}"
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
        status, document = self.server.answer(question, body)
        self.server.asked.append(question)
        text = json.dumps(document).encode()
        left = self.server.spoiled.get(question, 0)
        if left <= 0:
            return self._send(status, text)
        self.server.spoiled[question] = left - 1
        spoil: dict[str, Callable[[], None]] = {
            "empty": lambda: self._send(200, b""),
            "page": lambda: self._send(200, b"<html>busy</html>"),
            "truncated": lambda: self._send(200, text[: len(text) // 2], announced=len(text)),
            "null": lambda: self._send(200, b"null"),
            "another document": lambda: self._send(200, b'{"unexpected": 1}'),
            "hung up": self.connection.close,
            "internal error": lambda: self._send(500, b"busy"),
        }
        return spoil[self.server.kind]()

    do_POST = do_GET

    def _send(self, status: int, text: bytes, announced: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text) if announced is None else announced))
        self.end_headers()
        self.wfile.write(text)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Not on the tests' output."""


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    """A dashboard on loopback that wants no token."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr("wmarena.orchestrator.executors.jobs._RETRY_S", 60.0)
    monkeypatch.setattr("wmarena.orchestrator.executors.jobs._POLL_S", 0.05)
    with Dashboard() as server:
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def impatient(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that ask again for a fraction of a second only."""
    monkeypatch.setattr("wmarena.orchestrator.executors.jobs._RETRY_S", 0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_that_did_not_come_whole_is_asked_for_again(dashboard: Dashboard, kind: str) -> None:
    """Two spoiled answers to every question, of whatever kind, are not noticed; a submission is made once."""
    dashboard.kind = kind
    questions = ("version", "jobs/job", "jobs/job/logs")
    dashboard.spoiled = {f"GET /api/{q}": 2 for q in questions} | {f"POST /api/jobs/{q}": 2 for q in ("", "job/stop")}
    jobs = ClusterJobs(dashboard.address)
    submitted = jobs.submit("true")

    assert dashboard.accepted == [submitted]
    assert jobs.job("job").status == "RUNNING"
    assert jobs.output("job") == "what it wrote\n"
    assert jobs.cancel("job").status == "STOPPED"
    assert all(left <= 0 for left in dashboard.spoiled.values())


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", KINDS)
def test_a_dashboard_that_stays_silent_is_a_lost_cluster(dashboard: Dashboard, kind: str) -> None:
    """Every question ends, within the patience, in the error that says where and what was expected."""
    jobs = ClusterJobs(dashboard.address)
    dashboard.kind = kind
    questions: dict[str, Callable[[], object]] = {
        "GET /api/jobs/job": lambda: jobs.job("job"),
        "GET /api/jobs/job/logs": lambda: jobs.output("job"),
        "POST /api/jobs/job/stop": lambda: jobs.cancel("job"),
    }
    for question, ask in questions.items():
        dashboard.spoiled = {question: float("inf")}
        with pytest.raises(LostCluster, match=f"expected the dashboard of a Ray cluster at {dashboard.address}, got"):
            ask()


@pytest.mark.usefixtures("impatient")
def test_a_submission_that_nobody_confirms_is_a_lost_cluster(dashboard: Dashboard) -> None:
    """It may or may not have been accepted, at most once; never a traceback."""
    jobs = ClusterJobs(dashboard.address)
    dashboard.kind, dashboard.spoiled = "internal error", {"POST /api/jobs/": float("inf")}

    with pytest.raises(LostCluster, match="500"):
        jobs.submit("true")
    assert len(dashboard.accepted) == 1


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", KINDS)
def test_an_address_of_something_else_is_no_cluster(dashboard: Dashboard, kind: str) -> None:
    """Where no version is ever told there is no cluster."""
    dashboard.kind, dashboard.spoiled = kind, {"GET /api/version": float("inf")}

    with pytest.raises(NoCluster, match=r"expected the dashboard of a Ray cluster at .*, got: ."):
        ClusterJobs(dashboard.address)


def test_what_is_said_in_words_is_not_asked_twice(dashboard: Dashboard) -> None:
    """An unknown job is unknown at once."""
    jobs = ClusterJobs(dashboard.address)

    with pytest.raises(UnknownJob, match="expected a job of the cluster"):
        jobs.job("unknown")
    assert dashboard.asked.count("GET /api/jobs/unknown") == 1


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("question", "command"),
    [
        ("GET /api/jobs/job", ["status", "job"]),
        ("POST /api/jobs/job/stop", ["cancel", "job"]),
        ("GET /api/jobs/job", ["cancel", "job"]),
    ],
    ids=" ".join,
)
def test_commands_end_in_one_line_and_status_three(
    dashboard: Dashboard, capsys: pytest.CaptureFixture[str], question: str, command: list[str]
) -> None:
    """The infrastructure failed, not the input and not the run: exit 3, no traceback."""
    dashboard.spoiled = {question: float("inf")}

    assert main([*command, "--address", dashboard.address]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("wmarena: expected the dashboard of a Ray cluster")
    assert "empty or cannot be read" in err
    assert len(err.splitlines()) == 1


def test_a_probe_whose_output_never_comes_is_the_infrastructures_fault(
    dashboard: Dashboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asking the head node for a folder ends with status 3 if the log of the job that looked lacks the answer."""
    monkeypatch.setattr("wmarena.experiments.commands.submitting._LOG_S", 0.2)
    dashboard.job |= {"status": "SUCCEEDED", "driver_exit_code": 0}
    spec = tmp_path / "tiny.yaml"
    spec.write_text(TINY)

    found = main(["submit", str(spec), "--address", dashboard.address, "--store", str(tmp_path / "store")])

    assert found == 3
    assert "got a log without it; try again" in capsys.readouterr().err
    assert len(dashboard.accepted) == 1, "the run itself was not sent"


def test_a_probes_answer_is_one_whole_line_of_its_own() -> None:
    """Other output of the cluster's Python, and half a line, are not taken for it."""
    assert _answer("wmarena sees [true, false]", 2) == [True, False]
    assert _answer("[true, false]", 2) is None
    assert _answer("wmarena sees [true, fal", 2) is None
    assert _answer("wmarena sees [true]", 2) is None
