"""Sends a run to MLflow from a separate process while it runs; failures there cause a warning, nothing else."""

import logging

from wmarena.orchestrator.plan.events import Event
from wmarena.orchestrator.recorders.process import RecorderProcess
from wmarena.orchestrator.store.local import Store

logger = logging.getLogger(__name__)

_DRAIN_S = 120.0
"""Longest wait for records after a run; the rest is sent in the background."""

_CACHED_DRAIN_S = 0.5
"""The same if no task ran."""


class Recording:
    """The recorder's process of one run; it starts with the first event, when the journal has the run."""

    def __init__(self, store: Store, run_id: str, tracking_uri: str | None, journal_url: str | None = None) -> None:
        self._process = RecorderProcess(store, run_id, tracking_uri, journal=journal_url)
        self._started = False
        self._worked = False
        self._lost: str | None = None

    def __call__(self, event: Event) -> None:
        self._worked = True
        self._start()

    def _start(self) -> None:
        if not self._started:
            self._started = True
            try:
                self._process.start()
            except OSError as error:  # MLflow is a mirror: missing records can be sent later
                self._lost = f"records are not being sent to MLflow ({error}); `wmarena report --sync` sends them"

    def finish(self) -> None:
        """Wait for a limited time until all records are sent; an unreachable tracker causes a warning only.

        If no task ran, the process sends the single entry by itself, without a wait for the result.
        """
        self._start()
        if self._lost is not None:
            logger.warning(self._lost)
            return
        report = self._process.drain(_DRAIN_S if self._worked else _CACHED_DRAIN_S)
        if not self._worked and report is None:
            return
        if report is None:
            logger.warning("records are still being sent to MLflow; `wmarena report --sync` makes sure that all are")
        elif report.warning is not None:
            logger.warning(report.warning)
