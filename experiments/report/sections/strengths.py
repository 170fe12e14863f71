"""Margin and accuracy against an attack's strength: learning rates on a logarithmic axis, the stronger to the right."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from markupsafe import Markup

from wmarena.experiments.report.labels import AttackLabel, Victim
from wmarena.experiments.report.number_format import MINUS, number, percent, signed
from wmarena.experiments.report.sections.survival import AttackComparison
from wmarena.experiments.report.svg import HUES, Panel, Scale, clipped, marker, nice_ticks, picture, polyline, tag
from wmarena.experiments.results.rows import ResultRow, required

RATES = ("lr", "rate", "learning_rate")
"""Strengths that are always drawn on a logarithmic axis, if positive."""

DECADES = 2.0
"""Other positive strengths are drawn on one if they span this many powers of ten."""

LOWEST = -1.0
"""Margins below this are drawn on the edge, hollow."""

_WIDTH, _HEIGHT = 340.0, 262.0
_LEFT, _RIGHT, _TOP, _MIDDLE, _LOWER, _BOTTOM = 36.0, 8.0, 20.0, 150.0, 172.0, 34.0


Column = Callable[[ResultRow], float | None]
"""What is drawn against the strength."""


@dataclass(frozen=True)
class StrengthAxis:
    """Where a strength stands: on a linear or logarithmic scale, the stronger to the right."""

    values: tuple[float, ...]
    logarithmic: bool
    direction: int

    @classmethod
    def of(cls, name: str | None, values: Sequence[float], direction: int) -> "StrengthAxis":
        """The axis for these strengths."""
        positive = min(values) > 0
        wide = positive and max(values) > min(values) and math.log10(max(values) / min(values)) >= DECADES
        return cls(tuple(sorted(set(values))), positive and (name in RATES or wide), direction)

    def place(self, strength: float) -> float:
        """The strength in units of the axis."""
        return self.direction * (math.log10(strength) if self.logarithmic else strength)

    def scale(self, start: float, end: float) -> Scale:
        """From places to pixels, with a little room on both sides."""
        ends = [self.place(value) for value in self.values]
        room = 0.04 * (max(ends) - min(ends)) or 0.5
        return Scale(min(ends) - room, max(ends) + room, start, end)


def plain_strength(value: float) -> str:
    """A strength as people write it: ``0.5``, ``1e−4``."""
    text = f"{value:g}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.0e}".replace("e-0", "e-")
    return text.replace("e+0", "e").replace("-", MINUS)


def strength_panel(assault: AttackLabel, duels: Sequence[AttackComparison], order: Sequence[Victim]) -> Panel:
    """One small multiple: margin above, relative drop below, a line per scheme and a point per seed and strength."""
    part = [d for d in duels if d.assault == assault and any(r.strength is not None for r in d.done)]
    axis = StrengthAxis.of(assault.strength_name, [s for d in part for s in d.strengths], part[0].contest.direction)
    rows = [row for d in part for row in d.done]
    x = axis.scale(_LEFT, _WIDTH - _RIGHT)
    margin = Scale(max(min([-0.3, *(required(r.margin) for r in rows)]), LOWEST) - 0.06, 1.08, _MIDDLE, _TOP)
    drop = _drop_scale(rows)
    parts = _furniture(axis, x, margin, drop)
    for duel in part:
        index = order.index(duel.victim)
        for column, y in ((_margin, margin), (_relative_drop, drop)):
            parts.append(clipped(x, y, [_line(duel, column, axis, x, y, index)]))
            parts += _dots(duel, column, axis, x, y, index)
    label = f"Margin and relative drop under {assault} against {assault.strength_name}: a line per scheme"
    drawing = picture(_WIDTH, _HEIGHT, label, parts, class_="panel")
    scale = ", logarithmic" if axis.logarithmic else ""
    note = f"over {assault.strength_name}{scale}"
    return Panel(caption=str(assault), note=note, drawing=drawing, width=_WIDTH, height=_HEIGHT)


def _margin(row: ResultRow) -> float:
    return required(row.margin)


def _relative_drop(row: ResultRow) -> float | None:
    return row.relative_drop


def _drop_scale(rows: Sequence[ResultRow]) -> Scale:
    drops = [row.relative_drop for row in rows if row.relative_drop is not None]
    reach = max([0.02, *drops])
    return Scale(min([0.0, *drops]) - 0.05 * reach, 1.05 * reach, _HEIGHT - _BOTTOM, _LOWER)


def _line(duel: AttackComparison, column: Column, axis: StrengthAxis, x: Scale, y: Scale, index: int) -> Markup:
    """Through the means over seeds."""
    points = []
    for strength in duel.strengths:
        found = [value for r in duel.done if r.strength == strength and (value := column(r)) is not None]
        if found:
            points.append((x(axis.place(strength)), y.at(fmean(found))))
    return polyline(points, f"line s{index % HUES}")


def _dots(duel: AttackComparison, column: Column, axis: StrengthAxis, x: Scale, y: Scale, index: int) -> list[Markup]:
    return [
        marker(
            index,
            x(axis.place(row.strength)),
            y(value),
            2.6 if column is _margin else 2.0,
            hollow=not y.holds(value),
            title=f"{duel.victim}, {duel.assault.strength_name} {plain_strength(row.strength)}, seed {row.seed}: "
            f"margin {signed(_margin(row))}, relative drop {percent(row.relative_drop)}",
        )
        for row in duel.done
        if row.strength is not None and (value := column(row)) is not None
    ]


def _furniture(axis: StrengthAxis, x: Scale, margin: Scale, drop: Scale) -> list[Markup]:
    """Grids, numbers, titles, the threshold."""
    out = []
    for y, factor, about in ((margin, 1.0, 4), (drop, 100.0, 3)):
        for tick in nice_ticks(factor * y.low, factor * y.high, about):
            at = y(tick / factor)
            digits = 0 if tick == int(tick) and factor > 1 else 1
            out.append(tag("line", x1=x.start, x2=x.end, y1=at, y2=at, class_="grid"))
            out.append(tag("text", number(tick, digits), x=x.start - 6, y=at + 3.5, class_="tick end"))
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
