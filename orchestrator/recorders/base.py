"""What a recorder is: it mirrors the journal into a tracker, behind the run, and can always do it again.

A recorder reads the journal and the store, never the loop: nothing waits for it, and whatever it missed is sent by the
next ``sync``.
"""

import logging
import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import final

logger = logging.getLogger(__name__)

_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True, kw_only=True)
class SyncReport:
    """What one ``sync`` achieved.

    Attributes:
        sent: entries (one per finished task or cell) written by this call.
        present: entries that were there before.
        failed: entries that could not be written (all settled tasks, if the tracker could not even be opened); the next
            ``sync`` tries again.
        warning: why, or None.
        over: True if the journal says that the execution has ended.
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
        """Send whatever of one execution is missing at the destination; doing it again sends nothing.

        A tracker that cannot be reached is a warning in the report, never an error.

        Args:
            abandoned: True if the driver is known to be gone, whatever the journal says.

        Raises:
            LookupError: the journal knows no such execution.
        """

    @abstractmethod
    def attach_report(self, run_id: str, folder: Path) -> str | None:
        """Put the report, tables and figures under ``folder`` beside the execution; returns a warning, or None.

        Raises:
            LookupError: the journal knows no such execution.
        """

    @final
    def follow(self, run_id: str, stop: threading.Event, pause_s: float = _PAUSE_S) -> SyncReport:
        """Sync until the execution is over or ``stop`` is set; the last pass sees everything written before.

        While the tracker cannot be reached, passes become rarer, up to one a minute.

        Returns:
            The last pass's report, with all that was sent.
        """
        sent, wait, said = 0, pause_s, None
        while True:
            last = stop.is_set()
            started = time.monotonic()
            report = self.sync(run_id)
            sent += report.sent
            if report.warning is not None and report.warning != said:
                logger.warning(report.warning)
            said = report.warning
            if last or report.over:
                return SyncReport(**{**report.__dict__, "sent": sent})
            wait = min(2 * wait, _LONGEST_PAUSE_S) if said else pause_s
            stop.wait(max(wait, time.monotonic() - started if report.sent == 0 else 0.0))
