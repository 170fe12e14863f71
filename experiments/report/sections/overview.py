"""The table in a few lines per scheme, and in one paragraph: what survived what, at what cost."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from wmarena.experiments.report.labels import Labels, Victim
from wmarena.experiments.report.number_format import counted, listed, price
from wmarena.experiments.report.sections.controls import ControlSummary, controls
from wmarena.experiments.report.sections.fidelity import Fidelity
from wmarena.experiments.report.sections.survival import AttackComparison, duels
from wmarena.experiments.results.rows import ResultRow


@dataclass(frozen=True, kw_only=True)
class SchemeSummary:
    """One scheme on one workload.

    Attributes:
        rows: all its rows, controls and claims included.
        duels: what it was attacked with, in the table's order, without ``none``.
        unattacked: the duel with ``none``, None if no such row was planned.
        fidelity: None until the clean twin and the marked model of some seed are finished.
    """

    victim: Victim
    rows: tuple[ResultRow, ...]
    duels: tuple[AttackComparison, ...]
    unattacked: AttackComparison | None
    controls: tuple[ControlSummary, ...]
    fidelity: Fidelity | None

    @property
    def judged(self) -> list[AttackComparison]:
        """Duels that were decided on at least one seed."""
        return [d for d in self.duels if d.standing not in ("missing", "undecided", "unmarked")]

    @property
    def survived(self) -> int:
        """Duels survived on every judged seed."""
        return sum(d.standing in ("kept", "worthless") for d in self.judged)

    @property
    def weakest(self) -> AttackComparison | None:
        """The attack that hurt most."""
        return min(self.judged, key=lambda d: d.severity, default=None)

    @property
    def unmarked(self) -> bool:
        """True if the mark was not there to begin with, on every seed."""
        return self.unattacked is not None and self.unattacked.standing == "unmarked"

    @property
    def seconds_embed(self) -> list[float]:
        """Seconds of each embedding, by seed."""
        found = {row.seed: row.seconds_embed for row in self.rows if row.seconds_embed is not None}
        return [found[seed] for seed in sorted(found)]

    @property
    def covertness(self) -> list[float]:
        """Mean |w - w0| of each embedding, by seed."""
        return self._by_seed(lambda row: row.covertness_mean_abs_dev)

    @property
    def histogram_distance(self) -> list[float]:
        """Kolmogorov-Smirnov distance of the weights' histograms, marked against clean, by seed."""
        return self._by_seed(lambda row: row.covertness_ks)

    @property
    def relative_distance(self) -> list[float]:
        """||w - w0|| / ||w0|| of each embedding, by seed."""
        return self._by_seed(lambda row: row.covertness_relative_l2)

    def _by_seed(self, column: Callable[[ResultRow], float | None]) -> list[float]:
        found = {row.seed: column(row) for row in self.rows}
        return [value for _, value in sorted(found.items()) if value is not None]


def summaries(rows: Sequence[ResultRow], labels: Labels, fidelity: Iterable[Fidelity] = ()) -> list[SchemeSummary]:
    """One summary per scheme and workload, in the table's order."""
    parts: dict[Victim, list[ResultRow]] = {}
    for row in rows:
        parts.setdefault(labels.victim(row), []).append(row)
    costs = {f.victim: f for f in fidelity}
    found = duels(rows, labels)
    checks = controls(rows, labels)
    return [
        SchemeSummary(
            victim=victim,
            rows=tuple(part),
            duels=tuple(d for d in found if d.victim == victim and d.assault.attack.name != "none"),
            unattacked=next((d for d in found if d.victim == victim and d.assault.attack.name == "none"), None),
            controls=tuple(c for c in checks if c.victim == victim),
            fidelity=costs.get(victim),
        )
        for victim, part in parts.items()
    ]


def verdict_sentences(found: Sequence[SchemeSummary]) -> list[str]:
    """The table in words: one sentence per workload, then the controls, then what is missing."""
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
    return f"{text} and lost its mark most cheaply to {cheapest.assault}{where}, for {price(fmean(cheapest.drops))}"


def _about_controls(found: Sequence[SchemeSummary]) -> list[str]:
    checks = [c for s in found for c in s.controls]
    judged, fired = sum(c.n for c in checks), sum(c.fired for c in checks)
    if not judged:
        return []
    if not fired:
        who = {1: "The one negative control", 2: "Both negative controls"}.get(
            judged, f"All {judged} negative controls"
        )
        return [f"{who} stayed silent."]
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
