"""Who survived what: the rows of one scheme under one attack, over strengths and seeds, as one duel.

The adversary chooses the strength, so a seed survives only if no strength removed its mark. The number shown for a
seed is the one an adversary would show: the cheapest removal; else the smallest margin within the budget; else, where
every strength overdraws the budget, the gentlest one.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal, cast

from experiments.report.labels import Assault, Labels, Victim
from experiments.rows import Row, budget_drop, is_claim, is_unattacked, max_drop

Outcome = Literal["kept", "worthless", "removed", "unmarked", "undecided"]
"""Of one seed: the verdict stands on all that the adversary can afford; it fell, but only on models not worth stealing;
the mark was removed; it was never there; not known."""

Standing = Literal["kept", "worthless", "mixed", "removed", "unmarked", "undecided", "missing"]
"""Of all seeds together: "mixed" where they disagree on removal, "missing" where none has a verdict."""


@dataclass(frozen=True, kw_only=True)
class Bracket:
    """Attacker's cost on one seed: relative drops on both sides of the flip.

    Attributes:
        cost: smallest relative drop with verdict 0, None if the verdict never fell.
        kept: largest relative drop with verdict 1, None if it never stood.
    """

    seed: int
    cost: float | None
    kept: float | None


@dataclass(frozen=True, kw_only=True)
class SeedResult:
    """One seed of a duel; ``row`` is the decisive one."""

    seed: int
    outcome: Outcome
    row: Row

    @property
    def drop(self) -> float | None:
        """Absolute drop of the test metric, marked - suspect."""
        marked, suspect = self.row["metric_marked"], self.row["metric_suspect"]
        return None if marked is None or suspect is None else marked - suspect


@dataclass(frozen=True, kw_only=True)
class Duel:
    """One scheme under one attack: every strength, every seed.

    Attributes:
        rows: all rows, finished or not, in the table's order.
        unmarked: seeds on which the mark was absent before any attack.
    """

    victim: Victim
    assault: Assault
    rows: tuple[Row, ...]
    unmarked: frozenset[int] = frozenset()

    @property
    def done(self) -> list[Row]:
        """Rows with a verdict."""
        return [row for row in self.rows if row["status"] == "done"]

    @property
    def unfinished(self) -> int:
        """Rows that failed or were skipped."""
        return len(self.rows) - len(self.done)

    @property
    def seeds(self) -> list[SeedResult]:
        """Seeds with at least one verdict, in order."""
        found: dict[int, list[Row]] = defaultdict(list)
        for row in self.done:
            found[row["seed"]].append(row)
        return [_seed_result(seed, rows, seed in self.unmarked) for seed, rows in sorted(found.items())]

    @property
    def survived(self) -> int:
        """Seeds on which nothing removed the mark."""
        return sum(s.outcome in ("kept", "worthless") for s in self.seeds)

    @property
    def removed(self) -> int:
        """Seeds on which some strength removed the mark."""
        return sum(s.outcome == "removed" for s in self.seeds)

    @property
    def standing(self) -> Standing:
        """All seeds in one word."""
        outcomes = {s.outcome for s in self.seeds}
        if not outcomes:
            return "missing"
        if "undecided" in outcomes:
            return "undecided"
        for word in ("removed", "unmarked"):
            if word in outcomes:
                return cast(Standing, word) if outcomes == {word} else "mixed"
        return "worthless" if "worthless" in outcomes else "kept"

    @property
    def margins(self) -> list[float]:
        """Margin of each seed's decisive row."""
        return [s.row["margin"] for s in self.seeds]

    @property
    def drops(self) -> list[float]:
        """Absolute test drop of each seed's decisive row."""
        return [s.drop for s in self.seeds if s.drop is not None]

    @property
    def strengths(self) -> list[float]:
        """Distinct strengths asked for, ascending."""
        return sorted({row["strength"] for row in self.rows if row["strength"] is not None})

    @property
    def brackets(self) -> list[Bracket]:
        """Attacker's cost per seed."""
        return [_bracket(s.seed, [r for r in self.done if r["seed"] == s.seed]) for s in self.seeds]

    @property
    def severity(self) -> tuple[float, bool, float]:
        """Order of attacks from the owner's worst: seeds lost, then what the adversary can afford, then the margin."""
        seeds = self.seeds
        if not seeds:
            return 1.0, True, math.inf
        overpriced = all(_cost(s.row) > max_drop(s.row) for s in seeds)
        return -self.removed / len(seeds), overpriced, fmean(self.margins)


def duels(rows: Iterable[Row], labels: Labels) -> list[Duel]:
    """Every scheme under every attack (``none`` included), claims and controls apart, in the table's order."""
    table = [row for row in rows if row["control"] is None and not is_claim(row)]
    found: dict[tuple[Victim, Assault], list[Row]] = defaultdict(list)
    absent: dict[Victim, set[int]] = defaultdict(set)
    for row in table:
        if is_unattacked(row) and row["verdict"] is False:
            absent[labels.victim(row)].add(row["seed"])
        found[(labels.victim(row), labels.assault(row))].append(row)
    return [
        Duel(victim=victim, assault=assault, rows=tuple(part), unmarked=frozenset(absent[victim]))
        for (victim, assault), part in found.items()
    ]


def _seed_result(seed: int, rows: Sequence[Row], unmarked: bool) -> SeedResult:
    if unmarked:
        return SeedResult(seed=seed, outcome="unmarked", row=min(rows, key=_cost))
    removed = [row for row in rows if row["removed"]]
    if removed:
        return SeedResult(seed=seed, outcome="removed", row=min(removed, key=_cost))
    open_rows = [row for row in rows if row["removed"] is None]
    if open_rows:
        return SeedResult(seed=seed, outcome="undecided", row=min(open_rows, key=_cost))
    affordable = [row for row in rows if _cost(row) <= max_drop(row)]
    decisive = min(affordable, key=lambda row: row["margin"]) if affordable else min(rows, key=_cost)
    return SeedResult(seed=seed, outcome="kept" if decisive["verdict"] else "worthless", row=decisive)


def _cost(row: Mapping[str, Any]) -> float:
    drop = budget_drop(row)
    return math.inf if drop is None else drop


def _bracket(seed: int, rows: Sequence[Row]) -> Bracket:
    drops = [(row["relative_drop"], row["verdict"]) for row in rows if row["relative_drop"] is not None]
    return Bracket(
        seed=seed,
        cost=min((drop for drop, verdict in drops if not verdict), default=None),
        kept=max((drop for drop, verdict in drops if verdict), default=None),
    )


def median_cost(brackets: Sequence[Bracket]) -> tuple[float, bool] | None:
    """Kaplan-Meier median of the attacker's cost over seeds (Kaplan and Meier, JASA 1958).

    A seed whose verdict never fell is censored at the largest drop tried on it: its cost is larger than that.

    Returns:
        (relative drop, False), or (largest drop tried, True) where the median itself is censored; None without data.
    """
    points = [(b.cost, True) if b.cost is not None else (b.kept, False) for b in brackets]
    known = sorted((drop, not event) for drop, event in points if drop is not None)
    standing, at_risk = 1.0, len(known)
    for drop, censored in known:
        if not censored:
            standing *= 1 - 1 / at_risk
        at_risk -= 1
        if not censored and standing <= 0.5:
            return drop, False
    return (known[-1][0], True) if known else None
