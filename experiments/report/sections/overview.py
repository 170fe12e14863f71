"""Summary per scheme, as a table and as one paragraph."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from wmarena.experiments.report.labels import Labels, Victim
from wmarena.experiments.report.number_format import counted, listed, price
from wmarena.experiments.report.sections.controls import ControlSummary, controls
from wmarena.experiments.report.sections.fidelity import Fidelity
from wmarena.experiments.report.sections.survival import AttackComparison, comparisons
from wmarena.experiments.results.rows import ResultRow


@dataclass(frozen=True, kw_only=True)
class SchemeSummary:
    """One scheme on one workload.

    Attributes:
        rows: all its rows, controls and claims included.
        comparisons: one per attack, in the table's order, without ``none``.
        unattacked: the comparison with ``none``, None if no such row was planned.
        fidelity: None if no seed has both a clean twin and a marked model.
    """

    victim: Victim
    rows: tuple[ResultRow, ...]
    comparisons: tuple[AttackComparison, ...]
    unattacked: AttackComparison | None
    controls: tuple[ControlSummary, ...]
    fidelity: Fidelity | None

    @property
    def judged(self) -> list[AttackComparison]:
        """Comparisons that were decided on at least one seed."""
        return [d for d in self.comparisons if d.outcome not in ("missing", "undecided", "unmarked")]

    @property
    def survived(self) -> int:
        """Comparisons survived on every judged seed."""
        return sum(d.outcome in ("kept", "worthless") for d in self.judged)

    @property
    def weakest(self) -> AttackComparison | None:
        """The comparison with the most severe attack."""
        return min(self.judged, key=lambda d: d.severity, default=None)

    @property
    def unmarked(self) -> bool:
        """True if the mark was not detectable before any attack, on every seed."""
        return self.unattacked is not None and self.unattacked.outcome == "unmarked"

    def by_seed(self, column: str) -> list[float]:
        """Values of an embedding's column, such as ``seconds_embed`` or ``covertness_ks``, by seed."""
        found = {row.seed: value for row in self.rows if (value := getattr(row, column)) is not None}
        return [found[seed] for seed in sorted(found)]


def summaries(rows: Sequence[ResultRow], labels: Labels, fidelity: Iterable[Fidelity] = ()) -> list[SchemeSummary]:
    """Summarise each scheme and workload, in the table's order."""
    parts: dict[Victim, list[ResultRow]] = {}
    for row in rows:
        parts.setdefault(labels.victim(row), []).append(row)
    costs = {f.victim: f for f in fidelity}
    found = comparisons(rows, labels)
    checks = controls(rows, labels)
    return [
        SchemeSummary(
            victim=victim,
            rows=tuple(part),
            comparisons=tuple(d for d in found if d.victim == victim and d.attack_label.name != "none"),
            unattacked=next((d for d in found if d.victim == victim and d.attack_label.name == "none"), None),
            controls=tuple(c for c in checks if c.victim == victim),
            fidelity=costs.get(victim),
        )
        for victim, part in parts.items()
    ]


def verdict_sentences(found: Sequence[SchemeSummary]) -> list[str]:
    """Describe the table: one sentence per workload, then the controls, then missing rows."""
    sentences = []
    for workload in dict.fromkeys(s.victim.workload for s in found):
        clauses = [_clause(s) for s in found if s.victim.workload == workload]
        sentences.append(f"On {workload}, " + "; ".join(clauses) + ".")
    return [*sentences, *_about_controls(found), *_about_gaps(found)]


def _clause(summary: SchemeSummary) -> str:
    name, n = str(summary.victim), len(summary.judged)
    if summary.unmarked:
        return f"{name} has no detectable mark even before an attack"
    if not n:
        return f"{name} has no judged attack"
    if summary.survived == n:
        return f"{name} survived {'the one attack' if n == 1 else f'all {n} attacks'} on every seed"
    lost = [d for d in summary.judged if d.removed]
    cheapest = min(lost, key=lambda d: fmean(d.drops)) if lost else None
    text = f"{name} survived {summary.survived} of {counted(n, 'attack')}"
    if cheapest is None:
        return text
    where = "" if cheapest.removed == len(cheapest.seeds) else f" on {cheapest.removed} of {len(cheapest.seeds)} seeds"
    cost = price(fmean(cheapest.drops))
    return f"{text} and lost its mark most cheaply to {cheapest.attack_label}{where}, for {cost}"


def _about_controls(found: Sequence[SchemeSummary]) -> list[str]:
    checks = [c for s in found for c in s.controls]
    judged, fired = sum(c.n for c in checks), sum(c.fired for c in checks)
    if not judged:
        return []
    if not fired:
        few = {1: "The one negative control", 2: "Both negative controls"}
        return [f"{few.get(judged, f'All {judged} negative controls')} stayed silent."]
    names = listed(list(dict.fromkeys(f"{c.victim.scheme} on {c.victim.workload}" for c in checks if c.fired)))
    return [f"{fired} of {counted(judged, 'negative control')} fired ({names}): those verdicts are ambiguous."]


def _about_gaps(found: Sequence[SchemeSummary]) -> list[str]:
    rows = [row for s in found for row in s.rows]
    empty = [row for row in rows if not row.is_done]
    gated = sum(row.is_gated for row in empty)
    ended = sum(row.is_unreached for row in empty)
    broken = len(empty) - gated - ended
    n = counted(len(rows), "row")
    return [
        *([f"{broken} of {n} {'has' if broken == 1 else 'have'} no number because a task failed."] if broken else []),
        *([f"{ended} of {n} {'was' if ended == 1 else 'were'} not reached."] if ended else []),
        *([f"{gated} of {n} {'was' if gated == 1 else 'were'} left out by a gate."] if gated else []),
    ]
