"""What removal costs, attack by attack and for the worst attack of each family."""

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
"""Attack -> its duel with each scheme."""


@dataclass(frozen=True, kw_only=True)
class FamilyPrice:
    """The attacks of one family, and what the cheapest of them costs each scheme.

    Attributes:
        lines: attack -> its duel with each scheme.
        cheapest: of each scheme, seed by seed; empty where none of the family was judged.
    """

    family: str
    lines: Matrix
    cheapest: tuple[tuple[Bracket, ...], ...]

    @property
    def name(self) -> str:
        """In words."""
        return FAMILY_NAMES.get(self.family, self.family.replace("_", " "))


def family_prices(matrix: Matrix) -> list[FamilyPrice]:
    """Families in the order of ``wmarena.attacks.base.Family``, then others; ``none`` is no attack."""
    found: dict[str, dict[AttackLabel, Sequence[AttackComparison | None]]] = {}
    for assault, line in matrix.items():
        judged = [duel for duel in line if duel is not None]
        if assault.attack.name != "none" and judged:
            found.setdefault(judged[0].contest.family, {})[assault] = line
    rank = {name: i for i, name in enumerate(get_args(Family))}
    return [
        FamilyPrice(family=family, lines=found[family], cheapest=_cheapest(found[family]))
        for family in sorted(found, key=lambda name: rank.get(name, len(rank)))
    ]


def _cheapest(lines: Matrix) -> tuple[tuple[Bracket, ...], ...]:
    columns = zip(*lines.values(), strict=True)
    return tuple(
        tuple(cheapest_of(bracket for duel in column if duel is not None for bracket in duel.brackets))
        for column in columns
    )


def priced(duels: Sequence[AttackComparison]) -> list[AttackComparison]:
    """Attacks (``none`` apart) of which at least one seed has a price, known or censored."""
    return [d for d in duels if d.assault.attack.name != "none" and any(_known(b) for b in d.brackets)]


def _known(bracket: Bracket) -> bool:
    return bracket.cost is not None or bracket.kept is not None


def worst_of(victim: Victim, duels: Sequence[AttackComparison]) -> list[Bracket]:
    """The cheapest removal of a scheme by any attack, seed by seed."""
    return cheapest_of(b for d in priced(duels) if d.victim == victim for b in d.brackets)
