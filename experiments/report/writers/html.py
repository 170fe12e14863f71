"""HTML report: one self-contained file, all values escaped."""

import base64
import hashlib
from pathlib import Path
from statistics import fmean

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from wmarena.experiments.report import number_format, sentences
from wmarena.experiments.report.charts import drawings
from wmarena.experiments.report.charts.strips import control_strip, fidelity_reach, fidelity_strip, seconds_bar
from wmarena.experiments.report.number_format import counted, percent, points, signed, span
from wmarena.experiments.report.page import ReportPage
from wmarena.experiments.report.sections.controls import false_positive_rate
from wmarena.experiments.report.sections.curves import curve_panel
from wmarena.experiments.report.sections.overwriting import OverwriteResult, intruders
from wmarena.experiments.report.sections.removal_cost import worst_of
from wmarena.experiments.report.sections.strengths import plain_strength
from wmarena.experiments.report.sections.survival import AttackComparison
from wmarena.experiments.report.sentences import overwrite_text, owner_found, rate_text, tally
from wmarena.experiments.report.svg import legend_key, tag
from wmarena.experiments.results.calibration import Calibration
from wmarena.experiments.results.rows import required

MOST_LINES = 5000
"""Rows shown on the page; the files beside it contain all rows."""

_FOLDER = Path(__file__).parent


def html_page(page: ReportPage) -> str:
    """Render the page."""
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    reach = fidelity_reach(page.fidelity)
    longest = max((step.total for step in page.steps), default=0.0)
    sections = page.sections
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
            curves=[
                (a, [(x, curve_panel(x, a.comparisons, a.victims)) for x in a.curves]) for a in sections if a.curves
            ],
            strengths=[(a, panels) for a in sections if (panels := drawings.strengths_of(a))],
            prices=[(a, panels) for a in sections if (panels := drawings.prices_of(a))],
            trade_off=lambda section: drawings.trade_off_of(section)[0].drawing,
            overwrite_results=[(a, intruders(a.overwrite_results)) for a in sections if a.overwrite_results],
            nulls=drawings.nulls_of(page),
            stamps=drawings.stamps_of(page),
            valley=[(a, panels) for a in sections if (panels := drawings.valley_of(a))],
            farther=any(s.by_seed("covertness_ks") or s.by_seed("covertness_relative_l2") for s in page.summaries),
            locked=any(fidelity.unlicensed for fidelity in page.fidelity),
            two_heads=any(attack_label.original_head for section in sections for attack_label in section.matrix),
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
    names = ("percent", "points", "signed", "span", "seconds", "seconds_span", "mean_percent", "mean_number", "number")
    formats = {name: getattr(number_format, name) for name in (*names, "power_of_ten", "p_value")}
    phrase_names = ("mcnemar", "worst", "control", "cost", "bracket", "tasks", "median_cost", "flip")
    phrases = {
        name: getattr(sentences, name) for name in (*(f"{n}_text" for n in phrase_names), "by_seed", "cost_doubts")
    }
    own = {"known": known, "plain": plain, "breakable": breakable}
    env.filters |= formats | phrases | own
    env.globals |= {
        "counted": counted,
        "matrix_cell": matrix_cell,
        "overwrite_cell": overwrite_cell,
        "rate_cell": rate_cell,
        "worst_of": worst_of,
        "control_strip": control_strip,
        "legend_key": legend_key,
    }
    return env


def known(value: object) -> object:
    """Return the value, or '' for None."""
    return "" if value is None else value


def plain(value: float | None) -> str:
    """Format a strength, '' for None."""
    return "" if value is None else plain_strength(value)


def breakable(name: object) -> Markup:
    """Allow line breaks after the underscores of a name."""
    return Markup("_<wbr>").join(str(name).split("_"))


_OUTCOMES = {
    "worthless": "the mark fell, but only on models that are not worth stealing",
    "undecided": "undecided: nothing to compare the suspect with",
    "unmarked": "the mark was not there before the attack",
}


def matrix_cell(comparison: AttackComparison | None) -> Markup:
    """Render one cell of the survival matrix: margin, range over seeds, seeds survived."""
    if comparison is None:
        return tag("td", "–", class_="absent", title="not planned: the attack does not apply to this scheme")
    if comparison.outcome == "missing":
        return tag(
            "td", "no result", class_="missing", title=f"{counted(comparison.unfinished, 'row')} failed or skipped"
        )
    mean = fmean(comparison.margins)
    lines = [tag("b", signed(mean))]
    if spread := span(comparison.margins):
        lines.append(tag("small", spread))
    lines.append(tag("small", tally(comparison)))
    level = f" t{min(4, max(0, int(5 * mean)))}" if comparison.outcome == "kept" else ""
    return tag("td", *lines, class_=f"{comparison.outcome}{level}", title=_cell_title(comparison))


def _cell_title(comparison: AttackComparison) -> str:
    """Build the tooltip: outcome, decisive row of each seed, missing rows, caveats."""
    notes = [_OUTCOMES[comparison.outcome]] if comparison.outcome in _OUTCOMES else []
    for s in comparison.seeds:
        dose = f"{comparison.strength_name} {plain(s.row.strength)}: " if s.row.strength is not None else ""
        notes.append(
            f"seed {s.seed}: {dose}margin {signed(required(s.row.margin))}, drop {points(s.drop)}, {s.outcome}"
        )
    if comparison.unfinished:
        notes.append(f"{counted(comparison.unfinished, 'row')} failed or skipped")
    if any(row.caveats for row in comparison.rows):
        notes.append("caveats: " + ", ".join(sorted({c for row in comparison.rows for c in row.caveats})))
    return "\n".join(notes)


def overwrite_cell(found: OverwriteResult | None) -> Markup:
    """Render one cell of the overwriting matrix: the owner's margin and statistic, then the adversary's margin."""
    if found is None:
        return tag("td", "–", class_="absent", title="not planned, or without a result")
    comparison, statistics = found.comparison, found.statistics
    lines = [
        tag("b", signed(fmean(comparison.margins))),
        tag("small", f"statistic {number_format.number(fmean(statistics), 3)}"),
        tag("small", f"owner found {owner_found(found)}"),
    ]
    if found.claim_margin is not None:
        claimed = f"adversary {signed(found.claim_margin)}, found {found.passed}/{len(found.claims)}"
        lines.append(tag("small", claimed))
    return tag("td", *lines, class_=comparison.outcome, title=f"{overwrite_text(found)}\n{_cell_title(comparison)}")


def rate_cell(found: Calibration, level: float) -> Markup:
    """Render the rate at which a test of ``level`` rejects keys that nobody embedded, and the expected rate."""
    rate = next((r for r in found.rates if r.level == level), None)
    if rate is None:
        return tag("td", number_format.NONE)
    flag = None if rate.agrees else "flag"
    shown = tag("span", percent(rate.hits / found.n_pairs), class_=flag)
    interval = f"{span([rate.low, rate.high], 1, 100)}{number_format.THIN}%"
    tooltip = (tag("small", interval), tag("small", f"expected {percent(rate.expected)}"))
    return tag("td", shown, *tooltip, title=rate_text(found, level))
