"""Checkpoints for computations that run several training loops in order.

Every loop counts its steps from zero, so two loops on one ``Checkpoints`` would load each other's state. A ``Phase``
gives each loop a range of step numbers: phase i stores its step s as i * span + s.

If only the newest checkpoint survives an interruption, the earlier phases find none and run again, with the same
result, and the interrupted phase continues from its own state: the outcome is bit-equal to an undisturbed run.
"""

from collections.abc import Callable

from torch import Tensor

from wmarena.schemes.base import Checkpoints

LOOP_SPAN = 10**6
"""Steps that one training loop may count."""

PART_SPAN = 10**7
"""Steps that one part of a chain may count: ten loops."""


class Phase:
    """One loop's range of the checkpoints of the whole computation (a ``wmarena.schemes.base.Checkpoints``)."""

    def __init__(self, checkpoints: Checkpoints, index: int, span: int = LOOP_SPAN) -> None:
        self._checkpoints = checkpoints
        self._first = index * span
        self._last = self._first + span - 1

    def latest(self, at_most: int | None = None) -> tuple[int, dict[str, Tensor]] | None:
        """Return the newest (step, state) of this phase with step <= ``at_most``, or None."""
        limit = self._last if at_most is None else min(self._first + at_most, self._last)
        found = self._checkpoints.latest(limit)
        if found is None or found[0] < self._first:
            return None
        return found[0] - self._first, found[1]

    def offer(self, step: int, state: Callable[[], dict[str, Tensor]], *, keep: bool = False) -> None:
        """Save if one is due. ``keep`` is ignored: no other strength continues from inside a phase."""
        self._checkpoints.offer(self._first + step, state)
