"""Measures of evidence, for the objectives and constraints of studies.

Accuracies are those on validation data: test data are for the report. A measure is averaged over seeds; measures of the
threshold γ pool the evidence of all seeds (``gamma``).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

from wmarena.experiments.results.costs import AUMC_REACH
from wmarena.experiments.results.rows import ResultRow, required
from wmarena.experiments.study.gamma import Statistics


@dataclass(frozen=True)
class MeasureCall:
    """A measure in a study: ``margin`` or ``margin(fine_prune)``."""

    name: str
    attack: str | None = None

    def __str__(self) -> str:
        return self.name if self.attack is None else f"{self.name}({self.attack})"


@dataclass(frozen=True)
class MeasureBound:
    """A bound on a measure."""

    asked: MeasureCall
    at_least: bool
    bound: float

    def excess(self, value: float) -> float:
        """Return the distance of a value beyond the bound; 0 or less is within."""
        return self.bound - value if self.at_least else value - self.bound

    def __str__(self) -> str:
        return f"{self.asked} {'>=' if self.at_least else '<='} {self.bound:g}"


@dataclass(frozen=True)
class TrialEvidence:
    """The input of measures.

    Attributes:
        rows: of one seed on one workload, with controls.
        statistics: of all seeds, for measures of the threshold.
        gamma: the trial's threshold; None if the study does not search it.
    """

    rows: Sequence[ResultRow]
    statistics: Statistics
    gamma: float | None = None

    @property
    def marked(self) -> ResultRow | None:
        """The marked model before any attack."""
        return next((row for row in self.rows if row.is_unattacked and row.is_done), None)

    def attacked(self, attack: str | None) -> list[ResultRow]:
        """Return the finished rows of the owner's key on attacked models as deployed."""
        return [
            row
            for row in self.rows
            if row.attack != "none" and row.is_done and row.is_as_deployed and attack in (None, row.attack)
        ]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One function of evidence.

    Attributes:
        doc: meaning and unit.
        take: computes the value; None without the evidence.
        attacks: may be restricted to one attack.
        needs_attack: undefined on the marked model alone.
        pooled: computed once, over all seeds.
        best_high, best_low: largest and smallest possible value, when maximised and minimised; None if unbounded.
    """

    doc: str
    take: Callable[[TrialEvidence, str | None], float | None]
    attacks: bool = False
    needs_attack: bool = False
    pooled: bool = False
    best_high: float | None = None
    best_low: float | None = None


def _of_marked(column: Callable[[ResultRow], float | None]) -> Callable[[TrialEvidence, str | None], float | None]:
    def take(evidence: TrialEvidence, attack: str | None) -> float | None:
        return None if evidence.marked is None else column(evidence.marked)

    return take


def _fidelity_drop(evidence: TrialEvidence, attack: str | None) -> float | None:
    row = evidence.marked
    if row is None or row.metric_clean_val is None or row.metric_marked_val is None:
        return None
    return float(row.metric_clean_val - row.metric_marked_val)


def _least(column: Callable[[ResultRow], float | None]) -> Callable[[TrialEvidence, str | None], float | None]:
    """Take a column of the marked model, or its smallest value after ``attack``."""

    def take(evidence: TrialEvidence, attack: str | None) -> float | None:
        if attack is None:
            return None if evidence.marked is None else column(evidence.marked)
        return min((required(column(row)) for row in evidence.attacked(attack)), default=None)

    return take


def _mean_margin(evidence: TrialEvidence, attack: str | None) -> float | None:
    margins = [required(row.margin) for row in evidence.attacked(attack)]
    return fmean(margins) if margins else None


def best_response(evidence: TrialEvidence, attack: str | None = None) -> ResultRow | None:
    """Return the attacker's best response: the smallest margin within the accuracy budget, then the smallest drop.

    If no attack stays within the budget, it is the marked model itself.
    """
    priced = [(row, row.budget_drop) for row in evidence.attacked(attack)]
    within = [(required(row.margin), drop, row) for row, drop in priced if drop is not None and drop <= row.max_drop]
    return min(within, key=lambda found: found[:2])[2] if within else evidence.marked


def _robustness(evidence: TrialEvidence, attack: str | None) -> float | None:
    row = best_response(evidence, attack)
    return None if row is None else row.margin


def relative_drop_val(row: ResultRow) -> float | None:
    """Return the relative drop on validation data."""
    marked, suspect = row.metric_marked_val, row.metric_suspect_val
    return (marked - suspect) / marked if marked and suspect is not None else None


def _attackers_cost(evidence: TrialEvidence, attack: str | None) -> float | None:
    """Return the smallest relative drop with verdict 0, at most ``AUMC_REACH``, which also stands for none."""
    rows = evidence.attacked(attack)
    if not rows or evidence.marked is None:
        return None
    if not evidence.marked.verdict:
        return 0.0
    drops = [relative_drop_val(row) for row in rows if not row.verdict]
    known = [min(AUMC_REACH, max(0.0, drop)) for drop in drops if drop is not None]
    return min(known, default=AUMC_REACH)


def _attack_drop(evidence: TrialEvidence, attack: str | None) -> float | None:
    drops = [drop for row in evidence.attacked(attack) if (drop := row.budget_drop) is not None]
    return fmean(drops) if drops else None


def _attack_seconds(evidence: TrialEvidence, attack: str | None) -> float | None:
    return _sum(row.seconds_attack for row in evidence.attacked(attack))


def _seconds(evidence: TrialEvidence, attack: str | None) -> float | None:
    if evidence.marked is None:
        return None
    return _sum([evidence.marked.seconds_embed, *(row.seconds_attack for row in evidence.attacked(attack))])


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _false_positive_rate(evidence: TrialEvidence, attack: str | None) -> float | None:
    return evidence.statistics.false_positive_bound(evidence.gamma)


def _power(evidence: TrialEvidence, attack: str | None) -> float | None:
    return evidence.statistics.power(evidence.gamma, attack)


_OWN_GAMMA = "if the study searches no `gamma`, at the scheme's own"

_CAP = f"{AUMC_REACH:g}"
_attack_measure = partial(Measure, attacks=True, needs_attack=True)

MEASURES: dict[str, Measure] = {
    "accuracy": Measure(
        doc="the marked model's metric", take=_of_marked(lambda row: row.metric_marked_val), best_high=1.0
    ),
    "fidelity_drop": Measure(doc="metric of the clean twin minus that of the marked model", take=_fidelity_drop),
    "covertness": Measure(doc="mean |w - w0|", take=_of_marked(lambda row: row.covertness_mean_abs_dev), best_low=0.0),
    "covertness_ks": Measure(
        doc="distance of the weights' histograms", take=_of_marked(lambda row: row.covertness_ks), best_low=0.0
    ),
    "margin": Measure(
        doc="margin of the marked model; with an attack, the smallest after it, at any loss of accuracy",
        take=_least(lambda row: row.margin),
        attacks=True,
        best_high=1.0,
    ),
    "statistic": Measure(
        doc="the same of the statistic", take=_least(lambda row: row.statistic), attacks=True, best_high=1.0
    ),
    "robustness": _attack_measure(
        doc="margin after the attacker's best response: the smallest within the accuracy budget",
        take=_robustness,
        best_high=1.0,
    ),
    "mean_margin": _attack_measure(doc="mean margin over attacked models", take=_mean_margin, best_high=1.0),
    "attackers_cost": _attack_measure(
        doc=f"smallest relative drop that removes the mark, at most {_CAP}; {_CAP} if nothing removes it",
        take=_attackers_cost,
        best_high=AUMC_REACH,
        best_low=0.0,
    ),
    "attack_drop": _attack_measure(doc="metric of the marked model minus the attacked one, mean", take=_attack_drop),
    "attack_seconds": _attack_measure(doc="worker seconds of the attacks", take=_attack_seconds, best_low=0.0),
    "gpu_seconds": _attack_measure(doc="worker seconds of embedding and attacks", take=_seconds, best_low=0.0),
    "false_positive_rate": Measure(
        doc=f"bound on the rate at which unmarked models pass γ; {_OWN_GAMMA}",
        take=_false_positive_rate,
        pooled=True,
        best_low=0.0,
    ),
    "power": Measure(
        doc=f"share of marked and attacked models that pass γ; {_OWN_GAMMA}",
        take=_power,
        attacks=True,
        pooled=True,
        best_high=1.0,
    ),
}
"""All measures of studies, by name."""


def taken(asked: MeasureCall, evidence: Sequence[TrialEvidence]) -> list[float] | None:
    """Compute a measure for each seed (once if pooled); None if evidence is missing."""
    measure = MEASURES[asked.name]
    units = evidence[:1] if measure.pooled else evidence
    values = [measure.take(unit, asked.attack) for unit in units]
    known = [float(value) for value in values if value is not None]
    return known if known and len(known) == len(values) else None


def mean(asked: MeasureCall, evidence: Sequence[TrialEvidence]) -> float | None:
    """Average a measure over seeds; None if evidence is missing."""
    values = taken(asked, evidence)
    return None if values is None else fmean(values)


def first_look(asked: MeasureCall) -> bool:
    """Return True if a measure needs only the marked model and its controls: the first stage decides it."""
    measure = MEASURES[asked.name]
    return not measure.needs_attack and asked.attack is None and asked.name != "power"
