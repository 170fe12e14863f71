"""Tables of attacks, marks and gaps as numbers: what each figure draws, what each cost is made of."""

from statistics import fmean
from typing import Any

from wmarena.experiments.report.labels import Victim
from wmarena.experiments.report.page import ReportPage
from wmarena.experiments.results.costs import AUMC_REACH, Bracket, median_cost
from wmarena.experiments.results.rows import ResultRow

TableLine = dict[str, Any]
"""One line of a table: column -> value."""


def _names(victim: Victim) -> TableLine:
    return {"workload": victim.workload, "scheme": str(victim.scheme)}


def cost_lines(page: ReportPage) -> list[TableLine]:
    """One line per attack, scheme and seed: the bracket, the cost, what weakens it. ``oracle`` knows the verdict."""
    return [
        {
            **_names(duel.victim),
            "family": family.family,
            "attack": str(duel.assault),
            "strength_name": duel.assault.strength_name,
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
        for arena in page.arenas
        for family in arena.families
        for line in family.lines.values()
        for duel in line
        if duel is not None
        for bracket in duel.brackets
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
        for arena in page.arenas
        for family in arena.families
        for victim, found, column in zip(
            arena.victims, family.cheapest, zip(*family.lines.values(), strict=True), strict=True
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
        for arena in page.arenas
        for trade in arena.trade_offs
    ]
    single = [
        {**_names(duel.victim), "attack": str(duel.assault), **_areas(duel.contest.aumc)}
        for arena in page.arenas
        for duel in arena.duels
        if duel.assault.attack.name != "none" and duel.contest.aumc
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
            **_names(duel.victim),
            "attack": str(duel.assault),
            "strength_name": duel.assault.strength_name,
            "strength": row.strength,
            "seed": row.seed,
            "metric_marked": row.metric_marked,
            "metric_suspect": row.metric_suspect,
            "relative_drop": row.relative_drop,
            "statistic": row.statistic,
            "margin": row.margin,
            "verdict": row.verdict,
            "removed": row.removed,
        }
        for arena in page.arenas
        for duel in arena.duels
        if duel.assault in arena.curves
        for row in duel.done
    ]


def overwriting_lines(page: ReportPage) -> list[TableLine]:
    """One line per cell of the overwriting matrix."""
    return [
        {
            **_names(victim),
            "overwriter": name,
            "attack": str(found.duel.assault),
            "seeds": len(found.duel.seeds),
            "owner_found": sum(bool(s.row.verdict) for s in found.duel.seeds),
            "owner_margin_mean": fmean(found.duel.margins),
            "owner_statistic_mean": fmean(found.statistics),
            "claims": len(found.claims),
            "claims_found": found.passed,
            "claim_margin_mean": found.claim_margin,
        }
        for arena in page.arenas
        for victim, line in arena.encounters.items()
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
            "largest": check.found.largest,
            "ks_p": check.found.ks_p,
            "false_positives": check.found.false_positives,
            "fpr_low_95": check.found.fpr_low,
            "fpr_high_95": check.found.fpr_high,
            "threshold": check.found.threshold,
            "gauss_threshold": check.found.gauss_threshold,
            "mismatch": check.found.mismatch,
        }
        for check in page.null_checks
        for rate in check.found.rates
    ]


def stamp_lines(page: ReportPage) -> list[TableLine]:
    """One line per rank of a map: never in the order of the numbers themselves."""
    return [
        {**_names(found.victim), "seed": found.seed, "share_unlocking": found.share, "rank": rank, "accuracy": accuracy}
        for found in page.stamps
        for rank, accuracy in enumerate(found.accuracies, start=1)
    ]


def emblem_lines(page: ReportPage) -> list[TableLine]:
    """One line per decoded emblem."""
    return [
        {
            **_names(reading.victim),
            "attack": str(reading.assault),
            "strength": reading.strength,
            "seed": reading.seed,
            "r": reading.statistic,
            "found": reading.found,
        }
        for line in page.spelled
        for reading in line
    ]


def valley_lines(page: ReportPage) -> list[TableLine]:
    """One line per logged point."""
    return [
        {**_names(valley.victim), "seed": valley.seed, "step": step, "steepness": steepness}
        for arena in page.arenas
        for valley in arena.valleys
        for step, steepness in valley.points
    ]


def forgery_lines(page: ReportPage) -> list[TableLine]:
    """One line per claim."""
    return [
        {
            **_names(f.victim),
            "attack": str(f.assault),
            "strength": f.row.strength,
            "seed": f.row.seed,
            "keys_tried": f.tried,
            "statistic": f.row.statistic,
            "threshold": f.row.threshold,
            "log10_p": f.row.log10_p,
            "log10_p_adj": f.row.log10_p_adj,
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
        for loss in page.losses
    ]


def gap_lines(page: ReportPage) -> list[TableLine]:
    """One line per reason for which rows were skipped."""
    return [{"reason": skip.reason, "rows": skip.rows} for skip in page.skips]


def caveat_lines(page: ReportPage) -> list[TableLine]:
    """One line per doubt."""
    return [{"caveat": name, "rows": n, "meaning": told} for name, n, told in page.caveats]
