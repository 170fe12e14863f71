"""The report's tables as CSV files, for spreadsheets and scripts: one row per line of the page."""

from collections.abc import Callable, Mapping, Sequence
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


def _fields(source: object, *names: str) -> TableLine:
    return {name: getattr(source, name) for name in names}


def cost_lines(page: ReportPage) -> list[TableLine]:
    """One line per attack, scheme and seed: bracket, cost, doubts; the attacker ``oracle`` knows the verdict."""
    return [
        {
            **_names(comparison.victim),
            "family": family.family,
            "attack": str(comparison.attack_label),
            "strength_name": comparison.strength_name,
            "seed": bracket.seed,
            "relative_cost": bracket.cost,
            "censored": bracket.cost is None,
            "largest_drop_kept": bracket.kept,
            **_side("last_kept", bracket.before),
            **_side("first_fallen", bracket.after),
            "beats_scratch": bracket.beats_scratch,
            "non_monotone": bracket.non_monotone,
            "attacker": "oracle",
        }
        for section in page.sections
        for family in section.families
        for line in family.lines.values()
        for comparison in line
        if comparison is not None
        for bracket in comparison.brackets
    ]


def _side(name: str, row: ResultRow | None) -> TableLine:
    return {
        f"{name}_strength": None if row is None else row.strength,
        f"{name}_relative_drop": None if row is None else row.relative_drop,
    }


def family_lines(page: ReportPage) -> list[TableLine]:
    """One line per family of attacks and scheme: the cheapest of its attacks."""
    return [
        {**_names(victim), "family": family.family, "attacks": sum(map(bool, column)), **_median(list(found))}
        for section in page.sections
        for family in section.families
        for victim, found, column in zip(
            section.victims, family.cheapest, zip(*family.lines.values(), strict=True), strict=True
        )
        if found
    ]


def _median(found: list[Bracket]) -> TableLine:
    cost = median_cost(found)
    return {
        "seeds": len(found),
        "relative_cost_median": cost[0] if cost else None,
        "cost_censored": cost[1] if cost else None,
    }


def aumc_lines(page: ReportPage) -> list[TableLine]:
    """One line per scheme and attack, and one over all attacks: area under margin against relative drop."""
    together = [
        {**_names(trade.victim), "attack": "all", **_areas(list(trade.aumc))}
        for section in page.sections
        for trade in section.trade_offs
    ]
    single = [
        {**_names(comparison.victim), "attack": str(comparison.attack_label), **_areas(comparison.sweep.aumc)}
        for section in page.sections
        for comparison in section.comparisons
        if comparison.attack_label.name != "none" and comparison.sweep.aumc
    ]
    return together + single


def _areas(values: list[float]) -> TableLine:
    return {
        "seeds": len(values),
        "reach": AUMC_REACH,
        "aumc_mean": fmean(values),
        "aumc_min": min(values),
        "aumc_max": max(values),
    }


def curve_lines(page: ReportPage) -> list[TableLine]:
    """One line per suspect of a swept attack: every point of the curves."""
    return [
        {
            **_names(comparison.victim),
            "attack": str(comparison.attack_label),
            "strength_name": comparison.strength_name,
            **_fields(
                row,
                "strength",
                "seed",
                "metric_marked",
                "metric_suspect",
                "relative_drop",
                "statistic",
                "margin",
                "verdict",
                "removed",
            ),
        }
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
            "claims_found": found.passed,
            "claim_margin_mean": found.claim_margin,
        }
        for section in page.sections
        for victim, line in section.overwrite_results.items()
        for name, found in line.items()
    ]


def null_lines(page: ReportPage) -> list[TableLine]:
    """One line per calibrated scheme and level."""
    return [
        {
            **_names(check.victim),
            "p_method": check.found.p_method,
            "models": check.found.n_models,
            "pairs": check.found.n_pairs,
            "level": rate.level,
            "hits": rate.hits,
            "rate_low_99": rate.low,
            "rate_high_99": rate.high,
            "rate_expected": rate.expected,
            "agrees": rate.agrees,
            "mean": check.found.mean,
            "mean_expected": check.found.expected_mean,
            "sd": check.found.sd,
            "sd_expected": check.found.expected_sd,
            **_fields(check.found, "largest", "ks_p", "false_positives"),
            "fpr_low_95": check.found.fpr_low,
            "fpr_high_95": check.found.fpr_high,
            **_fields(check.found, "threshold", "gauss_threshold", "mismatch"),
        }
        for check in page.null_checks
        for rate in check.found.rates
    ]


def stamp_lines(page: ReportPage) -> list[TableLine]:
    """One line per rank of a map; the order of the serial numbers would reveal the secret."""
    return [
        {**_names(found.victim), "seed": found.seed, "share_unlocking": found.share, "rank": rank, "accuracy": accuracy}
        for found in page.stamps
        for rank, accuracy in enumerate(found.accuracies, start=1)
    ]


def emblem_lines(page: ReportPage) -> list[TableLine]:
    """One line per decoded emblem."""
    return [
        {
            **_names(image.victim),
            "attack": str(image.attack_label),
            "strength": image.strength,
            "seed": image.seed,
            "r": image.statistic,
            "found": image.found,
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
    return [
        {
            **_names(f.victim),
            "attack": str(f.attack_label),
            "strength": f.row.strength,
            "seed": f.row.seed,
            "keys_tried": f.tried,
            **_fields(f.row, "statistic", "threshold", "log10_p", "log10_p_adj"),
            "passes": f.passes,
            "owner_found": f.owner_stands,
        }
        for f in page.forgeries
    ]


def failure_lines(page: ReportPage) -> list[TableLine]:
    """One line per failed task."""
    return [
        {
            "task": loss.task.label,
            "task_id": loss.task.id,
            "cause": loss.record.error,
            "attempts": loss.record.attempt,
            "rows_lost": loss.rows,
        }
        for loss in page.failed_tasks
    ]


def gap_lines(page: ReportPage) -> list[TableLine]:
    """One line per reason for which rows were skipped."""
    return [{"reason": skip.reason, "rows": skip.rows} for skip in page.skipped_rows]


def caveat_lines(page: ReportPage) -> list[TableLine]:
    """One line per caveat."""
    return [{"caveat": name, "rows": n, "meaning": tooltip} for name, n, tooltip in page.caveats]


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
    return [_survival_line(comparison) for section in page.sections for comparison in section.comparisons]


def _survival_line(comparison: AttackComparison) -> TableLine:
    margins, drops, cost = comparison.margins, comparison.drops, median_cost(comparison.brackets)
    return {
        **_names(comparison.victim),
        "ambiguous": comparison.victim.ambiguous,
        "attack": str(comparison.attack_label),
        "standing": comparison.outcome,
        "seeds": len(comparison.seeds),
        "survived": comparison.survived,
        "removed": comparison.removed,
        "margin_mean": _mean(margins),
        "margin_min": min(margins, default=None),
        "margin_max": max(margins, default=None),
        "drop_mean": _mean(drops),
        "relative_cost_median": cost[0] if cost else None,
        "cost_censored": cost[1] if cost else None,
        "rows_unfinished": comparison.unfinished,
    }


def fidelity_lines(page: ReportPage) -> list[TableLine]:
    """One line per marked model."""
    return [
        {
            **_names(f.victim),
            **_fields(pair, "seed", "clean", "marked", "difference", "only_clean", "only_marked", "agreement"),
            "mcnemar_p": pair.p_value,
            "unlicensed": pair.unlicensed,
            **{name: found.get(pair.seed) for name, found in _moves(page, f.victim).items()},
        }
        for f in page.fidelity
        for pair in f.pairs
    ]


def _moves(page: ReportPage, victim: Victim) -> dict[str, dict[int, float | None]]:
    """Map column -> seed -> distance between marked and clean weights."""
    rows = [row for s in page.summaries if s.victim == victim for row in s.rows]
    return {
        "covertness_mean_abs_dev": {row.seed: row.covertness_mean_abs_dev for row in rows},
        "covertness_ks": {row.seed: row.covertness_ks for row in rows},
        "covertness_relative_l2": {row.seed: row.covertness_relative_l2 for row in rows},
    }


def control_lines(page: ReportPage) -> list[TableLine]:
    """One line per kind of control and scheme."""
    return [
        {
            **_names(s.victim),
            "control": c.control,
            "judged": c.n,
            "fired": c.fired,
            "statistic_mean": _mean(c.statistics),
            "statistic_min": min(c.statistics, default=None),
            "statistic_max": max(c.statistics, default=None),
            "band_low": c.band[0] if c.band else None,
            "band_high": c.band[1] if c.band else None,
        }
        for s in page.summaries
        for c in s.controls
    ]


def seconds_lines(page: ReportPage) -> list[TableLine]:
    """One line per step."""
    return [
        {
            "workload": step.workload,
            "kind": step.kind.value,
            "what": step.what,
            "tasks": len(step.seconds),
            "cached": step.cached,
            "seconds_mean": step.mean,
            "seconds_total": step.total,
            "devices": step.devices,
        }
        for step in page.steps
    ]


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
