"""The page: one file, nothing loaded from anywhere, every name escaped."""

import base64
import hashlib
from pathlib import Path
from statistics import fmean

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from experiments.report import words
from experiments.report.charts import control_strip, fidelity_reach, fidelity_strip, seconds_bar
from experiments.report.controls import false_positive_rate
from experiments.report.curves import curve_panel
from experiments.report.page import Page
from experiments.report.phrases import (
    bracket_text,
    by_seed,
    control_words,
    cost_text,
    mcnemar_words,
    tally,
    tasks_words,
    worst_words,
)
from experiments.report.survival import Duel
from experiments.report.svg import legend_key, tag
from experiments.report.words import counted, points, signed, span

MOST_LINES = 5000
"""Rows that the page itself shows; the files beside it hold all of them."""

_FOLDER = Path(__file__).parent


def html_page(page: Page) -> str:
    """The whole page as text."""
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    reach = fidelity_reach(page.fidelity)
    longest = max((step.total for step in page.steps), default=0.0)
    hits, trials, upper = false_positive_rate(c for s in page.summaries for c in s.controls)
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            page=page,
            style=Markup((_FOLDER / "page.css").read_text(encoding="utf-8")),
            script=Markup(script),
            script_hash=f"sha256-{digest}",
            curves=[(a, [(x, curve_panel(x, a.duels, a.victims)) for x in a.curves]) for a in page.arenas if a.curves],
            two_heads=any(assault.original_head for arena in page.arenas for assault in arena.matrix),
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
    own = (known, plain, breakable, words.power_of_ten)
    env.filters |= {f.__name__: f for f in (*formats, *phrased, *own)}
    env.globals |= {
        "counted": counted,
        "matrix_cell": matrix_cell,
        "control_strip": control_strip,
        "legend_key": legend_key,
    }
    return env


def known(value: object) -> object:
    """A value, or an empty cell."""
    return "" if value is None else value


def plain(value: float | None) -> str:
    """A strength as people write it."""
    return "" if value is None else f"{value:g}"


def breakable(name: object) -> Markup:
    """A name that may be broken after an underscore where space is short."""
    return Markup("_<wbr>").join(str(name).split("_"))


_STANDING = {
    "worthless": "the mark fell, but only on models that are not worth stealing",
    "undecided": "undecided: nothing to compare the suspect with",
    "unmarked": "the mark was not there before the attack",
}


def matrix_cell(duel: Duel | None) -> Markup:
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


def _cell_title(duel: Duel) -> str:
    """What the pointer tells: each seed's decisive row, what is missing, what the tint cannot say."""
    notes = [_STANDING[duel.standing]] if duel.standing in _STANDING else []
    for s in duel.seeds:
        dose = f"{duel.assault.strength_name} {plain(s.row['strength'])}: " if s.row["strength"] is not None else ""
        notes.append(f"seed {s.seed}: {dose}margin {signed(s.row['margin'])}, drop {points(s.drop)}, {s.outcome}")
    if duel.unfinished:
        notes.append(f"{counted(duel.unfinished, 'row')} failed or skipped")
    if any(row["caveats"] for row in duel.rows):
        notes.append("caveats: " + ", ".join(sorted({c for row in duel.rows for c in row["caveats"]})))
    return "\n".join(notes)
