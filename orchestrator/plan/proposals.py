"""Types shared by a study and the tuner: search space, sampling method, proposals, trial outcomes.

Without Optuna, because reading a spec and writing a report need none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Direction = Literal["maximize", "minimize"]
SamplerName = Literal["tpe", "nsga2", "gp", "random", "grid"]
PrunerName = Literal["none", "median", "hyperband"]
Value = None | bool | int | float | str
TrialParams = dict[str, Value]

_DIGITS = 6


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers from ``low`` to ``high``; ``whole`` for integers, ``log`` uniformly in the logarithm."""

    low: float
    high: float
    step: float | None = None
    log: bool = False
    whole: bool = False

    @property
    def values(self) -> list[float] | None:
        """All values, or None if they cannot be counted."""
        step = self.step or (1 if self.whole and not self.log else None)
        if step is None:
            return None
        count = int((self.high - self.low) / step + 1e-9) + 1
        return [self.rounded(self.low + i * step) for i in range(count)]

    def rounded(self, value: float) -> float:
        """Round to six significant digits, so that 0.06 is one value, not two."""
        return int(value) if self.whole else float(f"{value:.{_DIGITS}g}")


@dataclass(frozen=True)
class Choices:
    """Unordered values."""

    options: tuple[Value, ...]

    @property
    def values(self) -> list[Value]:
        """All values."""
        return list(self.options)


Space = Mapping[str, Range | Choices]


@dataclass(frozen=True, kw_only=True)
class Method:
    """Sampler and pruner of a study.

    Attributes:
        startup: random trials before the sampler and the pruner start.
        population: individuals per generation (NSGA-II).
        rungs: steps at which a trial reports, for Hyperband.
    """

    sampler: SamplerName = "tpe"
    pruner: PrunerName = "none"
    seed: int = 0
    startup: int = 10
    population: int = 50
    rungs: tuple[int, ...] = ()


@dataclass(frozen=True)
class Proposal:
    """Parameters of one trial to run."""

    number: int
    params: TrialParams
    warm: bool = False


@dataclass(frozen=True, kw_only=True)
class TrialOutcome:
    """How a trial ended.

    Attributes:
        values: one for each objective, None unless complete.
        constraints: name -> excess over the limit; 0 or less is feasible.
    """

    state: Literal["complete", "pruned", "failed"]
    values: tuple[float, ...] | None = None
    constraints: Mapping[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class RecordedTrial:
    """A trial as the journal has it.

    Attributes:
        outcome: None for an abandoned trial.
        told: (step, intermediate value), in order.
    """

    number: int
    params: TrialParams
    outcome: TrialOutcome | None
    warm: bool = False
    told: Sequence[tuple[int, float]] = ()
