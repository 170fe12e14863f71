"""Pauses a run while its store cannot be written, instead of failing task after task."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from wmarena.orchestrator.files.errors import StoreError

_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 5.0


class StoreLost(StoreError):
    """The store failed during a run and did not recover; finished tasks are kept, the same command resumes."""

    def __init__(self, why: object) -> None:
        super().__init__(f"the store failed: {why}; finished tasks are kept; repair it and run the same command again")


@dataclass
class StoreOutage:
    """Pauses a run after a store error until a probe succeeds."""

    probe: Callable[[], None]  # writes something to the store; raises StoreError
    patience_s: float  # how long the probe may fail
    clock: Callable[[], float] = time.monotonic  # seconds
    _since: float | None = field(default=None, init=False)
    _due: float = field(default=0.0, init=False)
    _pause_s: float = field(default=0.0, init=False)

    def begin(self) -> None:
        """Record a failed write: no task is sent to workers before the next successful probe."""
        if self._since is None:
            self._since, self._pause_s = self.clock(), _FIRST_PAUSE_S
            self._due = self._since + self._pause_s

    def over(self) -> bool:
        """Return whether the store can be written; probe it if it could not.

        Raises:
            StoreLost: the store did not recover in time.
        """
        if self._since is None:
            return True
        now = self.clock()
        if now < self._due:
            return False
        try:
            self.probe()
        except StoreError as error:
            if now - self._since > self.patience_s:
                raise StoreLost(error) from error
            # Exponential backoff, so that a store under load is not probed continuously.
            self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)
            self._due = now + self._pause_s
            return False
        self._since = None
        return True
