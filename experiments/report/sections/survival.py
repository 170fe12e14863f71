"""Survival: the rows of one scheme under one attack, over strengths and seeds, as one comparison.

The adversary chooses the strength, so a seed survives only if no strength removed its mark. The decisive row of a seed
is the adversary's best: the cheapest removal; else the smallest margin within the budget; else, if every strength
exceeds the budget, the row with the smallest drop.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, cast

from wmarena.experiments.report.labels import AttackLabel, Labels, Victim
from wmarena.experiments.results.costs import AttackSweep, attack_sweeps
from wmarena.experiments.results.rows import ResultRow, required

SeedOutcome = Literal["kept", "worthless", "removed", "unmarked", "undecided"]
"""Of one seed: found on all affordable suspects; lost, but only on worthless models; removed; not embedded; unknown."""

Outcome = Literal["kept", "worthless", "mixed", "removed", "unmarked", "undecided", "missing"]
"""Of all seeds: "mixed" if they disagree on removal, "missing" if none has a verdict."""


@dataclass(frozen=True, kw_only=True)
class SeedResult:
    """One seed of a comparison; ``row`` is the decisive one."""

    seed: int
    outcome: SeedOutcome
    row: ResultRow

    @property
    def drop(self) -> float | None:
        """Absolute drop of the test metric, marked - suspect."""
        return self.row.test_drop


@dataclass(frozen=True, kw_only=True)
class AttackComparison:
    """One scheme under one attack: every strength, every seed."""

    victim: Victim
    attack_label: AttackLabel
    sweep: AttackSweep

    @property
    def strength_name(self) -> str | None:
        """Parameter that is the attack's strength."""
        return self.attack_label.strength_name

    @property
    def rows(self) -> tuple[ResultRow, ...]:
        """All rows, finished or not, in the table's order."""
        return self.sweep.rows

    @property
    def done(self) -> list[ResultRow]:
        """Rows with a verdict."""
        return [row for row in self.rows if row.is_done]

    @property
    def unfinished(self) -> int:
        """Rows that failed or were skipped."""
        return len(self.rows) - len(self.done)

    @property
    def seeds(self) -> list[SeedResult]:
        """Seeds with at least one verdict, in order."""
        found: dict[int, list[ResultRow]] = defaultdict(list)
        for row in self.done:
            found[row.seed].append(row)
        return [_seed_result(seed, rows, seed in self.sweep.unmarked) for seed, rows in sorted(found.items())]

    @property
    def survived(self) -> int:
        """Number of seeds on which no strength removed the mark."""
        return sum(s.outcome in ("kept", "worthless") for s in self.seeds)

    @property
    def removed(self) -> int:
        """Number of seeds on which some strength removed the mark."""
        return sum(s.outcome == "removed" for s in self.seeds)

    @property
    def outcome(self) -> Outcome:
        """Joint outcome of all seeds."""
        outcomes = {s.outcome for s in self.seeds}
        if not outcomes:
            return "missing"
        if "undecided" in outcomes:
            return "undecided"
        for outcome in ("removed", "unmarked"):
            if outcome in outcomes:
                return cast(Outcome, outcome) if outcomes == {outcome} else "mixed"
        return "worthless" if "worthless" in outcomes else "kept"

    @property
    def margins(self) -> list[float]:
        """Margin of each seed's decisive row."""
        return [required(s.row.margin) for s in self.seeds]

    @property
    def drops(self) -> list[float]:
        """Absolute test drop of each seed's decisive row."""
        return [s.drop for s in self.seeds if s.drop is not None]

    @property
    def strengths(self) -> list[float]:
        """Distinct requested strengths, ascending."""
        return sorted({row.strength for row in self.rows if row.strength is not None})

    @property
    def severity(self) -> tuple[float, bool, float]:
        """Sort key of attacks, most severe first: seeds lost, within the budget, margin."""
        seeds = self.seeds
        if not seeds:
            return 1.0, True, math.inf
        overpriced = all(_cost(s.row) > s.row.max_drop for s in seeds)
        return -self.removed / len(seeds), overpriced, fmean(self.margins)


def comparisons(rows: Iterable[ResultRow], labels: Labels) -> list[AttackComparison]:
    """Compare every scheme with every attack including ``none``, without claims and controls, in the table's order."""
    firsts = ((sweep.rows[0], sweep) for sweep in attack_sweeps(rows))
    return [
        AttackComparison(victim=labels.victim(first), attack_label=labels.attack_label(first), sweep=sweep)
        for first, sweep in firsts
    ]


def _seed_result(seed: int, rows: Sequence[ResultRow], unmarked: bool) -> SeedResult:
    if unmarked:
        return SeedResult(seed=seed, outcome="unmarked", row=min(rows, key=_cost))
    removed = [row for row in rows if row.removed]
    if removed:
        return SeedResult(seed=seed, outcome="removed", row=min(removed, key=_cost))
    open_rows = [row for row in rows if row.removed is None]
    if open_rows:
        return SeedResult(seed=seed, outcome="undecided", row=min(open_rows, key=_cost))
    affordable = [row for row in rows if _cost(row) <= row.max_drop]
    decisive = min(affordable, key=_margin) if affordable else min(rows, key=_cost)
    return SeedResult(seed=seed, outcome="kept" if decisive.verdict else "worthless", row=decisive)


def _margin(row: ResultRow) -> float:
    return required(row.margin)


def _cost(row: ResultRow) -> float:
    return math.inf if row.budget_drop is None else row.budget_drop
