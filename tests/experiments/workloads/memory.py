"""Checkpoints and a training log that stay in memory."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from wmarena.schemes.base import Cancelled


@dataclass
class MemoryCheckpoints:
    """Stores every state; raises Cancelled after step ``stop_after``, as a stopping run does."""

    stop_after: int | None = None
    states: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    kept: list[int] = field(default_factory=list)

    def latest(self, at_most: int | None = None) -> tuple[int, dict[str, Tensor]] | None:
        """The newest state that is not beyond ``at_most``."""
        steps = [s for s in self.states if at_most is None or s <= at_most]
        return (max(steps), self.states[max(steps)]) if steps else None

    def offer(self, step: int, state: Callable[[], dict[str, Tensor]], *, keep: bool = False) -> None:
        """Keep every state."""
        self.states[step] = state()
        if keep:
            self.kept.append(step)
        if step == self.stop_after:
            raise Cancelled


@dataclass
class MemoryLog:
    """(step, metrics) in the order of logging."""

    rows: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def __call__(self, step: int, **metrics: float) -> None:
        self.rows.append((step, metrics))
