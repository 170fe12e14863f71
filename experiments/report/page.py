"""Content of a report as plain values; HTML, Markdown and the files are views of it."""

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wmarena.experiments.report.labels import AttackLabel, Labels, Victim
from wmarena.experiments.report.number_format import power_of_ten
from wmarena.experiments.report.sections.calibration import NullCheck, null_checks
from wmarena.experiments.report.sections.controls import Forgery, forgeries
from wmarena.experiments.report.sections.curves import swept
from wmarena.experiments.report.sections.decoded_images import DecodedImage, decoded_images_of
from wmarena.experiments.report.sections.fidelity import Fidelity, TensorStore, paired_fidelity
from wmarena.experiments.report.sections.overview import SchemeSummary, summaries, verdict_sentences
from wmarena.experiments.report.sections.overwriting import OverwriteResult, overwrite_results
from wmarena.experiments.report.sections.removal_cost import FamilyPrice, family_prices
from wmarena.experiments.report.sections.runtime import (
    FailedTask,
    TaskDurations,
    failed_tasks,
    skipped_rows,
    steps,
)
from wmarena.experiments.report.sections.survival import AttackComparison
from wmarena.experiments.report.sections.tradeoff import TradeOff, trade_offs
from wmarena.experiments.report.sections.unlocking import StampMap, stamp_maps
from wmarena.experiments.report.sections.valley import ValleyCurve, valleys
from wmarena.experiments.results.calibration import Calibration
from wmarena.experiments.results.caveats import EXPLANATIONS, raised
from wmarena.experiments.results.rows import ResultRow
from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.task import State, TaskId


@dataclass(frozen=True, kw_only=True)
class WorkloadSection:
    """One workload's part of the report.

    Attributes:
        matrix: attack -> its comparison with each scheme, None if the pair was not planned.
        curves: attacks with several strengths.
        families: attacks by family, with the cost of the cheapest; empty without attacks.
        trade_offs: per scheme, over all its attacks.
        overwrite_results: scheme of the mark -> overwriter -> result.
        valleys: embeddings that logged the steepness of the loss around their mark.
    """

    workload: str
    metric: str
    summaries: tuple[SchemeSummary, ...]
    matrix: dict[AttackLabel, tuple[AttackComparison | None, ...]]
    curves: tuple[AttackLabel, ...]
    families: tuple[FamilyPrice, ...]
    trade_offs: tuple[TradeOff, ...]
    overwrite_results: Mapping[Victim, Mapping[str, OverwriteResult]]
    valleys: tuple[ValleyCurve, ...]

    @property
    def victims(self) -> list[Victim]:
        """Schemes, in order."""
        return [s.victim for s in self.summaries]

    @property
    def comparisons(self) -> list[AttackComparison]:
        """All comparisons, including ``none``."""
        return [comparison for line in self.matrix.values() for comparison in line if comparison is not None]


@dataclass(frozen=True, kw_only=True)
class ReportPage:
    """Content of a report, independent of the format."""

    experiment: str
    run_id: str
    description: str
    sentences: tuple[str, ...]
    sections: tuple[WorkloadSection, ...]
    fidelity: tuple[Fidelity, ...]
    null_checks: tuple[NullCheck, ...]
    stamps: tuple[StampMap, ...]
    decoded_images: tuple[tuple[DecodedImage, ...], ...]
    forgeries: tuple[Forgery, ...]
    steps: tuple[TaskDurations, ...]
    failed_tasks: tuple[FailedTask, ...]
    skipped_rows: Mapping[str, int]
    caveats: tuple[tuple[str, int, str], ...]
    lines: tuple["LabelledRow", ...]
    counts: dict[str, int]
    seeds: tuple[int, ...]
    levels: str
    facts: tuple[tuple[str, str], ...]
    spec_text: str

    @property
    def summaries(self) -> list[SchemeSummary]:
        """Every scheme on every workload."""
        return [s for section in self.sections for s in section.summaries]


@dataclass(frozen=True)
class LabelledRow:
    """A row of the results table with its labels."""

    victim: Victim
    attack_label: AttackLabel
    row: ResultRow

    @property
    def role(self) -> str:
        """Kind of control, or that an adversary claims the mark."""
        return (self.row.control or "").replace("_", " ") or ("adversary's claim" if self.row.is_claim else "")


def make_page(
    rows: Sequence[ResultRow],
    plan: Plan,
    records: Mapping[TaskId, Record],
    spec_text: str,
    run_info: Mapping[str, Any],
    store: TensorStore | None,
    calibrations: Sequence[Calibration] = (),
) -> ReportPage:
    """Build a report from stored evidence alone.

    Args:
        rows: the results table (``wmarena.experiments.results.table.build_rows``).
        plan, records: the planned tasks and their records: seconds, failures, environments.
        spec_text: the spec as given.
        run_info: the journal's row of the execution; every plain value in it or in its ``info`` is shown, and
            ``description`` is shown under the title.
        store: source of predictions, and of training curves if it has ``read``; None omits both.
        calibrations: statistics of keys that nobody embedded (``wmarena.experiments.results.table.calibrated``).
    """
    labels = Labels(rows)
    info = {**run_info, **(run_info.get("info") or {})}
    fidelity = paired_fidelity(rows, store)
    found = summaries(rows, labels, fidelity)
    valley_curves = valleys(rows, labels, store)
    first = rows[0] if rows else None
    return ReportPage(
        experiment=str((first and first.experiment) or info.get("experiment") or "experiment"),
        run_id=str((first and first.run_id) or info.get("id") or ""),
        description=str(info.get("description") or ""),
        sentences=tuple(verdict_sentences(found)),
        sections=tuple(
            _section(workload, found, valley_curves) for workload in dict.fromkeys(s.victim.workload for s in found)
        ),
        fidelity=tuple(fidelity),
        null_checks=tuple(null_checks(calibrations, labels, [s.victim for s in found])),
        stamps=tuple(stamp_maps(rows, labels)),
        decoded_images=tuple(map(tuple, decoded_images_of(found))),
        forgeries=tuple(forgeries(rows, records, labels)),
        steps=tuple(steps(plan, records)),
        failed_tasks=tuple(failed_tasks(plan, records)),
        skipped_rows=skipped_rows(rows),
        caveats=tuple(
            (name, n, EXPLANATIONS.get(name, "No explanation is recorded.")) for name, n in raised(rows).items()
        ),
        lines=tuple(LabelledRow(labels.victim(row), labels.attack_label(row), row) for row in rows),
        counts=_counts(plan, records),
        seeds=tuple(sorted({row.seed for row in rows})),
        levels=_levels(rows),
        facts=tuple(_facts(info, plan, records)),
        spec_text=spec_text,
    )


def _section(workload: str, found: Sequence[SchemeSummary], valley_curves: Sequence[ValleyCurve]) -> WorkloadSection:
    part = [s for s in found if s.victim.workload == workload]
    everyone = [d for s in part for d in (*([s.unattacked] if s.unattacked else []), *s.comparisons)]
    by_pair = {(d.attack_label, d.victim): d for d in everyone}
    rank = {attack: i for i, attack in enumerate(dict.fromkeys(d.attack_label.attack for d in everyone))}
    attack_labels = sorted({d.attack_label for d in everyone}, key=lambda a: (rank[a.attack], a.judged))
    matrix = {
        attack_label: tuple(by_pair.get((attack_label, s.victim)) for s in part) for attack_label in attack_labels
    }
    metric = next((row.metric for s in part for row in s.rows if row.metric), "metric")
    return WorkloadSection(
        workload=workload,
        metric=metric,
        summaries=tuple(part),
        matrix=matrix,
        curves=tuple(a for a in attack_labels if a in swept(everyone)),
        families=tuple(family_prices(matrix)),
        trade_offs=tuple(trade_offs(part)),
        overwrite_results=overwrite_results(
            [d for s in part for d in s.comparisons], [row for s in part for row in s.rows]
        ),
        valleys=tuple(valley for valley in valley_curves if valley.victim.workload == workload),
    )


def _counts(plan: Plan, records: Mapping[TaskId, Record]) -> dict[str, int]:
    """Count the tasks of the plan by their outcome in this run."""
    found: Counter[str] = Counter()
    for task in plan:
        record = records.get(task.id)
        if record is None or record.state not in (State.DONE, State.FAILED):
            found["skipped"] += 1
        elif record.state is State.FAILED:
            found["failed"] += 1
        else:
            found["cached" if record.cached else "executed"] += 1
    return {"tasks": len(plan), **{name: found[name] for name in ("executed", "cached", "failed", "skipped")}}


def _levels(rows: Sequence[ResultRow]) -> str:
    """Format the significance levels of the verdicts: "1e-6", and coarser ones for key randomisation."""
    levels = sorted({row.level for row in rows if row.level is not None})
    return " or ".join(power_of_ten(math.log10(level)) for level in levels)


def _facts(info: Mapping[str, Any], plan: Plan, records: Mapping[TaskId, Record]) -> list[tuple[str, str]]:
    """List (name, value) needed to reproduce the numbers: data, code, environments, the journal's fields of the run."""
    out = [("plan", plan.digest)]
    for name in dict.fromkeys(task.workload for task in plan):
        prints = dict.fromkeys(task.data for task in plan if task.workload == name)
        out.append((f"data of {name}", ", ".join(prints)))
    environments: Counter[str] = Counter()
    for record in records.values():
        for key, value in ((record.result or {}).get("environment") or {}).items():
            environments[f"{key} {value}"] += 1
    out.append(("environments", ", ".join(f"{what} ({n} tasks)" for what, n in environments.items())))
    devices = Counter(str(r.result["device"]) for r in records.values() if r.result and r.result.get("device"))
    out.append(("devices", ", ".join(f"{what} ({n} tasks)" for what, n in devices.items())))
    hidden = {"id", "experiment", "description", "spec", "info"}
    for key, value in info.items():
        if key not in hidden and value is not None and not isinstance(value, Mapping | list | tuple):
            out.append((key.replace("_", " "), _utc(value) if key in ("started", "finished") else str(value)))
    return [(name, value) for name, value in out if value]


def _utc(value: object) -> str:
    """Format seconds since the epoch as UTC; return text unchanged."""
    if isinstance(value, int | float):
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(value))
    return str(value)
