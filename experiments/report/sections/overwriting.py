"""Overwriting: the owner's mark and the adversary's own after the adversary embedded a second one."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from wmarena.experiments.report.labels import Victim
from wmarena.experiments.report.sections.survival import AttackComparison
from wmarena.experiments.results.rows import ResultRow, required

FAMILY = "overwrite"


@dataclass(frozen=True, kw_only=True)
class OverwriteResult:
    """One scheme's mark after one overwriter.

    Attributes:
        intruder: the scheme that the adversary embedded; the attack's name if it names none.
        comparison: the owner's side, for the most severe of several settings.
        claims: the adversary's own key on each seed's decisive suspect; empty without claims.
    """

    intruder: str
    comparison: AttackComparison
    claims: tuple[ResultRow, ...]

    @property
    def statistics(self) -> list[float]:
        """The owner's statistic on each seed's decisive suspect."""
        return [required(s.row.statistic) for s in self.comparison.seeds]

    @property
    def claim_margin(self) -> float | None:
        """Mean margin of the adversary's own key."""
        return fmean(required(row.margin) for row in self.claims) if self.claims else None

    @property
    def passed(self) -> int:
        """Seeds on which the adversary's own key is found."""
        return sum(bool(row.verdict) for row in self.claims)


OverwriteResults = Mapping[Victim, Mapping[str, OverwriteResult]]
"""Scheme of the mark -> overwriter -> result."""


def overwrite_results(
    comparisons: Sequence[AttackComparison], rows: Iterable[ResultRow]
) -> dict[Victim, dict[str, OverwriteResult]]:
    """Collect judged overwritings by scheme and overwriter, in the table's order."""
    claims = {(row.embed_id, row.suspect_id): row for row in rows if row.is_claim and row.is_done}
    out: dict[Victim, dict[str, OverwriteResult]] = {}
    for comparison in comparisons:
        if comparison.sweep.family != FAMILY or not comparison.done:
            continue
        line, name = out.setdefault(comparison.victim, {}), intruder(comparison.rows[0])
        if name in line and line[name].comparison.severity <= comparison.severity:
            continue
        decisive = [(s.row.embed_id, s.row.suspect_id) for s in comparison.seeds]
        found = tuple(claims[pair] for pair in decisive if pair in claims)
        line[name] = OverwriteResult(intruder=name, comparison=comparison, claims=found)
    return out


def intruder(row: ResultRow) -> str:
    """Name the scheme that the row's adversary embedded, or the attack if its configuration names none."""
    return str(row.attack_config.get("scheme.name", row.attack))


def intruders(found: OverwriteResults) -> list[str]:
    """List the overwriters in order of appearance."""
    return list(dict.fromkeys(name for line in found.values() for name in line))
