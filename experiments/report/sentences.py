"""Phrases about summaries and comparisons, shared by HTML, Markdown and terminal."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from wmarena.experiments.report.number_format import (
    ELLIPSIS,
    NONE,
    THIN,
    counted,
    mean_percent,
    number,
    p_value,
    percent,
    points,
    price,
    seconds,
    signed,
    span,
)
from wmarena.experiments.report.sections.controls import ControlSummary
from wmarena.experiments.report.sections.fidelity import Fidelity
from wmarena.experiments.report.sections.overview import SchemeSummary
from wmarena.experiments.report.sections.overwriting import OverwriteResult
from wmarena.experiments.report.sections.strengths import plain_strength
from wmarena.experiments.report.sections.survival import AttackComparison
from wmarena.experiments.results.calibration import Calibration
from wmarena.experiments.results.costs import Bracket, median_cost
from wmarena.experiments.results.rows import ResultRow


def worst_text(comparison: AttackComparison | None) -> str:
    """Format the worst attack's result: ``removed on 3 of 3 seeds for 0.3 pp``, ``margin +0.50 for 1.1 pp``."""
    if comparison is None:
        return NONE
    cost = f" for {price(fmean(comparison.drops))}" if comparison.drops else ""
    if not comparison.removed:
        return f"margin {signed(fmean(comparison.margins))}{cost}"
    return f"removed on {comparison.removed} of {counted(len(comparison.seeds), 'seed')}{cost}"


def control_text(found: Sequence[ControlSummary]) -> str:
    """Format the controls without a match: ``9 of 9 silent``."""
    judged, planned = sum(c.n for c in found), sum(len(c.rows) for c in found)
    return f"{judged - sum(c.fired for c in found)} of {planned} silent" if planned else "none"


def mcnemar_text(fidelity: Fidelity) -> str:
    """Format McNemar's p over seeds, ``p 0.2…0.8``; '' without stored predictions."""
    found = sorted(pair.p_value for pair in fidelity.pairs if pair.p_value is not None)
    if not found:
        return ""
    return f"p {p_value(found[0])}" + (f"{ELLIPSIS}{p_value(found[-1])}" if len(found) > 1 else "")


def by_seed(fidelity: Fidelity, what: str) -> str:
    """Format one number per seed, in order: ``p_value``, or ``discordant`` counts as ``105:101``."""
    if what == "p_value":
        if all(pair.p_value is None for pair in fidelity.pairs):
            return NONE
        return ", ".join(p_value(pair.p_value) for pair in fidelity.pairs)
    counts = [(pair.only_clean, pair.only_marked) for pair in fidelity.pairs]
    if all(a is None for a, _ in counts):
        return NONE
    return ", ".join(NONE if a is None else f"{a}:{b}" for a, b in counts)


def tally(comparison: AttackComparison) -> str:
    """Format the judged seeds on which the mark remains: ``survived 2/3``."""
    if comparison.outcome in ("undecided", "unmarked"):
        return {"undecided": "undecided", "unmarked": "no mark"}[comparison.outcome]
    word = "found" if comparison.attack_label.name == "none" else "survived"
    return f"{word} {comparison.survived}/{len(comparison.seeds)}"


def cost_text(comparison: AttackComparison | None) -> str:
    """Format the attacker's cost as relative drop; ``> x`` if the verdict never fell, a dash if none was judged."""
    return NONE if comparison is None else median_cost_text(comparison.sweep.brackets)


def median_cost_text(brackets: Sequence[Bracket]) -> str:
    """Format the median over seeds of the attacker's cost."""
    found = median_cost(brackets)
    if found is None:
        return NONE
    drop, censored = found
    # If an attack only improved the model, the largest drop tried is zero.
    return f"> {percent(max(0.0, drop))}" if censored else percent(drop)


def bracket_text(comparison: AttackComparison | None) -> str:
    """Format the strengths on both sides of the flip, per seed."""
    return (
        ""
        if comparison is None
        else "; ".join(_bracket(b, comparison.strength_name) for b in comparison.sweep.brackets)
    )


def _bracket(bracket: Bracket, name: str | None) -> str:
    low = f"stood at {_side(bracket.before, name)}" if bracket.before else "never stood"
    high = f"fell at {_side(bracket.after, name)}" if bracket.after else "never fell"
    doubt = ", stood again at a larger strength" if bracket.non_monotone else ""
    return f"seed {bracket.seed}: {low}, {high}{doubt}"


def _side(row: ResultRow, name: str | None) -> str:
    """Format strength and drop: ``epochs 5 (1.2 %)``."""
    drop = percent(row.relative_drop)
    return drop if row.strength is None else f"{name} {plain_strength(row.strength)} ({drop})"


def flip_text(comparison: AttackComparison) -> str:
    """Format the strengths between which the verdict falls, over seeds: ``epochs 5…10``; '' if none."""
    fallen = [b for b in comparison.sweep.brackets if b.after is not None and b.after.strength is not None]
    lows = [b.before.strength for b in fallen if b.before is not None and b.before.strength is not None]
    highs = [b.after.strength for b in fallen if b.after is not None and b.after.strength is not None]
    if not highs:
        return ""
    direction = comparison.sweep.direction
    first = min(lows, key=lambda s: direction * s) if len(lows) == len(highs) else None
    last = max(highs, key=lambda s: direction * s)
    side = f"{plain_strength(first)}{ELLIPSIS}" if first is not None else "by "
    return f"{comparison.strength_name} {side}{plain_strength(last)}"


def cost_doubts(brackets: Sequence[Bracket]) -> list[str]:
    """List doubts about a cost: a suspect no better than training from scratch, a verdict that returns."""
    poor = sum(b.beats_scratch is False for b in brackets)
    return [
        *([f"no better than scratch {poor}/{len(brackets)}"] if poor else []),
        *(["not monotone"] if any(b.non_monotone for b in brackets) else []),
    ]


def overwrite_text(found: OverwriteResult | None) -> str:
    """Format an overwriting: ``owner +0.50, found 2/3; adversary +0.93, found 3/3``."""
    if found is None:
        return NONE
    comparison = found.comparison
    owner = f"owner {signed(fmean(comparison.margins))}, found {owner_found(found)}"
    if found.claim_margin is None:
        return owner
    return f"{owner}; adversary {signed(found.claim_margin)}, found {found.passed}/{len(found.claims)}"


def owner_found(found: OverwriteResult) -> str:
    """Format the seeds on which the owner's key is found: ``2/3``."""
    seeds = found.comparison.seeds
    return f"{sum(bool(s.row.verdict) for s in seeds)}/{len(seeds)}"


def rate_text(found: Calibration, level: float) -> str:
    """Format the rejections at ``level``: ``14 of 300 (2.2…8.4 %), expected 5.0 %``; a dash if not tested."""
    rate = next((r for r in found.rates if r.level == level), None)
    if rate is None:
        return NONE
    interval = f"{span([rate.low, rate.high], 1, 100)}{THIN}%"
    return f"{rate.hits} of {found.n_pairs} ({interval}), expected {percent(rate.expected)}"


def against(seen: float, expected: float | None) -> str:
    """Format observed and, if known, expected value: ``0.5032 (0.5000)``."""
    return number(seen, 4) + (f" ({number(expected, 4)})" if expected is not None else "")


def tasks_text(counts: Mapping[str, int]) -> str:
    """Format the counts of tasks: ``134 tasks: 130 computed, 4 failed``."""
    words = {"executed": "computed", "cached": "found finished", "failed": "failed", "skipped": "skipped"}
    parts = [f"{counts[key]} {word}" for key, word in words.items() if counts[key]]
    return f"{counted(counts['tasks'], 'task')}{': ' if parts else ''}{', '.join(parts)}"


SUMMARY_HEAD = (
    *("Scheme", "Clean", "Marked", "Paired difference", "Attacks survived"),
    *("Worst attack", "Controls", "Embedding"),
)


def summary_cells(summary: SchemeSummary) -> tuple[str, ...]:
    """Format one line of the summary table, in the order of ``SUMMARY_HEAD``."""
    fidelity = summary.fidelity
    pairs = fidelity.pairs if fidelity else ()
    difference = f"{points(fidelity.mean_difference)} {_bracketed(mcnemar_text(fidelity))}" if fidelity else NONE
    worst = summary.weakest
    embed = summary.by_seed("seconds_embed")
    return (
        str(summary.victim),
        _with_range([pair.clean for pair in pairs]),
        _with_range([pair.marked for pair in pairs]),
        difference.strip(),
        f"{summary.survived} of {len(summary.judged)}",
        f"{worst.attack_label}: {worst_text(worst)}" if worst else NONE,
        control_text(summary.controls),
        seconds(fmean(embed)) if embed else NONE,
    )


def _with_range(rates: Sequence[float]) -> str:
    return f"{mean_percent(rates)} {_bracketed(span(rates, 1, 100))}".strip()


def _bracketed(text: str) -> str:
    return f"({text})" if text else ""
