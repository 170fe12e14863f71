"""SVG files of the page's drawings: panels with captions, legend and the colours of light mode."""

import re
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from wmarena.experiments.report.svg import Panel, marker, tag

_STYLES = Path(__file__).parents[1]
_PAD, _CAPTION, _TITLE, _LEGEND = 14.0, 20.0, 26.0, 20.0
_LETTER = 5.9
"""Approximate width of a letter of the legend, in pixels."""


def sheet(title: str, panels: Sequence[Panel], legend: Sequence[str] = ()) -> str:
    """Build an SVG file: ``panels`` in up to three columns under ``title``; ``legend`` names the series in order."""
    columns = min(3, len(panels)) if panels[0].width < 500 else 1
    wide = max(panel.width for panel in panels) + _PAD
    width = columns * wide + _PAD
    parts = [
        tag("rect", x=0, y=0, width="100%", height="100%", fill="#ffffff"),
        tag("text", title, x=_PAD, y=20, class_="title"),
    ]
    keys, top = _legend(legend, width)
    parts += keys
    for start in range(0, len(panels), columns):
        line = panels[start : start + columns]
        for i, panel in enumerate(line):
            parts += _placed(panel, _PAD + i * wide, top, alone=len(panels) == 1)
        top += max(panel.height for panel in line) + _CAPTION + _PAD
    style = tag("style", Markup(_style()))
    box = f"0 0 {width:g} {top:g}"
    namespace = "http://www.w3.org/2000/svg"
    return str(tag("svg", style, *parts, xmlns=namespace, viewBox=box, width=width, height=top)) + "\n"


def _placed(panel: Panel, x: float, y: float, *, alone: bool) -> list[Markup]:
    caption = panel.note if alone else ", ".join(part for part in (panel.caption, panel.note) if part)
    nested = Markup(str(panel.drawing).replace("<svg ", f'<svg x="{x:g}" y="{y + _CAPTION:g}" ', 1))
    sized = Markup(str(nested).replace("<svg ", f'<svg width="{panel.width:g}" height="{panel.height:g}" ', 1))
    return [tag("text", caption, x=x, y=y + 12, class_="name"), sized]


def _legend(names: Sequence[str], width: float) -> tuple[list[Markup], float]:
    """Place the keys from left to right; return them and the top of the panels."""
    parts: list[Markup] = []
    x, y = _PAD, _TITLE + 8
    for i, name in enumerate(names):
        room = 30 + _LETTER * len(name)
        if x > _PAD and x + room > width - _PAD:
            x, y = _PAD, y + _LEGEND
        parts.append(marker(i, x + 5, y + 3, 3.4))
        parts.append(tag("text", name, x=x + 14, y=y + 7, class_="name"))
        x += room
    return parts, y + _LEGEND if names else _TITLE + 4


def _style() -> str:
    """Fill light-mode colours into the CSS of drawings: not every program supports CSS variables."""
    page = (_STYLES / "page.css").read_text(encoding="utf-8")
    light = page.partition("@media")[0]
    values = dict(re.findall(r"(--[\w-]+): ([^;]+);", light))
    rules = (_STYLES / "drawing.css").read_text(encoding="utf-8")
    rules = re.sub(r"var\((--[\w-]+)\)", lambda m: values[m.group(1)], rules)
    rules = re.sub(r"rgb\((\d+) (\d+) (\d+) / ([\d.]+)\)", r"rgba(\1,\2,\3,\4)", rules)
    ink = values["--ink"]
    rules += "svg text { font-family: Helvetica, Arial, sans-serif; }\n"
    return rules + f"svg .title {{ fill: {ink}; font-size: 14px; font-weight: 600; }}\n"
