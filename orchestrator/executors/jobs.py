"""Ray Jobs: commands on a cluster that keep running after the submitting client disconnects.

The dashboard shows a job's command line and environment to all its users: neither may hold a secret.
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

from wmarena.orchestrator.executors.authentication import auth_hint, set_auth_mode

_NOISY_LOGGERS = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""Ray's loggers of packaging and uploads."""

_AGENT_S = 60.0
_END_S = 60.0
_POLL_S = 0.5
_RETRY_S = 10.0
"""Seconds that a busy dashboard may answer with nothing, half an answer or no JSON."""

_STOP_S = "30"
"""Seconds that a stopped job may take to reach its next checkpoint."""

_T = TypeVar("_T")

_STATUS = re.compile(r"status code (\d{3})")
"""The HTTP status in Ray's error messages."""


class NoCluster(ConnectionError):
    """No cluster answers at an address, or it refuses; the message says what to do. Nothing was submitted."""


class LostCluster(ConnectionError):
    """A cluster that answered before no longer does; submitted jobs may keep running."""


class UnknownJob(LookupError):
    """The cluster has no job of that name."""


@dataclass(frozen=True)
class ClusterJob:
    """State of a job on the cluster."""

    job_id: str
    status: str  # PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED
    exit_code: int | None  # of its command, if it ended by itself
    message: str  # why it is in this state
    started: float | None  # Unix seconds, None if not yet
    finished: float | None

    @property
    def ended(self) -> bool:
        """True if the status is final."""
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")


Sink = Callable[[str], object]
"""Receives parts of a job's output."""


class ClusterJobs:
    """The jobs of one cluster.

    Args:
        address: of the dashboard, ``http://HOST:8265``.

    Raises:
        NoCluster: no answer, or the token is missing or wrong.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        set_auth_mode()
        # Imported here: Ray reads RAY_AUTH_MODE when it is imported.
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient

        for module in _NOISY_LOGGERS:
            logging.getLogger(module).setLevel(logging.WARNING)
        self._failures = (
            *(AuthenticationError, RuntimeError, OSError),
            *(ValueError, TypeError, KeyError, AttributeError),  # an answer that cannot be read
        )
        try:
            self._client = self._retrying(lambda: JobSubmissionClient(address), again=_bad_answer)
        except self._failures as error:
            raise NoCluster(_message(address, error)) from None

    def submit(self, command: str, *, folder: Path | None = None, metadata: Mapping[str, str] | None = None) -> str:
        """Start a command on the head node; return the job's id.

        Args:
            folder: uploaded; the command and its child processes run in a copy of it.
            metadata: shown beside the job.
        """
        environment: dict[str, Any] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": _STOP_S}}
        if folder is not None:
            environment["working_dir"] = str(folder)
        # The client chooses the id, so that a submission whose answer was lost is not made twice.
        job_id = f"raysubmit_{secrets.token_hex(8)}"
        deadline = time.monotonic() + _AGENT_S
        while True:
            try:
                self._retrying(
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
                # A head node that has just started accepts no jobs for a few seconds.
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise LostCluster(_message(self._address, error)) from None
            else:
                return job_id
            time.sleep(_POLL_S)

    def job(self, job_id: str) -> ClusterJob:
        """Return the state of a job.

        Raises:
            UnknownJob: the cluster has no job of that id.
            LostCluster: the dashboard gives no readable answer.
        """
        info = self._request(job_id, lambda: self._client.get_job_info(job_id))
        return ClusterJob(
            job_id=job_id,
            status=str(info.status.value),
            exit_code=info.driver_exit_code,
            message=info.message or "",
            started=_seconds(info.start_time),
            finished=_seconds(info.end_time),
        )

    def follow(self, job_id: str, sink: Sink) -> ClusterJob:
        """Send a job's output to ``sink`` until it has ended; a broken connection does not end the job."""
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
        """Return the state of a job once it has ended, or after ``patience_s``."""
        deadline = time.monotonic() + patience_s
        while not (found := self.job(job_id)).ended and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return found

    def output(self, job_id: str) -> str:
        """Return all output of a job so far."""
        return str(self._request(job_id, lambda: self._client.get_job_logs(job_id)))

    def cancel(self, job_id: str) -> ClusterJob:
        """Ask a job to stop at its next checkpoint; return its state then."""
        if not self.job(job_id).ended:
            self._request(job_id, lambda: self._client.stop_job(job_id))
        return self.wait(job_id, _END_S)

    def _request(self, job_id: str, call: Callable[[], _T]) -> _T:
        """Call the dashboard about one job; raise UnknownJob or LostCluster."""
        try:
            return self._retrying(call)
        except self._failures as error:
            if _status(error) == 404:
                raise UnknownJob(f"expected a job of the cluster at {self._address}, got {job_id!r}") from None
            raise LostCluster(_message(self._address, error)) from None

    def _retrying(self, call: Callable[[], _T], again: Callable[[Exception], bool] | None = None) -> _T:
        """Repeat ``call`` for a while if its error may pass; raise the last error."""
        again = again or _may_pass
        deadline = time.monotonic() + _RETRY_S
        while True:
            try:
                return call()
            except self._failures as error:
                if not again(error) or time.monotonic() > deadline:
                    raise
            time.sleep(_POLL_S)


def _status(error: Exception) -> int | None:
    """Return the HTTP status in Ray's message."""
    found = _STATUS.search(str(error)) if isinstance(error, RuntimeError) else None
    return int(found[1]) if found else None


def _unreadable(error: Exception) -> bool:
    """Return whether an answer is empty, truncated, no JSON or unexpected JSON."""
    from pydantic import ValidationError
    from requests import exceptions

    kinds = (json.JSONDecodeError, exceptions.JSONDecodeError, exceptions.ChunkedEncodingError, ValidationError)
    return isinstance(error, (*kinds, TypeError, KeyError, AttributeError))


def _may_pass(error: Exception) -> bool:
    """Return whether the error may pass: all but a refusal by the cluster."""
    if isinstance(error, RuntimeError):
        refused = any(text in str(error) for text in ("No available agent", "already exists"))
        return (_status(error) or 0) >= 500 and not refused
    return isinstance(error, OSError) or _unreadable(error)


def _bad_answer(error: Exception) -> bool:
    """Return whether a server gave a broken answer; False if nobody listens at the address."""
    from requests import exceptions

    if isinstance(error, exceptions.HTTPError):
        return error.response is not None and error.response.status_code >= 500
    return _unreadable(error) or "Connection aborted" in str(error.__context__)


def _seconds(milliseconds: int | None) -> float | None:
    return None if not milliseconds else milliseconds / 1000.0


def _message(address: str, error: Exception) -> str:
    text = " ".join(str(error).split())
    if _unreadable(error):
        text = f"an answer that is empty or cannot be read ({type(error).__name__}: {text})"
    way = auth_hint(text)
    return f"expected the dashboard of a Ray cluster at {address}, got: {text[: 100 if way else 300]}{way}"
