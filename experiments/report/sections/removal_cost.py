"""Cost of removal per attack and for the cheapest attack of each family."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from wmarena.attacks.base import Family
from wmarena.experiments.report.labels import AttackLabel, Victim
from wmarena.experiments.report.sections.survival import AttackComparison
from wmarena.experiments.results.costs import Bracket, cheapest_of

FAMILY_NAMES = {
    "tune": "Fine-tuning",
    "prune": "Pruning",
    "compress": "Compression",
    "overwrite": "Overwriting",
    "known_key": "Known key",
    "equivalence": "Rewriting",
    "adaptive": "Adaptive removal",
    "extraction": "Extraction",
    "chain": "Chains",
    "other": "Other",
}

Matrix = Mapping[AttackLabel, Sequence[AttackComparison | None]]
"""Attack -> its comparison with each scheme."""


@dataclass(frozen=True, kw_only=True)
class FamilyPrice:
    """The attacks of one family with the cost of the cheapest per scheme.

    Attributes:
        lines: attack -> its comparison with each scheme.
        cheapest: per scheme and seed; empty if no attack of the family was judged.
    """

    family: str
    lines: Matrix
    cheapest: tuple[tuple[Bracket, ...], ...]

    @property
    def name(self) -> str:
        """Title of the family."""
        return FAMILY_NAMES.get(self.family, self.family.replace("_", " "))


def family_prices(matrix: Matrix) -> list[FamilyPrice]:
    """Group attacks in the order of ``wmarena.attacks.base.Family``, then others; omit ``none``."""
    found: dict[str, dict[AttackLabel, Sequence[AttackComparison | None]]] = {}
    for attack_label, line in matrix.items():
        judged = [comparison for comparison in line if comparison is not None]
        if attack_label.name != "none" and judged:
            found.setdefault(judged[0].sweep.family, {})[attack_label] = line
    rank = {name: i for i, name in enumerate(get_args(Family))}
    return [
        FamilyPrice(family=family, lines=found[family], cheapest=_cheapest(found[family]))
        for family in sorted(found, key=lambda name: rank.get(name, len(rank)))
    ]


def _cheapest(lines: Matrix) -> tuple[tuple[Bracket, ...], ...]:
    columns = zip(*lines.values(), strict=True)
    return tuple(
        tuple(
            cheapest_of(
                bracket for comparison in column if comparison is not None for bracket in comparison.sweep.brackets
            )
        )
        for column in columns
    )


def priced(comparisons: Sequence[AttackComparison]) -> list[AttackComparison]:
    """Select attacks (except ``none``) with a known or censored cost on at least one seed."""
    return [
        d
        for d in comparisons
        if d.attack_label.name != "none" and any((b.cost, b.kept) != (None, None) for b in d.sweep.brackets)
    ]


def worst_of(victim: Victim, comparisons: Sequence[AttackComparison]) -> list[Bracket]:
    """Find the cheapest removal of a scheme by any attack, per seed."""
    return cheapest_of(b for d in priced(comparisons) if d.victim == victim for b in d.sweep.brackets)
