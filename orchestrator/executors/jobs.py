"""Ray Jobs: commands that run on a cluster and go on when whoever submitted them is gone.

The dashboard shows a job's command line and environment to everybody who may look: neither may hold a secret.
"""

import asyncio
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from wmarena.orchestrator.executors.authentication import choose_mode, how_to_authenticate

_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""Loggers of Ray that tell how it packs and sends."""

_AGENT_S = 60.0
_END_S = 60.0
_POLL_S = 0.5
_HICCUP_S = 10.0
"""How long a dashboard may answer with nothing, half an answer or no JSON, as a busy one does."""

_STOP_S = "30"
"""How long a stopped job may take to reach its next checkpoint."""


_T = TypeVar("_T")

_STATUS = re.compile(r"status code (\d{3})")
"""How Ray words an answer that is an error."""


class NoCluster(ConnectionError):
    """There is no cluster at an address, or it refuses; the message says what to do. Nothing was asked of it."""


class LostCluster(ConnectionError):
    """A cluster that answered before does so no more; what it was asked for may go on."""


class UnknownJob(LookupError):
    """The cluster has no job of that name."""


@dataclass(frozen=True)
class ClusterJob:
    """A job as the cluster knows it.

    Attributes:
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        exit_code: of its command, once it has ended by itself.
        message: why it is in this state, for people.
        started, finished: Unix seconds, None if not yet.
    """

    job_id: str
    status: str
    exit_code: int | None
    message: str
    started: float | None
    finished: float | None

    @property
    def ended(self) -> bool:
        """True once nothing changes any more."""
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")


Sink = Callable[[str], object]
"""Takes pieces of a job's output."""


class ClusterJobs:
    """The jobs of one cluster.

    Args:
        address: of the dashboard, ``http://HOST:8265``.

    Raises:
        NoCluster: nobody answers there, or the token is missing or wrong.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        choose_mode()
        # Imported here: reading RAY_AUTH_MODE is the first thing that Ray does.
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient

        for module in _TALKATIVE:
            logging.getLogger(module).setLevel(logging.WARNING)
        self._failures = (
            *(AuthenticationError, RuntimeError, OSError),
            *(ValueError, TypeError, KeyError, AttributeError),  # an answer that cannot be read
        )
        try:
            self._client = self._ask(lambda: JobSubmissionClient(address), again=_stumbled)
        except self._failures as error:
            raise NoCluster(_explained(address, error)) from None

    def submit(self, command: str, *, folder: Path | None = None, metadata: Mapping[str, str] | None = None) -> str:
        """Start a command on the head node; returns the job's id.

        Args:
            folder: uploaded; the command and all that it starts run in a copy of it.
            metadata: shown beside the job.
        """
        environment: dict[str, Any] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": _STOP_S}}
        if folder is not None:
            environment["working_dir"] = str(folder)
        # The name is ours, so that a submission whose answer was lost is not made twice.
        job_id = f"raysubmit_{secrets.token_hex(8)}"
        deadline = time.monotonic() + _AGENT_S
        while True:
            try:
                self._ask(
                    lambda: self._client.submit_job(
                        entrypoint=command,
                        runtime_env=environment,
                        metadata=dict(metadata or {}),
                        submission_id=job_id,
                    )
                )
            except self._failures as error:
                if f"{job_id} already exists" in str(error):
                    return job_id
                # A head node that has just started takes no jobs for a few seconds.
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise LostCluster(_explained(self._address, error)) from None
            else:
                return job_id
            time.sleep(_POLL_S)

    def job(self, job_id: str) -> ClusterJob:
        """How it stands.

        Raises:
            UnknownJob: there is none of that id.
            LostCluster: the dashboard gives no answer, or none that can be read.
        """
        info = self._of(job_id, lambda: self._client.get_job_info(job_id))
        return ClusterJob(
            job_id=job_id,
            status=str(info.status.value),
            exit_code=info.driver_exit_code,
            message=info.message or "",
            started=_seconds(info.start_time),
            finished=_seconds(info.end_time),
        )

    def follow(self, job_id: str, sink: Sink) -> ClusterJob:
        """Pass its output on until it has ended; a connection that breaks is no end of the job."""
        from aiohttp import ClientError

        try:
            asyncio.run(self._tail(job_id, sink))
        except (ClientError, RuntimeError, OSError) as error:
            sink(f"\n[the log cannot be followed any more: {error}]\n")
        return self.wait(job_id)

    async def _tail(self, job_id: str, sink: Sink) -> None:
        async for lines in self._client.tail_job_logs(job_id):
            sink(lines)

    def wait(self, job_id: str, patience_s: float = float("inf")) -> ClusterJob:
        """How it stands once it has ended, or after ``patience_s``."""
        deadline = time.monotonic() + patience_s
        while not (found := self.job(job_id)).ended and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return found

    def output(self, job_id: str) -> str:
        """All that it has written so far."""
        return str(self._of(job_id, lambda: self._client.get_job_logs(job_id)))

    def cancel(self, job_id: str) -> ClusterJob:
        """Ask it to stop at its next checkpoint; returns how it stands then."""
        if not self.job(job_id).ended:
            self._of(job_id, lambda: self._client.stop_job(job_id))
        return self.wait(job_id, _END_S)

    def _of(self, job_id: str, question: Callable[[], _T]) -> _T:
        """The answer to a question about one job; errors are named by what they mean."""
        try:
            return self._ask(question)
        except self._failures as error:
            if _status(error) == 404:
                raise UnknownJob(f"expected a job of the cluster at {self._address}, got {job_id!r}") from None
            raise LostCluster(_explained(self._address, error)) from None

    def _ask(self, question: Callable[[], _T], again: Callable[[Exception], bool] | None = None) -> _T:
        """The answer; one that did not come whole is asked for again for a while, the last error is raised."""
        again = again or _passing
        deadline = time.monotonic() + _HICCUP_S
        while True:
            try:
                return question()
            except self._failures as error:
                if not again(error) or time.monotonic() > deadline:
                    raise
            time.sleep(_POLL_S)


def _status(error: Exception) -> int | None:
    """The HTTP status in Ray's words."""
    found = _STATUS.search(str(error)) if isinstance(error, RuntimeError) else None
    return int(found[1]) if found else None


def _unreadable(error: Exception) -> bool:
    """True if an answer came that is empty, not whole, no JSON, or JSON that says something else."""
    from pydantic import ValidationError
    from requests import exceptions

    kinds = (json.JSONDecodeError, exceptions.JSONDecodeError, exceptions.ChunkedEncodingError, ValidationError)
    return isinstance(error, (*kinds, TypeError, KeyError, AttributeError))


def _passing(error: Exception) -> bool:
    """True if a cluster that answered before may have a better answer: of all but a refusal in words."""
    if isinstance(error, RuntimeError):
        worded = any(words in str(error) for words in ("No available agent", "already exists"))
        return (_status(error) or 0) >= 500 and not worded
    return isinstance(error, OSError) or _unreadable(error)


def _stumbled(error: Exception) -> bool:
    """True if somebody is at an address whose answer did not come whole; False where nobody listens."""
    from requests import exceptions

    if isinstance(error, exceptions.HTTPError):
        return error.response is not None and error.response.status_code >= 500
    return _unreadable(error) or "Connection aborted" in str(error.__context__)


def _seconds(milliseconds: int | None) -> float | None:
    return None if not milliseconds else milliseconds / 1000.0


def _explained(address: str, error: Exception) -> str:
    text = " ".join(str(error).split())
    if _unreadable(error):
        text = f"an answer that is empty or cannot be read ({type(error).__name__}: {text})"
    way = how_to_authenticate(text)
    return f"expected the dashboard of a Ray cluster at {address}, got: {text[: 100 if way else 300]}{way}"
