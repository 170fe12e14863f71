"""Negative controls compared with chance, and keys claimed by adversaries."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wmarena.experiments.report.labels import AttackLabel, Labels, Victim
from wmarena.experiments.results.rows import ResultRow, required
from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.task import TaskId
from wmarena.schemes.statistics import binomial_band, clopper_pearson

BAND = 0.999
"""Share of unrelated models whose statistic is in the drawn band."""

CONTROL_NAMES = {
    "clean": "owner's key on the clean twin",
    "null_model": "owner's key on an independent model",
    "stranger_key": "a stranger's key on the marked model",
}


@dataclass(frozen=True, kw_only=True)
class ControlSummary:
    """One kind of negative control of one scheme, over seeds."""

    victim: Victim
    control: str
    rows: tuple[ResultRow, ...]

    @property
    def name(self) -> str:
        """Description of the control."""
        return CONTROL_NAMES.get(self.control, self.control)

    @property
    def done(self) -> list[ResultRow]:
        """Rows with a verdict."""
        return [row for row in self.rows if row.is_done]

    @property
    def n(self) -> int:
        """Number of judged rows."""
        return len(self.done)

    @property
    def fired(self) -> int:
        """Number of false positives."""
        return sum(bool(row.verdict) for row in self.done)

    @property
    def statistics(self) -> list[float]:
        """Statistic of each judged row."""
        return [required(row.statistic) for row in self.done]

    @property
    def band(self) -> tuple[float, float] | None:
        """Range of the statistic of an unrelated key or model (``BAND``); None without an exact null model."""
        exact = (row for row in self.done if row.p_method == "binomial")
        known = ((row.n, row.null_q) for row in exact if row.n and row.null_q is not None)
        return next((binomial_band(n, q, BAND) for n, q in known if n and q is not None), None)

    @property
    def outside(self) -> int:
        """Number of judged rows outside the band, on either side."""
        if self.band is None:
            return 0
        low, high = self.band
        return sum(not low <= s <= high for s in self.statistics)


def controls(rows: Iterable[ResultRow], labels: Labels) -> list[ControlSummary]:
    """Group controls by scheme and kind, in the table's order."""
    found: dict[tuple[Victim, str], list[ResultRow]] = {}
    for row in rows:
        if row.control is not None:
            found.setdefault((labels.victim(row), row.control), []).append(row)
    return [ControlSummary(victim=v, control=c, rows=tuple(part)) for (v, c), part in found.items()]


def false_positive_rate(checks: Iterable[ControlSummary]) -> tuple[int, int, float]:
    """Compute (hits, trials, upper end of the exact 95 % interval); zero hits do not prove a rate of zero."""
    judged = list(checks)
    hits, trials = sum(c.fired for c in judged), sum(c.n for c in judged)
    return hits, trials, clopper_pearson(hits, trials)[1] if trials else 1.0


@dataclass(frozen=True, kw_only=True)
class Forgery:
    """A judged key that an adversary claims as their own.

    Attributes:
        tried: number of keys tried, None if unknown.
        owner_stands: the owner's verdict on the same suspect, None if not judged.
    """

    victim: Victim
    attack_label: AttackLabel
    row: ResultRow
    tried: int | None
    owner_stands: bool | None

    @property
    def passes(self) -> bool:
        """True if the verifier accepts the claim, corrected for the search for the key."""
        return bool(self.row.verdict)


def forgeries(rows: Sequence[ResultRow], records: Mapping[TaskId, Record], labels: Labels) -> list[Forgery]:
    """List finished claims by scheme, in the table's order."""
    order = {victim: i for i, victim in enumerate(dict.fromkeys(labels.victim(row) for row in rows))}
    table = [row for row in rows if row.control is None and row.is_done]
    owners = {(r.embed_id, r.suspect_id): r.verdict for r in table if not r.is_claim}
    found = [
        Forgery(
            victim=labels.victim(row),
            attack_label=labels.attack_label(row),
            row=row,
            tried=_details(records.get(row.task_id)).get("n_tried"),
            owner_stands=owners.get((row.embed_id, row.suspect_id)),
        )
        for row in table
        if row.is_claim
    ]
    return sorted(found, key=lambda f: order[f.victim])


def _details(record: Record | None) -> Mapping[str, Any]:
    result = record.result if record is not None and record.result else {}
    details: Mapping[str, Any] = result.get("verdict", {}).get("details", {})
    return details
