"""Interface of recorders, which mirror the journal into a tracker asynchronously and repeatably.

A recorder reads the journal and the store, never the loop: no run waits for it, and the next ``sync`` sends what it
missed.
"""

import logging
import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

logger = logging.getLogger(__name__)

_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True, kw_only=True)
class SyncReport:
    """Result of one ``sync``.

    Attributes:
        sent: entries (one per finished task or cell) written by this call.
        present: entries written before.
        failed: entries that could not be written (all settled tasks if the tracker could not be opened); the next
            ``sync`` tries again.
        warning: why, or None.
        over: True if the execution has ended according to the journal.
        experiment, parent: the tracker's own ids of experiment and execution, "" where unknown.
    """

    sent: int = 0
    present: int = 0
    failed: int = 0
    warning: str | None = None
    over: bool = False
    experiment: str = ""
    parent: str = ""


class Recorder(ABC):
    """Mirrors executions."""

    @abstractmethod
    def sync(self, run_id: str, *, abandoned: bool = False) -> SyncReport:
        """Send the entries of one execution that are missing at the destination.

        An unreachable tracker is a warning in the report, never an error.

        Args:
            abandoned: True if the driver is known to have ended, whatever the journal says.

        Raises:
            LookupError: the journal knows no such execution.
        """

    @abstractmethod
    def attach_report(self, run_id: str, folder: Path) -> str | None:
        """Attach the report, tables and figures under ``folder`` to the execution; return a warning, or None.

        Raises:
            LookupError: the journal knows no such execution.
        """

    @final
    def follow(self, run_id: str, stop: threading.Event, pause_s: float = _PAUSE_S) -> SyncReport:
        """Sync until the execution is over or ``stop`` is set, with one last pass after that.

        While the tracker is unreachable, the pause between passes grows up to a minute.

        Returns:
            The last pass's report, with the number of all sent entries.
        """
        sent, wait, warned = 0, pause_s, None
        while True:
            last = stop.is_set()
            started = time.monotonic()
            report = self.sync(run_id)
            sent += report.sent
            if report.warning is not None and report.warning != warned:
                logger.warning(report.warning)
            warned = report.warning
            if last or report.over:
                return replace(report, sent=sent)
            wait = min(2 * wait, _LONGEST_PAUSE_S) if warned else pause_s
            # A pass that sent nothing is followed by a pause of its own length: polling takes half the time at most.
            stop.wait(max(wait, time.monotonic() - started if report.sent == 0 else 0.0))
