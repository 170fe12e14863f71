"""The attacker's cost, from rows of the results table alone.

    cost      smallest relative drop of the primary metric among the suspects on which the verdict fell, at any strength
    bracket   along growing strength: the last one at which the verdict stood, the first at which it fell
    AUMC      area under the smallest margin that a given drop buys, on drops of 0 to 20 %, as a share of that range

All three are an oracle's: they take the best strength after the fact, which an attacker who does not see the verdict
cannot. A seed on which the verdict never fell is censored: its cost is larger than the largest drop tried. Claims and
negative controls have no cost, nor has a seed whose mark was absent before the attack.

Source: Kaplan and Meier, JASA 1958 (medians of censored costs).
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from wmarena.attacks.base import Attack
from wmarena.experiments.results.rows import ResultRow, required
from wmarena.orchestrator.plan.plugins import UnknownName, plugin_class

AUMC_REACH = 0.2
"""Largest relative drop that ``aumc`` looks at."""

UNKNOWN_FAMILY = "other"
"""Family of an attack whose plugin is not installed here."""


@dataclass(frozen=True, kw_only=True)
class Bracket:
    """Attacker's cost on one seed.

    Attributes:
        cost: smallest relative drop with verdict 0, None (censored) if the verdict never fell.
        kept: largest relative drop with verdict 1, None if it never stood: where a censored cost begins.
        before, after: rows of the last strength with verdict 1 before the flip, and of the first with verdict 0.
        cheapest: the row of ``cost``.
        non_monotone: the verdict stands again at a larger strength than one at which it fell.
    """

    seed: int
    cost: float | None
    kept: float | None
    before: ResultRow | None = None
    after: ResultRow | None = None
    cheapest: ResultRow | None = None
    non_monotone: bool = False

    @property
    def beats_scratch(self) -> bool | None:
        """Whether the cheapest suspect is better than training from scratch; None if censored or not known."""
        return None if self.cheapest is None else self.cheapest.beats_scratch


@dataclass(frozen=True, kw_only=True)
class AttackSweep:
    """One configured attack without its strength against one victim: every strength, every seed.

    Attributes:
        rows: all rows, finished or not, in the table's order.
        published: seed -> the row of the marked model before any attack.
        family: of the attack.
        direction: 1 if a larger number is a stronger attack, else -1.
    """

    rows: tuple[ResultRow, ...]
    published: Mapping[int, ResultRow]
    family: str
    direction: int

    @property
    def unmarked(self) -> frozenset[int]:
        """Seeds on which the mark was absent before any attack."""
        return frozenset(seed for seed, row in self.published.items() if row.verdict is False)

    @property
    def seeds(self) -> dict[int, list[ResultRow]]:
        """Seed -> its rows with a verdict, from the gentlest to the strongest."""
        found: dict[int, list[ResultRow]] = defaultdict(list)
        for row in self.rows:
            if row.is_done:
                found[row.seed].append(row)
        return {seed: sorted(found[seed], key=self._force) for seed in sorted(found)}

    @property
    def brackets(self) -> list[Bracket]:
        """Attacker's cost per seed, without seeds that had no mark."""
        return [bracket(seed, rows) for seed, rows in self.seeds.items() if seed not in self.unmarked]

    @property
    def aumc(self) -> list[float]:
        """``aumc`` per seed, without seeds whose published model is not judged or had no mark."""
        judged = {seed: row for seed, row in self.published.items() if row.verdict}
        return [aumc(rows, required(judged[seed].margin)) for seed, rows in self.seeds.items() if seed in judged]

    def _force(self, row: ResultRow) -> float:
        return -math.inf if row.strength is None else self.direction * row.strength


def contests(rows: Iterable[ResultRow]) -> list[AttackSweep]:
    """Every attack (``none`` included) on every victim, claims and controls apart, in the table's order."""
    table = [row for row in rows if row.control is None and not row.is_claim]
    found: dict[tuple[object, ...], list[ResultRow]] = defaultdict(list)
    published: dict[tuple[object, ...], dict[int, ResultRow]] = defaultdict(dict)
    for row in table:
        if row.is_unattacked and row.is_done:
            published[row.victim][row.seed] = row
        judged = row.has_original_head, row.is_realigned
        found[(row.victim, row.setting, row.strength_name, judged)].append(row)
    return [
        AttackSweep(
            rows=tuple(part),
            published=published[part[0].victim],
            family=family(part[0]),
            direction=direction(part[0]),
        )
        for part in found.values()
    ]


def bracket(seed: int, rows: Sequence[ResultRow]) -> Bracket:
    """Attacker's cost on one seed from its finished rows, sorted from the gentlest to the strongest."""
    verdicts = [bool(row.verdict) for row in rows]
    first = verdicts.index(False) if False in verdicts else len(rows)
    standing = [row for row in rows[:first] if row.verdict]
    priced = [row for row in rows if row.relative_drop is not None]
    fallen = [row for row in priced if not row.verdict]
    cheapest = min(fallen, key=_drop, default=None)
    return Bracket(
        seed=seed,
        cost=None if cheapest is None else cheapest.relative_drop,
        kept=max((_drop(row) for row in priced if row.verdict), default=None),
        before=standing[-1] if standing else None,
        after=rows[first] if first < len(rows) else None,
        cheapest=cheapest,
        non_monotone=any(later and not earlier for earlier, later in pairwise(verdicts)),
    )


def _drop(row: ResultRow) -> float:
    return required(row.relative_drop)


def cheapest_of(found: Iterable[Bracket]) -> list[Bracket]:
    """The worst of several attacks, seed by seed: the cheapest removal; censored where none of them removed the mark.

    A censored seed of a family costs more than the largest drop that any of its attacks tried.
    """
    parts: dict[int, list[Bracket]] = defaultdict(list)
    for part in found:
        parts[part.seed].append(part)
    return [_cheapest(parts[seed]) for seed in sorted(parts)]


def _cheapest(found: Sequence[Bracket]) -> Bracket:
    removed = [part for part in found if part.cost is not None]
    if removed:
        return min(removed, key=lambda part: math.inf if part.cost is None else part.cost)
    return max(found, key=lambda part: -math.inf if part.kept is None else part.kept)


def median_cost(brackets: Sequence[Bracket]) -> tuple[float, bool] | None:
    """Kaplan-Meier median of the attacker's cost over seeds (Kaplan and Meier, JASA 1958).

    A seed whose verdict never fell is censored at the largest drop tried on it: its cost is larger than that. It counts
    as at risk up to there, so a harsher attack that never removed the mark weighs more than a gentle one.

    Returns:
        (relative drop, False), or (largest drop tried, True) where the median itself is censored; None without data.
    """
    points = [(b.cost, True) if b.cost is not None else (b.kept, False) for b in brackets]
    known = sorted((drop, not event) for drop, event in points if drop is not None)
    surviving = Fraction(1)  # exact: a product of floats may end just above one half for an even number of seeds
    for at_risk, (drop, censored) in zip(range(len(known), 0, -1), known, strict=True):
        if not censored:
            surviving *= Fraction(at_risk - 1, at_risk)
            if surviving <= Fraction(1, 2):
                return drop, False
    return (known[-1][0], True) if known else None


def envelope(rows: Iterable[ResultRow], start: float) -> list[tuple[float, float]]:
    """(relative drop, smallest margin among suspects that cost no more): a falling staircase, clipped to [0, 1].

    Drops below zero (the attack made the model better) count as zero. Only steps are listed, the gentlest first.

    Args:
        rows: suspects of one seed.
        start: margin of the published model, which costs nothing.
    """
    known = sorted(
        (max(0.0, row.relative_drop), min(1.0, max(0.0, row.margin)))
        for row in rows
        if row.relative_drop is not None and row.margin is not None
    )
    steps = [(0.0, min(1.0, max(0.0, start)))]
    for drop, margin in known:
        if margin < steps[-1][1]:
            steps.append((drop, margin))
    return steps


def aumc(rows: Iterable[ResultRow], start: float) -> float:
    """Mean of ``envelope`` over relative drops of [0, ``AUMC_REACH``]: 1 if nothing touches the mark, 0 if it is free.

    Beyond the largest drop tried the last margin holds: what was not tried is not held against the mark.

    Args:
        rows, start: as for ``envelope``.
    """
    steps = [step for step in envelope(rows, start) if step[0] <= AUMC_REACH]
    ends = [drop for drop, _ in steps[1:]] + [AUMC_REACH]
    area = sum(margin * (end - drop) for (drop, margin), end in zip(steps, ends, strict=True))
    return area / AUMC_REACH


def family(row: ResultRow) -> str:
    """The family of the row's attack; that of a chain is ``chain``."""
    cls = _plugin(row.attack)
    if cls is not None:
        return cls.family
    return "chain" if "+" in row.attack else UNKNOWN_FAMILY


def direction(row: ResultRow) -> int:
    """1 if a larger strength is a stronger attack, -1 if a smaller one is (bits that are kept)."""
    cls = _plugin(_swept_part(row))
    own = cls is not None and cls.strength_field() == str(row.strength_name).rpartition(".")[2]
    return -1 if own and getattr(cls, "direction", 1) == -1 else 1


def _swept_part(row: ResultRow) -> str:
    """Name of the attack that the strength belongs to: a chain's last part that has one."""
    params = row.attack_config
    named = str(row.strength_name)
    holders = [k for k, v in params.items() if f".{k}".endswith(f".{named}") and v == row.strength]
    part = params.get(f"{holders[-1].rpartition('.')[0]}.name") if holders else None
    return str(part or row.attack)


def _plugin(name: str) -> type[Attack] | None:
    """The attack's class, None if it is not installed here."""
    try:
        cls = plugin_class("attack", name)
    except (UnknownName, ImportError):
        return None
    return cls if issubclass(cls, Attack) else None
