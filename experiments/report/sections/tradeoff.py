"""Trade-off over all attacks: the smallest margin for a given drop, per scheme."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from markupsafe import Markup

from wmarena.experiments.report.labels import Victim
from wmarena.experiments.report.number_format import number, percent, tick
from wmarena.experiments.report.sections.overview import SchemeSummary
from wmarena.experiments.report.svg import Panel, Scale, marker, nice_ticks, picture, series_line, tag, x_ticks, y_grid
from wmarena.experiments.results.costs import AUMC_REACH, aumc, envelope
from wmarena.experiments.results.rows import ResultRow, required

_WIDTH, _HEIGHT = 720.0, 270.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 34.0, 10.0, 20.0, 34.0


@dataclass(frozen=True, kw_only=True)
class TradeOff:
    """One scheme under all its attacks.

    Attributes:
        stairs: seed -> (relative drop, smallest margin up to it), falling.
        aumc: area under the margin curve of each seed, over all attacks.
    """

    victim: Victim
    stairs: Mapping[int, Sequence[tuple[float, float]]]
    aumc: tuple[float, ...]

    def mean_at(self, drop: float) -> float:
        """Compute the mean over seeds of the smallest margin at ``drop`` or less."""
        return fmean(stairs[bisect_right(stairs, (drop, 2.0)) - 1][1] for stairs in self.stairs.values())

    @property
    def drops(self) -> list[float]:
        """Drops up to ``AUMC_REACH`` at which some seed's staircase falls, ascending."""
        return sorted({drop for stairs in self.stairs.values() for drop, _ in stairs if drop <= AUMC_REACH})


def trade_offs(found: Sequence[SchemeSummary]) -> list[TradeOff]:
    """Compute trade-offs of attacked schemes whose published model has its mark on some seed."""
    out = []
    for summary in found:
        unattacked = summary.unattacked.done if summary.unattacked else []
        starts = {row.seed: required(row.margin) for row in unattacked if row.verdict}
        rows: dict[int, list[ResultRow]] = {seed: [] for seed in starts}
        for row in (row for comparison in summary.comparisons for row in comparison.done):
            if row.seed in starts:
                rows[row.seed].append(row)
        attacked = {seed: part for seed, part in rows.items() if part}
        if attacked:
            stairs = {seed: envelope(part, starts[seed]) for seed, part in attacked.items()}
            shares = tuple(aumc(part, starts[seed]) for seed, part in attacked.items())
            out.append(TradeOff(victim=summary.victim, stairs=stairs, aumc=shares))
    return out


def trade_off_panel(found: Sequence[TradeOff], order: Sequence[Victim]) -> Panel:
    """Draw one mean staircase per scheme, and a point at each step of a seed's staircase."""
    x = Scale(-0.004, AUMC_REACH, _LEFT, _WIDTH - _RIGHT)
    y = Scale(-0.04, 1.05, _HEIGHT - _BOTTOM, _TOP)
    parts = _axes(x, y)
    for trade in found:
        index = order.index(trade.victim)
        parts.append(series_line([(x(a), y(b)) for a, b in _corners(trade)], index))
        parts += _steps(trade, index, x, y)
    label = "Smallest margin that a relative drop buys, over all attacks: a staircase per scheme, mean over seeds"
    drawing = picture(_WIDTH, _HEIGHT, label, parts, class_="panel wide")
    return Panel(caption="All attacks together", drawing=drawing, width=_WIDTH, height=_HEIGHT)


def _corners(trade: TradeOff) -> list[tuple[float, float]]:
    """Compute the corners of the mean staircase."""
    points: list[tuple[float, float]] = []
    for drop in trade.drops:
        margin = trade.mean_at(drop)
        points += [(drop, points[-1][1]), (drop, margin)] if points else [(drop, margin)]
    return [*points, (AUMC_REACH, points[-1][1])]


def _steps(trade: TradeOff, index: int, x: Scale, y: Scale) -> list[Markup]:
    return [
        marker(
            index,
            x(drop),
            y(margin),
            2.4,
            title=f"{trade.victim}, seed {seed}: margin {number(margin)} for {percent(drop)}",
        )
        for seed, stairs in trade.stairs.items()
        for drop, margin in stairs
        if drop <= AUMC_REACH
    ]


def _axes(x: Scale, y: Scale) -> list[Markup]:
    return [
        *y_grid(x, y, nice_ticks(0.0, 1.0, 5), lambda margin: number(margin, 1)),
        *x_ticks(x, y.start, nice_ticks(0.0, 100 * AUMC_REACH, 5), tick, unit=100),
        tag("line", x1=x.start, x2=x.end, y1=y.start, y2=y.start, class_="axis"),
        tag("text", "relative drop, %", x=x.end, y=_HEIGHT - 4, class_="tick end"),
        tag("text", "smallest margin", x=0, y=9, class_="tick"),
    ]
