"""All attacks together: the smallest margin that a given drop buys, scheme by scheme."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from markupsafe import Markup

from wmarena.experiments.report.labels import Victim
from wmarena.experiments.report.number_format import number, percent
from wmarena.experiments.report.sections.overview import SchemeSummary
from wmarena.experiments.report.svg import HUES, Panel, Scale, marker, nice_ticks, picture, polyline, tag
from wmarena.experiments.results.costs import AUMC_REACH, aumc, envelope
from wmarena.experiments.results.rows import ResultRow, required

_WIDTH, _HEIGHT = 720.0, 270.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 34.0, 10.0, 20.0, 34.0


@dataclass(frozen=True, kw_only=True)
class TradeOff:
    """One scheme against everything it was attacked with.

    Attributes:
        stairs: seed -> (relative drop, smallest margin that it buys), falling.
        aumc: of each seed, over all attacks.
    """

    victim: Victim
    stairs: Mapping[int, Sequence[tuple[float, float]]]
    aumc: tuple[float, ...]

    def mean_at(self, drop: float) -> float:
        """Mean over seeds of the smallest margin at ``drop`` or less."""
        return fmean(stairs[bisect_right(stairs, (drop, 2.0)) - 1][1] for stairs in self.stairs.values())

    @property
    def drops(self) -> list[float]:
        """Where some seed's staircase falls, ascending, within reach."""
        return sorted({drop for stairs in self.stairs.values() for drop, _ in stairs if drop <= AUMC_REACH})


def trade_offs(found: Sequence[SchemeSummary]) -> list[TradeOff]:
    """Schemes whose published model carries its mark on some seed and that were attacked."""
    out = []
    for summary in found:
        starts = _starts(summary)
        rows: dict[int, list[ResultRow]] = {seed: [] for seed in starts}
        for row in (row for duel in summary.duels for row in duel.done):
            if row.seed in starts:
                rows[row.seed].append(row)
        attacked = {seed: part for seed, part in rows.items() if part}
        if attacked:
            stairs = {seed: envelope(part, starts[seed]) for seed, part in attacked.items()}
            shares = tuple(aumc(part, starts[seed]) for seed, part in attacked.items())
            out.append(TradeOff(victim=summary.victim, stairs=stairs, aumc=shares))
    return out


def _starts(summary: SchemeSummary) -> dict[int, float]:
    done = summary.unattacked.done if summary.unattacked else []
    return {row.seed: required(row.margin) for row in done if row.verdict}


def trade_off_panel(found: Sequence[TradeOff], order: Sequence[Victim]) -> Panel:
    """One staircase per scheme, the mean over seeds; a point where some seed's staircase falls."""
    x = Scale(-0.004, AUMC_REACH, _LEFT, _WIDTH - _RIGHT)
    y = Scale(-0.04, 1.05, _HEIGHT - _BOTTOM, _TOP)
    parts = _furniture(x, y)
    for trade in found:
        index = order.index(trade.victim)
        parts.append(polyline([(x(a), y(b)) for a, b in _corners(trade)], f"line s{index % HUES}"))
        parts += _steps(trade, index, x, y)
    label = "Smallest margin that a relative drop buys, over all attacks: a staircase per scheme, mean over seeds"
    drawing = picture(_WIDTH, _HEIGHT, label, parts, class_="panel wide")
    return Panel(caption="All attacks together", drawing=drawing, width=_WIDTH, height=_HEIGHT)


def _corners(trade: TradeOff) -> list[tuple[float, float]]:
    """The mean staircase as a line."""
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


def _furniture(x: Scale, y: Scale) -> list[Markup]:
    out = []
    for tick in nice_ticks(0.0, 1.0, 5):
        out.append(tag("line", x1=x.start, x2=x.end, y1=y(tick), y2=y(tick), class_="grid"))
        out.append(tag("text", number(tick, 1), x=x.start - 6, y=y(tick) + 3.5, class_="tick end"))
    for tick in nice_ticks(0.0, 100 * AUMC_REACH, 5):
        at = x(tick / 100)
        out.append(tag("line", x1=at, x2=at, y1=y.start, y2=y.start + 3, class_="axis"))
        out.append(tag("text", number(tick, 0), x=at, y=y.start + 14, class_="tick mid"))
    out += [
        tag("line", x1=x.start, x2=x.end, y1=y.start, y2=y.start, class_="axis"),
        tag("text", "relative drop, %", x=x.end, y=_HEIGHT - 4, class_="tick end"),
        tag("text", "smallest margin", x=0, y=9, class_="tick"),
    ]
    return out
