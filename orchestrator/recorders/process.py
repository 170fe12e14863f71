"""The recorder as a process of its own, which the driver starts, and drains at the end.

It holds no lock that a run needs, runs at low priority, and outlives a killed driver only to send what the journal
has. It may be killed at any time: the next ``sync`` sends the rest.
"""

import json
import os
import subprocess
import sys

from wmarena.orchestrator.files.addresses import resolve
from wmarena.orchestrator.keys.encryption import without_passphrase
from wmarena.orchestrator.recorders.base import SyncReport
from wmarena.orchestrator.store.local import Store

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
}
"""Defaults of MLflow's environment: no telemetry, nothing on stdout, short timeouts."""

_MODULE = "wmarena.orchestrator.recorders.follower"
_LOG = "recorder.log"


class RecorderProcess:
    """Mirrors one execution into MLflow while it runs.

    Args:
        run_id: an execution that ``Journal.start_run`` has opened.
        tracking_uri: None for the store's own SQLite file.
        journal: address of the journal, None for the store's own.
        log_models: copy weights into MLflow's artifacts.
    """

    def __init__(
        self,
        store: Store,
        run_id: str,
        tracking_uri: str | None = None,
        *,
        journal: str | None = None,
        log_models: bool = False,
    ) -> None:
        self._root = store.root
        self._request = {
            "store": store.address,
            "journal": journal,
            "run_id": run_id,
            "tracking_uri": resolve(tracking_uri, self._root),
            "log_models": log_models,
        }
        self._process: subprocess.Popen[str] | None = None
        self._asked = False

    def start(self) -> None:
        """Start the process; return at once."""
        mine = without_passphrase({**os.environ})
        environment = {**ENVIRONMENT, **mine, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with (self._root / _LOG).open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", _MODULE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                text=True,
                start_new_session=True,  # Ctrl-C is for the driver, which then drains this process
            )
        if self._process.stdin is not None:
            self._process.stdin.write(json.dumps(self._request) + "\n")
            self._process.stdin.flush()

    def drain(self, timeout: float) -> SyncReport | None:
        """Let the process send the rest, including the report, and end.

        Args:
            timeout: seconds to wait.

        Returns:
            The last report; None if it is still busy: it continues by itself, or call ``drain`` again, or ``kill``.
        """
        if self._process is None:
            raise RuntimeError("expected a started recorder, got one that was not; call start() first")
        message, self._asked = None if self._asked else "drain\n", True
        try:
            out, _ = self._process.communicate(message, timeout=timeout)
        except subprocess.TimeoutExpired:
            return None
        if self._process.returncode or not out:
            return SyncReport(
                warning=f"the recorder ended with status {self._process.returncode}, see {self._root / _LOG}; "
                "`wmarena report --sync` sends what is missing"
            )
        return SyncReport(**json.loads(out))

    def kill(self) -> None:
        """Kill the process; the next ``sync`` sends the rest."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
