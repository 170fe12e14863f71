"""Margin and drop against an attack's strength: learning rates on a logarithmic axis, stronger to the right."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from markupsafe import Markup

from wmarena.experiments.report.labels import AttackLabel, Victim
from wmarena.experiments.report.number_format import MINUS, number, percent, signed, tick
from wmarena.experiments.report.sections.survival import AttackComparison
from wmarena.experiments.report.svg import Panel, Scale, clipped, marker, picture, series_line, tag, y_grid
from wmarena.experiments.results.rows import ResultRow, required

RATES = ("lr", "rate", "learning_rate")
"""Strengths that always have a logarithmic axis, if positive."""

DECADES = 2.0
"""Powers of ten from which other positive strengths have one."""

LOWEST = -1.0
"""Smaller margins are drawn hollow on the edge."""

_WIDTH, _HEIGHT = 340.0, 262.0
_LEFT, _RIGHT, _TOP, _MIDDLE, _LOWER, _BOTTOM = 36.0, 8.0, 20.0, 150.0, 172.0, 34.0


@dataclass(frozen=True)
class StrengthAxis:
    """A linear or logarithmic scale of strengths, stronger to the right."""

    values: tuple[float, ...]
    logarithmic: bool
    direction: int

    @classmethod
    def of(cls, name: str | None, values: Sequence[float], direction: int) -> "StrengthAxis":
        """Choose the axis for these strengths."""
        positive = min(values) > 0
        wide = positive and max(values) > min(values) and math.log10(max(values) / min(values)) >= DECADES
        return cls(tuple(sorted(set(values))), positive and (name in RATES or wide), direction)

    def place(self, strength: float) -> float:
        """Convert the strength to units of the axis."""
        return self.direction * (math.log10(strength) if self.logarithmic else strength)

    def scale(self, start: float, end: float) -> Scale:
        """Map axis units to pixels, with 4 % margin on both sides."""
        ends = [self.place(value) for value in self.values]
        room = 0.04 * (max(ends) - min(ends)) or 0.5
        return Scale(min(ends) - room, max(ends) + room, start, end)


def plain_strength(value: float) -> str:
    """Format a strength: ``0.5``, ``1e−4``."""
    text = f"{value:g}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.0e}".replace("e-0", "e-")
    return text.replace("e+0", "e").replace("-", MINUS)


def strength_panel(attack: AttackLabel, comparisons: Sequence[AttackComparison], order: Sequence[Victim]) -> Panel:
    """Draw margin above, relative drop below: a line per scheme, a point per seed and strength."""
    part = [d for d in comparisons if d.attack_label == attack and any(r.strength is not None for r in d.done)]
    axis = StrengthAxis.of(attack.strength_name, [s for d in part for s in d.strengths], part[0].sweep.direction)
    rows = [row for d in part for row in d.done]
    x = axis.scale(_LEFT, _WIDTH - _RIGHT)
    margin = Scale(max(min([-0.3, *(required(r.margin) for r in rows)]), LOWEST) - 0.06, 1.08, _MIDDLE, _TOP)
    drop = _drop_scale(rows)
    parts = _axes(axis, x, margin, drop)
    for comparison in part:
        index = order.index(comparison.victim)
        for column, y in (("margin", margin), ("relative_drop", drop)):
            parts.append(clipped(x, y, [_line(comparison, column, axis, x, y, index)]))
            parts += _dots(comparison, column, axis, x, y, index)
    label = f"Margin and relative drop under {attack} against {attack.strength_name}: a line per scheme"
    note = f"over {attack.strength_name}{', logarithmic' if axis.logarithmic else ''}"
    drawing = picture(_WIDTH, _HEIGHT, label, parts, class_="panel")
    return Panel(caption=str(attack), drawing=drawing, width=_WIDTH, height=_HEIGHT, note=note)


def _drop_scale(rows: Sequence[ResultRow]) -> Scale:
    drops = [row.relative_drop for row in rows if row.relative_drop is not None]
    reach = max([0.02, *drops])
    return Scale(min([0.0, *drops]) - 0.05 * reach, 1.05 * reach, _HEIGHT - _BOTTOM, _LOWER)


def _line(comparison: AttackComparison, column: str, axis: StrengthAxis, x: Scale, y: Scale, index: int) -> Markup:
    """Draw a line through the means over seeds."""
    points = []
    for strength in comparison.strengths:
        found = [value for r in comparison.done if r.strength == strength and (value := getattr(r, column)) is not None]
        if found:
            points.append((x(axis.place(strength)), y.at(fmean(found))))
    return series_line(points, index)


def _dots(of: AttackComparison, column: str, axis: StrengthAxis, x: Scale, y: Scale, index: int) -> list[Markup]:
    return [
        marker(
            index,
            x(axis.place(row.strength)),
            y(value),
            2.6 if column == "margin" else 2.0,
            hollow=not y.holds(value),
            title=f"{of.victim}, {of.strength_name} {plain_strength(row.strength)}, seed {row.seed}: "
            f"margin {signed(required(row.margin))}, relative drop {percent(row.relative_drop)}",
        )
        for row in of.done
        if row.strength is not None and (value := getattr(row, column)) is not None
    ]


def _axes(axis: StrengthAxis, x: Scale, margin: Scale, drop: Scale) -> list[Markup]:
    """Draw grids, axes and the threshold."""
    out = y_grid(x, margin, margin.ticks(), lambda value: number(value, 1))
    out += y_grid(x, drop, drop.ticks(3, 100), tick, unit=100)
    last = -math.inf
    for value in sorted(axis.values, key=axis.place):
        at = x(axis.place(value))
        out.append(tag("line", x1=at, x2=at, y1=drop.start, y2=drop.start + 3, class_="axis"))
        if at - last >= 30:
            out.append(tag("text", plain_strength(value), x=at, y=drop.start + 14, class_="tick mid"))
            last = at
    out += [
        tag("line", x1=x.start, x2=x.end, y1=drop.start, y2=drop.start, class_="axis"),
        tag("line", x1=x.start, x2=x.end, y1=margin(0.0), y2=margin(0.0), class_="threshold"),
        tag("text", "threshold", x=x.start + 2, y=margin(0.0) - 4, class_="note"),
        tag("text", "margin", x=0, y=9, class_="tick"),
        tag("text", "relative drop, %", x=0, y=_LOWER - 7, class_="tick"),
        tag("text", "stronger →", x=x.end, y=_HEIGHT - 4, class_="tick end"),
    ]
    return out
