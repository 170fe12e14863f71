"""Who survived what: the rows of one scheme under one attack, over strengths and seeds, as one duel.

The adversary chooses the strength, so a seed survives only if no strength removed its mark. The number shown for a
seed is the one an adversary would show: the cheapest removal; else the smallest margin within the budget; else, where
every strength overdraws the budget, the gentlest one.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, cast

from wmarena.experiments.report.labels import AttackLabel, Labels, Victim
from wmarena.experiments.results.costs import AttackSweep, Bracket, attack_sweeps, median_cost
from wmarena.experiments.results.rows import ResultRow, required

SeedOutcome = Literal["kept", "worthless", "removed", "unmarked", "undecided"]
"""Of one seed: the verdict stands on all that the adversary can afford; it fell, but only on models not worth stealing;
the mark was removed; it was never there; not known."""

Outcome = Literal["kept", "worthless", "mixed", "removed", "unmarked", "undecided", "missing"]
"""Of all seeds together: "mixed" where they disagree on removal, "missing" where none has a verdict."""


@dataclass(frozen=True, kw_only=True)
class SeedResult:
    """One seed of a duel; ``row`` is the decisive one."""

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
    assault: AttackLabel
    contest: AttackSweep

    @property
    def rows(self) -> tuple[ResultRow, ...]:
        """All rows, finished or not, in the table's order."""
        return self.contest.rows

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
        return [_seed_result(seed, rows, seed in self.contest.unmarked) for seed, rows in sorted(found.items())]

    @property
    def survived(self) -> int:
        """Seeds on which nothing removed the mark."""
        return sum(s.outcome in ("kept", "worthless") for s in self.seeds)

    @property
    def removed(self) -> int:
        """Seeds on which some strength removed the mark."""
        return sum(s.outcome == "removed" for s in self.seeds)

    @property
    def standing(self) -> Outcome:
        """All seeds in one word."""
        outcomes = {s.outcome for s in self.seeds}
        if not outcomes:
            return "missing"
        if "undecided" in outcomes:
            return "undecided"
        for word in ("removed", "unmarked"):
            if word in outcomes:
                return cast(Outcome, word) if outcomes == {word} else "mixed"
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
        """Distinct strengths asked for, ascending."""
        return sorted({row.strength for row in self.rows if row.strength is not None})

    @property
    def brackets(self) -> list[Bracket]:
        """Attacker's cost per seed."""
        return self.contest.brackets

    @property
    def severity(self) -> tuple[float, bool, float]:
        """Order of attacks from the owner's worst: seeds lost, then what the adversary can afford, then the margin."""
        seeds = self.seeds
        if not seeds:
            return 1.0, True, math.inf
        overpriced = all(_cost(s.row) > s.row.max_drop for s in seeds)
        return -self.removed / len(seeds), overpriced, fmean(self.margins)


def duels(rows: Iterable[ResultRow], labels: Labels) -> list[AttackComparison]:
    """Every scheme under every attack (``none`` included), claims and controls apart, in the table's order."""
    return [
        AttackComparison(
            victim=labels.victim(contest.rows[0]), assault=labels.assault(contest.rows[0]), contest=contest
        )
        for contest in attack_sweeps(rows)
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


__all__ = ["AttackComparison", "Bracket", "Outcome", "SeedOutcome", "SeedResult", "duels", "median_cost"]
