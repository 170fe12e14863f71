"""The page: one file, nothing loaded from anywhere, every name escaped."""

import base64
import hashlib
from pathlib import Path
from statistics import fmean

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from wmarena.experiments.report import number_format as words
from wmarena.experiments.report.charts.drawings import (
    nulls_of,
    prices_of,
    stamps_of,
    strengths_of,
    trade_off_of,
    valley_of,
)
from wmarena.experiments.report.charts.strips import control_strip, fidelity_reach, fidelity_strip, seconds_bar
from wmarena.experiments.report.number_format import counted, percent, points, signed, span
from wmarena.experiments.report.page import ReportPage
from wmarena.experiments.report.sections.controls import false_positive_rate
from wmarena.experiments.report.sections.curves import curve_panel
from wmarena.experiments.report.sections.overwriting import OverwriteResult, intruders
from wmarena.experiments.report.sections.removal_cost import worst_of
from wmarena.experiments.report.sections.strengths import plain_strength
from wmarena.experiments.report.sections.survival import AttackComparison
from wmarena.experiments.report.sentences import (
    bracket_text,
    by_seed,
    control_words,
    cost_doubts,
    cost_text,
    cost_words,
    encounter_words,
    flip_words,
    mcnemar_words,
    owner_found,
    rate_words,
    tally,
    tasks_words,
    worst_words,
)
from wmarena.experiments.report.svg import legend_key, tag
from wmarena.experiments.results.calibration import Calibration
from wmarena.experiments.results.rows import required

MOST_LINES = 5000
"""Rows that the page itself shows; the files beside it hold all of them."""

_FOLDER = Path(__file__).parent


def html_page(page: ReportPage) -> str:
    """The whole page as text."""
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    reach = fidelity_reach(page.fidelity)
    longest = max((step.total for step in page.steps), default=0.0)
    arenas = page.arenas
    hits, trials, upper = false_positive_rate(c for s in page.summaries for c in s.controls)
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            page=page,
            style=Markup(
                "".join((_FOLDER.parent / f"{n}.css").read_text(encoding="utf-8") for n in ("page", "drawing"))
            ),
            script=Markup(script),
            script_hash=f"sha256-{digest}",
            curves=[(a, [(x, curve_panel(x, a.duels, a.victims)) for x in a.curves]) for a in arenas if a.curves],
            strengths=[(a, panels) for a in arenas if (panels := strengths_of(a))],
            prices=[(a, panels) for a in arenas if (panels := prices_of(a))],
            trade_off=lambda arena: trade_off_of(arena)[0].drawing,
            encounters=[(a, intruders(a.encounters)) for a in arenas if a.encounters],
            nulls=nulls_of(page),
            stamps=stamps_of(page),
            valley=[(a, panels) for a in arenas if (panels := valley_of(a))],
            farther=any(s.histogram_distance or s.relative_distance for s in page.summaries),
            locked=any(fidelity.unlicensed for fidelity in page.fidelity),
            two_heads=any(assault.original_head for arena in arenas for assault in arena.matrix),
            positives={"hits": hits, "trials": trials, "upper": upper},
            fidelity_strip=lambda f: fidelity_strip(f, reach),
            seconds_bar=lambda step: seconds_bar(step, longest),
            most_lines=MOST_LINES,
        )
    )


def _environment() -> Environment:
    env = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    formats = (
        words.percent,
        words.points,
        words.signed,
        words.span,
        words.seconds,
        words.seconds_span,
        words.mean_percent,
    )
    phrased = (mcnemar_words, by_seed, worst_words, control_words, cost_text, bracket_text, tasks_words)
    costs = (cost_words, cost_doubts, flip_words)
    own = (known, plain, breakable, words.power_of_ten, words.p_value, words.mean_number, words.number)
    env.filters |= {f.__name__: f for f in (*formats, *phrased, *costs, *own)}
    env.globals |= {
        "counted": counted,
        "matrix_cell": matrix_cell,
        "encounter_cell": encounter_cell,
        "rate_cell": rate_cell,
        "worst_of": worst_of,
        "control_strip": control_strip,
        "legend_key": legend_key,
    }
    return env


def known(value: object) -> object:
    """A value, or an empty cell."""
    return "" if value is None else value


def plain(value: float | None) -> str:
    """A strength as people write it."""
    return "" if value is None else plain_strength(value)


def breakable(name: object) -> Markup:
    """A name that may be broken after an underscore where space is short."""
    return Markup("_<wbr>").join(str(name).split("_"))


_STANDING = {
    "worthless": "the mark fell, but only on models that are not worth stealing",
    "undecided": "undecided: nothing to compare the suspect with",
    "unmarked": "the mark was not there before the attack",
}


def matrix_cell(duel: AttackComparison | None) -> Markup:
    """One cell of the survival matrix: margin, range over seeds, seeds survived."""
    if duel is None:
        return tag("td", "–", class_="absent", title="not planned: the attack does not apply to this scheme")
    if duel.standing == "missing":
        return tag("td", "no result", class_="missing", title=f"{counted(duel.unfinished, 'row')} failed or skipped")
    mean = fmean(duel.margins)
    lines = [tag("b", signed(mean))]
    if spread := span(duel.margins):
        lines.append(tag("small", spread))
    lines.append(tag("small", tally(duel)))
    level = f" t{min(4, max(0, int(5 * mean)))}" if duel.standing == "kept" else ""
    return tag("td", *lines, class_=f"{duel.standing}{level}", title=_cell_title(duel))


def _cell_title(duel: AttackComparison) -> str:
    """What the pointer tells: each seed's decisive row, what is missing, what the tint cannot say."""
    notes = [_STANDING[duel.standing]] if duel.standing in _STANDING else []
    for s in duel.seeds:
        dose = f"{duel.assault.strength_name} {plain(s.row.strength)}: " if s.row.strength is not None else ""
        notes.append(
            f"seed {s.seed}: {dose}margin {signed(required(s.row.margin))}, drop {points(s.drop)}, {s.outcome}"
        )
    if duel.unfinished:
        notes.append(f"{counted(duel.unfinished, 'row')} failed or skipped")
    if any(row.caveats for row in duel.rows):
        notes.append("caveats: " + ", ".join(sorted({c for row in duel.rows for c in row.caveats})))
    return "\n".join(notes)


def encounter_cell(found: OverwriteResult | None) -> Markup:
    """One cell of the overwriting matrix: the owner's margin and statistic, then the adversary's own."""
    if found is None:
        return tag("td", "–", class_="absent", title="not planned, or without a result")
    duel, statistics = found.duel, found.statistics
    lines = [
        tag("b", signed(fmean(duel.margins))),
        tag("small", f"statistic {words.number(fmean(statistics), 3)}"),
        tag("small", f"owner found {owner_found(found)}"),
    ]
    if found.claim_margin is not None:
        claimed = f"adversary {signed(found.claim_margin)}, found {found.passed}/{len(found.claims)}"
        lines.append(tag("small", claimed))
    return tag("td", *lines, class_=duel.standing, title=f"{encounter_words(found)}\n{_cell_title(duel)}")


def rate_cell(found: Calibration, level: float) -> Markup:
    """How often a test of ``level`` rejects keys that nobody embedded, against what the null model says."""
    rate = next((r for r in found.rates if r.level == level), None)
    if rate is None:
        return tag("td", words.NONE)
    flag = None if rate.agrees else "flag"
    shown = tag("span", percent(rate.hits / found.n_pairs), class_=flag)
    interval = f"{span([rate.low, rate.high], 1, 100)}{words.THIN}%"
    told = (tag("small", interval), tag("small", f"expected {percent(rate.expected)}"))
    return tag("td", shown, *told, title=rate_words(found, level))
