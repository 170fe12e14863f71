"""The attacker's cost, computed from rows of the results table.

    cost      smallest relative drop of the primary metric among suspects with verdict 0, at any strength
    bracket   along growing strength: the first one with verdict 0, and the last with verdict 1 before it
    AUMC      area under the smallest margin as a function of the drop, on drops of 0 to 20 %, as a share of that range

All three are an oracle's: they use the verdict to choose among the strengths tried, and an attacker does not see it. A
seed without verdict 0 is censored: its cost is larger than the largest drop tried. Claims, negative controls, and seeds
whose mark was absent before the attack have no cost.

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
"""Largest relative drop in ``aumc``."""

UNKNOWN_FAMILY = "other"
"""Family of an attack whose plugin is not installed."""


@dataclass(frozen=True, kw_only=True)
class Bracket:
    """Attacker's cost on one seed.

    Attributes:
        cost: smallest relative drop with verdict 0, None (censored) without one.
        kept: largest relative drop with verdict 1, None without one: lower bound of a censored cost.
        before, after: rows of the last strength with verdict 1 before the flip, and of the first with verdict 0.
        cheapest: the row of ``cost``.
        non_monotone: verdict 1 at a larger strength than one with verdict 0.
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
        """Whether the cheapest suspect is better than training from scratch; None if censored or unknown."""
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
        """Seed -> its rows with a verdict, weakest first."""
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
        """``aumc`` per seed, without seeds whose published model has no verdict or no mark."""
        judged = {seed: row for seed, row in self.published.items() if row.verdict}
        return [aumc(rows, required(judged[seed].margin)) for seed, rows in self.seeds.items() if seed in judged]

    def _force(self, row: ResultRow) -> float:
        return -math.inf if row.strength is None else self.direction * row.strength


def attack_sweeps(rows: Iterable[ResultRow]) -> list[AttackSweep]:
    """Group rows by attack (also ``none``) and victim, without claims and controls, in the table's order."""
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
    """Compute the attacker's cost on one seed from its finished rows, weakest first."""
    verdicts = [bool(row.verdict) for row in rows]
    first = verdicts.index(False) if False in verdicts else len(rows)
    kept = [row for row in rows[:first] if row.verdict]
    priced = [row for row in rows if row.relative_drop is not None]
    removed = [row for row in priced if not row.verdict]
    cheapest = min(removed, key=_drop, default=None)
    return Bracket(
        seed=seed,
        cost=None if cheapest is None else cheapest.relative_drop,
        kept=max((_drop(row) for row in priced if row.verdict), default=None),
        before=kept[-1] if kept else None,
        after=rows[first] if first < len(rows) else None,
        cheapest=cheapest,
        non_monotone=any(later and not earlier for earlier, later in pairwise(verdicts)),
    )


def _drop(row: ResultRow) -> float:
    return required(row.relative_drop)


def cheapest_of(found: Iterable[Bracket]) -> list[Bracket]:
    """Select the cheapest removal among several attacks, seed by seed; censored if none removed the mark.

    A censored seed of a family costs more than the largest drop that any of its attacks tried.
    """
    parts: dict[int, list[Bracket]] = defaultdict(list)
    for part in found:
        parts[part.seed].append(part)
    return [_cheapest(parts[seed]) for seed in sorted(parts)]


def _cheapest(found: Sequence[Bracket]) -> Bracket:
    removed = [part for part in found if part.cost is not None]
    if removed:
        return min(removed, key=lambda part: required(part.cost))
    return max(found, key=lambda part: -math.inf if part.kept is None else part.kept)


def median_cost(brackets: Sequence[Bracket]) -> tuple[float, bool] | None:
    """Estimate the median of the attacker's cost over seeds (Kaplan and Meier, JASA 1958).

    A seed without verdict 0 is censored at its largest drop tried. It counts as at risk up to there, so a strong attack
    that never removed the mark weighs more than a weak one.

    Returns:
        (relative drop, False), or (largest drop tried, True) if the median itself is censored; None without data.
    """
    points = [(b.cost, True) if b.cost is not None else (b.kept, False) for b in brackets]
    # Events sort before censored seeds of the same drop, which are still at risk there.
    known = sorted((drop, not event) for drop, event in points if drop is not None)
    surviving = Fraction(1)  # exact: a product of floats may end just above one half for an even number of seeds
    for at_risk, (drop, censored) in zip(range(len(known), 0, -1), known, strict=True):
        if not censored:
            surviving *= Fraction(at_risk - 1, at_risk)
            if surviving <= Fraction(1, 2):
                return drop, False
    return (known[-1][0], True) if known else None


def envelope(rows: Iterable[ResultRow], start: float) -> list[tuple[float, float]]:
    """Return the steps of (relative drop, smallest margin at that drop or less), margins clipped to [0, 1].

    Drops below zero (the attack improved the model) count as zero. The smallest drop comes first.

    Args:
        rows: suspects of one seed.
        start: margin of the published model, at drop 0.
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
    """Average ``envelope`` over relative drops of [0, ``AUMC_REACH``]: 1 if every margin is 1.

    Beyond the largest drop tried the last margin applies. Arguments are those of ``envelope``.
    """
    steps = [step for step in envelope(rows, start) if step[0] <= AUMC_REACH]
    ends = [drop for drop, _ in steps[1:]] + [AUMC_REACH]
    area = sum(margin * (end - drop) for (drop, margin), end in zip(steps, ends, strict=True))
    return area / AUMC_REACH


def family(row: ResultRow) -> str:
    """Return the family of the row's attack; ``chain`` for a chain."""
    cls = _plugin(row.attack)
    if cls is not None:
        return cls.family
    return "chain" if "+" in row.attack else UNKNOWN_FAMILY


def direction(row: ResultRow) -> int:
    """Return 1 if a larger strength is a stronger attack, -1 if a smaller one is (number of bits)."""
    cls = _plugin(_swept_part(row))
    own = cls is not None and cls.strength_field() == str(row.strength_name).rpartition(".")[2]
    return -1 if own and getattr(cls, "direction", 1) == -1 else 1


def _swept_part(row: ResultRow) -> str:
    """Return the name of the attack with the strength: a chain's last part that has one."""
    params = row.attack_config
    named = str(row.strength_name)
    holders = [k for k, v in params.items() if f".{k}".endswith(f".{named}") and v == row.strength]
    part = params.get(f"{holders[-1].rpartition('.')[0]}.name") if holders else None
    return str(part or row.attack)


def _plugin(name: str) -> type[Attack] | None:
    """Return the attack's class, None if it is not installed here."""
    try:
        cls = plugin_class("attack", name)
    except (UnknownName, ImportError):
        return None
    return cls if issubclass(cls, Attack) else None
