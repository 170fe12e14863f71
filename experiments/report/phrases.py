"""Short phrases about summaries and duels that the page, the Markdown page and the terminal share."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from experiments.report.controls import Control
from experiments.report.fidelity import Fidelity
from experiments.report.overview import Summary
from experiments.report.survival import Bracket, Duel, median_cost
from experiments.report.words import (
    ELLIPSIS,
    NONE,
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


def worst_words(duel: Duel | None) -> str:
    """What the worst attack did: ``removed on 3 of 3 seeds for 0.3 pp``, ``margin +0.50 for 1.1 pp``."""
    if duel is None:
        return NONE
    cost = f" for {price(fmean(duel.drops))}" if duel.drops else ""
    if not duel.removed:
        return f"margin {signed(fmean(duel.margins))}{cost}"
    return f"removed on {duel.removed} of {counted(len(duel.seeds), 'seed')}{cost}"


def control_words(found: Sequence[Control]) -> str:
    """``9 of 9 silent``."""
    judged, planned = sum(c.n for c in found), sum(len(c.rows) for c in found)
    return f"{judged - sum(c.fired for c in found)} of {planned} silent" if planned else "none"


def mcnemar_words(fidelity: Fidelity) -> str:
    """``p 0.2…0.8``: McNemar's p over seeds; '' without stored predictions."""
    found = sorted(pair.p_value for pair in fidelity.pairs if pair.p_value is not None)
    if not found:
        return ""
    return f"p {p_value(found[0])}" + (f"{ELLIPSIS}{p_value(found[-1])}" if len(found) > 1 else "")


def by_seed(fidelity: Fidelity, what: str) -> str:
    """One number per seed, in order: ``p_value``, or ``discordant`` counts as ``105:101``."""
    if what == "p_value":
        return ", ".join(p_value(pair.p_value) for pair in fidelity.pairs)
    counts = [(pair.only_clean, pair.only_marked) for pair in fidelity.pairs]
    return ", ".join(NONE if a is None else f"{a}:{b}" for a, b in counts)


def tally(duel: Duel) -> str:
    """``survived 2/3``: seeds on which the mark is still there, of those judged."""
    if duel.standing in ("undecided", "unmarked"):
        return {"undecided": "undecided", "unmarked": "no mark"}[duel.standing]
    word = "found" if duel.assault.attack.name == "none" else "survived"
    return f"{word} {duel.survived}/{len(duel.seeds)}"


def cost_text(duel: Duel | None) -> str:
    """The attacker's cost: a relative drop, ``> x`` where the verdict never fell, a dash where nothing was judged."""
    found = median_cost(duel.brackets) if duel is not None else None
    return NONE if found is None else f"{'> ' if found[1] else ''}{percent(found[0])}"


def bracket_text(duel: Duel | None) -> str:
    """The drops on both sides of the flip, seed by seed."""
    return "; ".join(_bracket(b) for b in duel.brackets) if duel is not None else ""


def _bracket(bracket: Bracket) -> str:
    low = "never stood" if bracket.kept is None else f"stood at {number(100 * bracket.kept)} %"
    high = "never fell" if bracket.cost is None else f"fell at {number(100 * bracket.cost)} %"
    return f"seed {bracket.seed}: {low}, {high}"


def tasks_words(counts: Mapping[str, int]) -> str:
    """``134 tasks: 130 computed, 4 failed``."""
    words = {"executed": "computed", "cached": "found finished", "failed": "failed", "skipped": "skipped"}
    parts = [f"{counts[key]} {word}" for key, word in words.items() if counts[key]]
    return f"{counted(counts['tasks'], 'task')}{': ' if parts else ''}{', '.join(parts)}"


SUMMARY_HEAD = (
    *("Scheme", "Clean", "Marked", "Paired difference", "Attacks survived"),
    *("Worst attack", "Controls", "Embedding"),
)


def summary_cells(summary: Summary) -> tuple[str, ...]:
    """One line of the summary table, in the order of ``SUMMARY_HEAD``."""
    fidelity = summary.fidelity
    pairs = fidelity.pairs if fidelity else ()
    difference = f"{points(fidelity.mean_difference)} {_bracketed(mcnemar_words(fidelity))}" if fidelity else NONE
    worst = summary.weakest
    embed = summary.seconds_embed
    return (
        str(summary.victim),
        _with_range([pair.clean for pair in pairs]),
        _with_range([pair.marked for pair in pairs]),
        difference.strip(),
        f"{summary.survived} of {len(summary.judged)}",
        f"{worst.assault}: {worst_words(worst)}" if worst else NONE,
        control_words(summary.controls),
        seconds(fmean(embed)) if embed else NONE,
    )


def _with_range(rates: Sequence[float]) -> str:
    return f"{mean_percent(rates)} {_bracketed(span(rates, 1, 100))}".strip()


def _bracketed(text: str) -> str:
    return f"({text})" if text else ""
