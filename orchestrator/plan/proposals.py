"""The words between a study and what runs it: what may be tried, how proposals are made, how a trial ended.

No Optuna here: a spec is read and a report is drawn where nothing is tuned.
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
        """All of them, where they can be counted."""
        step = self.step or (1 if self.whole and not self.log else None)
        if step is None:
            return None
        count = int((self.high - self.low) / step + 1e-9) + 1
        return [self.rounded(self.low + i * step) for i in range(count)]

    def rounded(self, value: float) -> float:
        """A number as it is tried and written: six significant digits, so that 0.06 is one value, not two."""
        return int(value) if self.whole else float(f"{value:.{_DIGITS}g}")


@dataclass(frozen=True)
class Choices:
    """Some values, in no order."""

    options: tuple[Value, ...]

    @property
    def values(self) -> list[Value]:
        """All of them."""
        return list(self.options)


Space = Mapping[str, Range | Choices]


@dataclass(frozen=True, kw_only=True)
class Method:
    """How proposals are made and hopeless trials recognised.

    Attributes:
        startup: trials at random before the sampler has an opinion, and before a pruner has one.
        population: individuals of a generation (NSGA-II).
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
    """One thing to try."""

    number: int
    params: TrialParams
    warm: bool = False


@dataclass(frozen=True, kw_only=True)
class TrialOutcome:
    """How a trial ended.

    Attributes:
        values: one for each objective, None unless complete.
        constraints: name -> how far it is exceeded; 0 or less is feasible.
    """

    state: Literal["complete", "pruned", "failed"]
    values: tuple[float, ...] | None = None
    constraints: Mapping[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class RecordedTrial:
    """A trial as somebody else remembers it.

    Attributes:
        outcome: None for one that nobody works on any more.
        told: (step, intermediate value), in order.
    """

    number: int
    params: TrialParams
    outcome: TrialOutcome | None
    warm: bool = False
    told: Sequence[tuple[int, float]] = ()
