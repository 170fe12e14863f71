"""The threshold γ on stored evidence: rates of marked, attacked and unmarked models that pass, for every γ.

    false positives   P[X >= ceil(gamma n)], X ~ Binomial(n, q), where outputs are random by construction: exact
                      else the upper end of the one-sided 95 % Clopper-Pearson interval among unmarked models
    power             share of marked and attacked models whose statistic is gamma or more, with a 95 % interval

No task runs here: statistics are stored once, and γ is compared with them.
Source: Clopper and Pearson, Biometrika 1934.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wmarena.experiments.results.calibration import CONTROL
from wmarena.experiments.results.rows import ResultRow, required
from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.plan import Cell
from wmarena.orchestrator.plan.task import State, TaskId
from wmarena.schemes.statistics import clopper_pearson, log10_binomial_tail

CONFIDENCE = 0.95
_EDGE = 1e-9


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Statistics of one configured scheme, by kind of model.

    Attributes:
        null: unmarked models and strangers' keys.
        marked: marked models before any attack.
        attacked: attack -> suspects within the adversary's accuracy budget.
        n, q: of the binomial null model; None if the statistic is no share of matches.
        own: the scheme's own threshold: the paper's γ, else that of the verdict.
    """

    null: tuple[float, ...] = ()
    marked: tuple[float, ...] = ()
    attacked: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    n: int | None = None
    q: float | None = None
    own: float | None = None

    def positives(self, attack: str | None = None) -> tuple[float, ...]:
        """Return the statistics that should pass: all, or those after one attack."""
        if attack is not None:
            return self.attacked.get(attack, ())
        return (*self.marked, *(value for some in self.attacked.values() for value in some))

    def power(self, gamma: float | None, attack: str | None = None) -> float | None:
        """Return the share of ``positives`` that pass."""
        values, at = self.positives(attack), self.own if gamma is None else gamma
        return None if not values or at is None else _passing(values, at) / len(values)

    def power_interval(self, gamma: float, attack: str | None = None) -> tuple[float, float]:
        """Return the Clopper-Pearson interval of the power."""
        values = self.positives(attack)
        return clopper_pearson(_passing(values, gamma), len(values), CONFIDENCE)

    def false_positive_bound(self, gamma: float | None) -> float | None:
        """Bound the rate at which unmarked models pass; None without evidence."""
        at = self.own if gamma is None else gamma
        if at is None:
            return None
        if self.q is not None and self.n:  # the null is exact, so no sample is needed
            return float(10.0 ** log10_binomial_tail(min(self.n, max(0, _needed(at, self.n))), self.n, self.q))
        if not self.null:
            return None
        hits, trials = _passing(self.null, at), len(self.null)
        return clopper_pearson(hits, trials, 2 * CONFIDENCE - 1)[1]

    def false_positive_interval(self, gamma: float) -> tuple[float, float]:
        """Return the Clopper-Pearson interval of the observed rate."""
        return clopper_pearson(_passing(self.null, gamma), len(self.null), CONFIDENCE)

    def thresholds(self) -> list[float]:
        """Return every γ at which a rate changes, in order."""
        return sorted({0.0, 1.0, *self.null, *self.positives()})

    def choose(self, rate: float) -> float | None:
        """Return the smallest γ, so the one of largest power, with false positives bounded by ``rate``."""
        grid = [k / self.n for k in range(self.n + 1)] if self.q is not None and self.n else self.thresholds()
        return next((g for g in grid if (self.false_positive_bound(g) or 0.0) <= rate), None)

    def document(self) -> dict[str, Any]:
        """Return JSON values."""
        attacked = {name: list(values) for name, values in self.attacked.items()}
        return {**vars(self), "null": list(self.null), "marked": list(self.marked), "attacked": attacked}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "Statistics":
        """Read what ``document`` returned."""
        attacked = {name: tuple(values) for name, values in document["attacked"].items()}
        lists = {"null": tuple(document["null"]), "marked": tuple(document["marked"]), "attacked": attacked}
        return cls(**{**document, **lists})


def _needed(gamma: float, n: int) -> int:
    """Return the smallest number of matches that reaches γ; ``_EDGE`` absorbs the rounding of gamma * n."""
    return math.ceil(gamma * n - _EDGE)


def _passing(values: Iterable[float], gamma: float) -> int:
    return sum(value >= gamma - _EDGE for value in values)


def statistics_of(rows: Sequence[ResultRow], cells: Iterable[Cell], records: Mapping[TaskId, Record]) -> Statistics:
    """Collect the statistics of a table's rows and of the calibration's fresh keys."""
    done = [row for row in rows if row.is_done and row.statistic is not None]
    owned = [row for row in done if row.is_as_deployed]
    attacked: dict[str, list[float]] = {}
    for row in owned:
        drop = row.budget_drop
        if row.attack != "none" and drop is not None and drop <= row.max_drop:
            attacked.setdefault(row.attack, []).append(required(row.statistic))
    marked = [row for row in owned if row.attack == "none"]
    first = marked[0] if marked else None
    binomial = first is not None and first.p_method == "binomial"
    params = next((cell.scheme_params for cell in cells), {})
    own = params.get("gamma", first.threshold if first is not None else None)
    return Statistics(
        null=(*(required(row.statistic) for row in done if row.control is not None), *_calibrated(cells, records)),
        marked=tuple(required(row.statistic) for row in marked),
        attacked={name: tuple(values) for name, values in attacked.items()},
        n=first.n if first is not None and binomial else None,
        q=first.null_q if first is not None and binomial else None,
        own=None if own is None else float(own),
    )


def _calibrated(cells: Iterable[Cell], records: Mapping[TaskId, Record]) -> list[float]:
    out: list[float] = []
    for cell in cells:
        record = records.get(cell.verify)
        if cell.control == CONTROL and record is not None and record.state is State.DONE and record.result:
            out += [pair["statistic"] for pair in record.result.get("calibration", {}).get("pairs", ())]
    return out
