"""The report's tables as CSV files, for spreadsheets and scripts: one row per line of the page."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from statistics import fmean
from typing import Any

from wmarena.experiments.report.labels import Victim
from wmarena.experiments.report.page import ReportPage
from wmarena.experiments.report.sections.survival import AttackComparison
from wmarena.experiments.results.costs import AUMC_REACH, Bracket, median_cost
from wmarena.experiments.results.rows import ResultRow
from wmarena.experiments.results.table import table_csv
from wmarena.orchestrator.files.atomic import write_whole

TableLine = dict[str, Any]
"""One line of a table: column -> value."""


def _names(victim: Victim) -> TableLine:
    return {"workload": victim.workload, "scheme": str(victim.scheme)}


def _fields(source: object, columns: str) -> TableLine:
    """Read the columns ``name`` or ``name:attribute.path`` from ``source``."""
    pairs = (column.partition(":") for column in columns.split())
    return {name: attrgetter(path or name)(source) for name, _, path in pairs}


def _attacked(comparison: AttackComparison) -> TableLine:
    return {**_names(comparison.victim), "attack": str(comparison.attack_label)}


def _comparisons(page: ReportPage) -> Iterator[AttackComparison]:
    return (comparison for section in page.sections for comparison in section.comparisons)


def summary_lines(page: ReportPage) -> list[TableLine]:
    """One line per scheme and workload."""
    return [
        {
            **_names(s.victim),
            "seeds": len({row.seed for row in s.rows}),
            "clean_mean": _mean([pair.clean for pair in s.fidelity.pairs]) if s.fidelity else None,
            "marked_mean": _mean([pair.marked for pair in s.fidelity.pairs]) if s.fidelity else None,
            "attacks_judged": len(s.judged),
            "attacks_survived": s.survived,
            "worst_attack": str(s.weakest.attack_label) if s.weakest else None,
            "controls_fired": sum(c.fired for c in s.controls),
            "controls_judged": sum(c.n for c in s.controls),
            "ambiguous": s.victim.ambiguous,
            "seconds_embed_mean": _mean(s.by_seed("seconds_embed")),
        }
        for s in page.summaries
    ]


def survival_lines(page: ReportPage) -> list[TableLine]:
    """One line per cell of the survival matrix, with the attacker's cost."""
    return [
        {
            **_names(comparison.victim),
            "ambiguous": comparison.victim.ambiguous,
            "attack": str(comparison.attack_label),
            "standing": comparison.outcome,
            "seeds": len(comparison.seeds),
            **_fields(comparison, "survived removed"),
            "margin_mean": _mean(comparison.margins),
            "margin_min": min(comparison.margins, default=None),
            "margin_max": max(comparison.margins, default=None),
            "drop_mean": _mean(comparison.drops),
            **_median(comparison.sweep.brackets),
            "rows_unfinished": comparison.unfinished,
        }
        for comparison in _comparisons(page)
    ]


def _median(found: Sequence[Bracket]) -> TableLine:
    cost, censored = median_cost(found) or (None, None)
    return {"relative_cost_median": cost, "cost_censored": censored}


def cost_lines(page: ReportPage) -> list[TableLine]:
    """One line per attack, scheme and seed: bracket, cost, doubts; the attacker ``oracle`` knows the verdict."""
    return [
        {
            **_names(comparison.victim),
            "family": family.family,
            "attack": str(comparison.attack_label),
            "strength_name": comparison.strength_name,
            **_fields(bracket, "seed relative_cost:cost"),
            "censored": bracket.cost is None,
            "largest_drop_kept": bracket.kept,
            **_side("last_kept", bracket.before),
            **_side("first_fallen", bracket.after),
            **_fields(bracket, "beats_scratch non_monotone"),
            "attacker": "oracle",
        }
        for section in page.sections
        for family in section.families
        for line in family.lines.values()
        for comparison in line
        if comparison is not None
        for bracket in comparison.sweep.brackets
    ]


def _side(name: str, row: ResultRow | None) -> TableLine:
    strength, drop = (None, None) if row is None else (row.strength, row.relative_drop)
    return {f"{name}_strength": strength, f"{name}_relative_drop": drop}


def family_lines(page: ReportPage) -> list[TableLine]:
    """One line per family of attacks and scheme: the cheapest of its attacks."""
    return [
        {
            **_names(victim),
            "family": family.family,
            "attacks": sum(map(bool, column)),
            "seeds": len(found),
            **_median(found),
        }
        for section in page.sections
        for family in section.families
        for victim, found, column in zip(
            section.victims, family.cheapest, zip(*family.lines.values(), strict=True), strict=True
        )
        if found
    ]


def aumc_lines(page: ReportPage) -> list[TableLine]:
    """One line per scheme and attack, and one over all attacks: area under margin against relative drop."""
    together = [
        {**_names(trade.victim), "attack": "all", **_areas(trade.aumc)}
        for section in page.sections
        for trade in section.trade_offs
    ]
    single = [
        {**_attacked(comparison), **_areas(comparison.sweep.aumc)}
        for comparison in _comparisons(page)
        if comparison.attack_label.name != "none" and comparison.sweep.aumc
    ]
    return together + single


def _areas(values: Sequence[float]) -> TableLine:
    summary = {"aumc_mean": fmean(values), "aumc_min": min(values), "aumc_max": max(values)}
    return {"seeds": len(values), "reach": AUMC_REACH, **summary}


def curve_lines(page: ReportPage) -> list[TableLine]:
    """One line per suspect of a swept attack: every point of the curves."""
    columns = "strength seed metric_marked metric_suspect relative_drop statistic margin verdict removed"
    return [
        {**_attacked(comparison), "strength_name": comparison.strength_name, **_fields(row, columns)}
        for section in page.sections
        for comparison in section.comparisons
        if comparison.attack_label in section.curves
        for row in comparison.done
    ]


def overwriting_lines(page: ReportPage) -> list[TableLine]:
    """One line per cell of the overwriting matrix."""
    return [
        {
            **_names(victim),
            "overwriter": name,
            "attack": str(found.comparison.attack_label),
            "seeds": len(found.comparison.seeds),
            "owner_found": sum(bool(s.row.verdict) for s in found.comparison.seeds),
            "owner_margin_mean": fmean(found.comparison.margins),
            "owner_statistic_mean": fmean(found.statistics),
            "claims": len(found.claims),
            **_fields(found, "claims_found:passed claim_margin_mean:claim_margin"),
        }
        for section in page.sections
        for victim, line in section.overwrite_results.items()
        for name, found in line.items()
    ]


def fidelity_lines(page: ReportPage) -> list[TableLine]:
    """One line per marked model, with the distance between marked and clean weights."""
    columns = "seed clean marked difference only_clean only_marked agreement mcnemar_p:p_value unlicensed"
    moves = ("covertness_mean_abs_dev", "covertness_ks", "covertness_relative_l2")
    rows = {(s.victim, row.seed): row for s in page.summaries for row in s.rows}
    return [
        {
            **_names(f.victim),
            **_fields(pair, columns),
            **{name: getattr(rows.get((f.victim, pair.seed)), name, None) for name in moves},
        }
        for f in page.fidelity
        for pair in f.pairs
    ]


def control_lines(page: ReportPage) -> list[TableLine]:
    """One line per kind of control and scheme."""
    return [
        {
            **_names(s.victim),
            **_fields(c, "control judged:n fired"),
            "statistic_mean": _mean(c.statistics),
            "statistic_min": min(c.statistics, default=None),
            "statistic_max": max(c.statistics, default=None),
            "band_low": c.band[0] if c.band else None,
            "band_high": c.band[1] if c.band else None,
        }
        for s in page.summaries
        for c in s.controls
    ]


def null_lines(page: ReportPage) -> list[TableLine]:
    """One line per calibrated scheme and level."""
    moments = "mean mean_expected:expected_mean sd sd_expected:expected_sd largest ks_p false_positives"
    bounds = "fpr_low_95:fpr_low fpr_high_95:fpr_high threshold gauss_threshold mismatch"
    return [
        {
            **_names(check.victim),
            **_fields(check.found, "p_method models:n_models pairs:n_pairs"),
            **_fields(rate, "level hits rate_low_99:low rate_high_99:high rate_expected:expected agrees"),
            **_fields(check.found, f"{moments} {bounds}"),
        }
        for check in page.null_checks
        for rate in check.found.rates
    ]


def stamp_lines(page: ReportPage) -> list[TableLine]:
    """One line per rank of a map; the order of the serial numbers would reveal the secret."""
    return [
        {**_names(found.victim), **_fields(found, "seed share_unlocking:share"), "rank": rank, "accuracy": accuracy}
        for found in page.stamps
        for rank, accuracy in enumerate(found.accuracies, start=1)
    ]


def emblem_lines(page: ReportPage) -> list[TableLine]:
    """One line per decoded emblem."""
    return [
        {
            **_names(image.victim),
            "attack": str(image.attack_label),
            **_fields(image.row, "strength seed r:statistic found:verdict"),
        }
        for line in page.decoded_images
        for image in line
    ]


def valley_lines(page: ReportPage) -> list[TableLine]:
    """One line per logged point."""
    return [
        {**_names(valley.victim), "seed": valley.seed, "step": step, "steepness": steepness}
        for section in page.sections
        for valley in section.valleys
        for step, steepness in valley.points
    ]


def forgery_lines(page: ReportPage) -> list[TableLine]:
    """One line per claim."""
    evidence = "statistic:row.statistic threshold:row.threshold log10_p:row.log10_p log10_p_adj:row.log10_p_adj"
    columns = f"strength:row.strength seed:row.seed keys_tried:tried {evidence} passes owner_found:owner_stands"
    return [{**_names(f.victim), "attack": str(f.attack_label), **_fields(f, columns)} for f in page.forgeries]


def seconds_lines(page: ReportPage) -> list[TableLine]:
    """One line per step."""
    columns = "cached seconds_mean:mean seconds_total:total devices"
    return [
        {**_fields(step, "workload kind:kind.value what"), "tasks": len(step.seconds), **_fields(step, columns)}
        for step in page.steps
    ]


def failure_lines(page: ReportPage) -> list[TableLine]:
    """One line per failed task."""
    columns = "task:task.label task_id:task.id cause:record.error attempts:record.attempt rows_lost:rows"
    return [_fields(failed, columns) for failed in page.failed_tasks]


def gap_lines(page: ReportPage) -> list[TableLine]:
    """One line per reason for which rows were skipped."""
    return [{"reason": reason, "rows": n} for reason, n in page.skipped_rows.items()]


def caveat_lines(page: ReportPage) -> list[TableLine]:
    """One line per caveat."""
    return [{"caveat": name, "rows": n, "meaning": meaning} for name, n, meaning in page.caveats]


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


TABLES: Mapping[str, Callable[[ReportPage], list[TableLine]]] = {
    "summary": summary_lines,
    "survival": survival_lines,
    "costs": cost_lines,
    "families": family_lines,
    "aumc": aumc_lines,
    "curves": curve_lines,
    "overwriting": overwriting_lines,
    "fidelity": fidelity_lines,
    "controls": control_lines,
    "false_positives": null_lines,
    "stamps": stamp_lines,
    "emblems": emblem_lines,
    "valley": valley_lines,
    "forgeries": forgery_lines,
    "seconds": seconds_lines,
    "failures": failure_lines,
    "gaps": gap_lines,
    "caveats": caveat_lines,
}


def write_tables(page: ReportPage, folder: Path) -> None:
    """Write one ``.csv`` file per table and per set of curves of the page; leave out empty ones."""
    for name, build in TABLES.items():
        if lines := build(page):
            write_whole(folder / f"{name}.csv", table_csv(list(lines[0]), lines).encode())
