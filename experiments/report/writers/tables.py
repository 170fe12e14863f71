"""The report's tables as numbers, for spreadsheets and scripts: one row per line of the page."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from wmarena.experiments.report.labels import Victim
from wmarena.experiments.report.page import ReportPage
from wmarena.experiments.report.sections.survival import AttackComparison
from wmarena.experiments.report.writers.attack_tables import (
    TableLine,
    aumc_lines,
    caveat_lines,
    cost_lines,
    curve_lines,
    emblem_lines,
    failure_lines,
    family_lines,
    forgery_lines,
    gap_lines,
    null_lines,
    overwriting_lines,
    stamp_lines,
    valley_lines,
)
from wmarena.experiments.results.costs import median_cost
from wmarena.experiments.results.table import table_csv
from wmarena.orchestrator.files.atomic import write_whole


def write_tables(page: ReportPage, folder: Path) -> None:
    """One ``.csv`` file per table and per set of curves of the page; empty ones are left out."""
    for name, lines in (
        ("summary", summary_lines(page)),
        ("survival", survival_lines(page)),
        ("costs", cost_lines(page)),
        ("families", family_lines(page)),
        ("aumc", aumc_lines(page)),
        ("curves", curve_lines(page)),
        ("overwriting", overwriting_lines(page)),
        ("fidelity", fidelity_lines(page)),
        ("controls", control_lines(page)),
        ("false_positives", null_lines(page)),
        ("stamps", stamp_lines(page)),
        ("emblems", emblem_lines(page)),
        ("valley", valley_lines(page)),
        ("forgeries", forgery_lines(page)),
        ("seconds", seconds_lines(page)),
        ("failures", failure_lines(page)),
        ("gaps", gap_lines(page)),
        ("caveats", caveat_lines(page)),
    ):
        if lines:
            write_whole(folder / f"{name}.csv", table_csv(list(lines[0]), lines).encode())


def summary_lines(page: ReportPage) -> list[TableLine]:
    """One line per scheme and workload."""
    return [
        {
            "workload": s.victim.workload,
            "scheme": str(s.victim.scheme),
            "seeds": len({row.seed for row in s.rows}),
            "clean_mean": _mean([pair.clean for pair in s.fidelity.pairs]) if s.fidelity else None,
            "marked_mean": _mean([pair.marked for pair in s.fidelity.pairs]) if s.fidelity else None,
            "attacks_judged": len(s.judged),
            "attacks_survived": s.survived,
            "worst_attack": str(s.weakest.assault) if s.weakest else None,
            "controls_fired": sum(c.fired for c in s.controls),
            "controls_judged": sum(c.n for c in s.controls),
            "ambiguous": s.victim.ambiguous,
            "seconds_embed_mean": _mean(s.seconds_embed),
        }
        for s in page.summaries
    ]


def survival_lines(page: ReportPage) -> list[TableLine]:
    """One line per cell of the survival matrix, with the attacker's cost."""
    return [_duel_line(duel) for arena in page.arenas for duel in arena.duels]


def _duel_line(duel: AttackComparison) -> TableLine:
    margins, drops, cost = duel.margins, duel.drops, median_cost(duel.brackets)
    return {
        "workload": duel.victim.workload,
        "scheme": str(duel.victim.scheme),
        "ambiguous": duel.victim.ambiguous,
        "attack": str(duel.assault),
        "standing": duel.standing,
        "seeds": len(duel.seeds),
        "survived": duel.survived,
        "removed": duel.removed,
        "margin_mean": _mean(margins),
        "margin_min": min(margins, default=None),
        "margin_max": max(margins, default=None),
        "drop_mean": _mean(drops),
        "relative_cost_median": cost[0] if cost else None,
        "cost_censored": cost[1] if cost else None,
        "rows_unfinished": duel.unfinished,
    }


def fidelity_lines(page: ReportPage) -> list[TableLine]:
    """One line per marked model."""
    return [
        {
            "workload": f.victim.workload,
            "scheme": str(f.victim.scheme),
            "seed": pair.seed,
            "clean": pair.clean,
            "marked": pair.marked,
            "difference": pair.difference,
            "only_clean": pair.only_clean,
            "only_marked": pair.only_marked,
            "agreement": pair.agreement,
            "mcnemar_p": pair.p_value,
            "unlicensed": pair.unlicensed,
            **{name: found.get(pair.seed) for name, found in _moves(page, f.victim).items()},
        }
        for f in page.fidelity
        for pair in f.pairs
    ]


def _moves(page: ReportPage, victim: Victim) -> dict[str, dict[int, float | None]]:
    """How far each embedding moved the weights: column -> seed -> value."""
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
            "workload": s.victim.workload,
            "scheme": str(s.victim.scheme),
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
