"""Margin against accuracy drop over an attack's strengths: points and panel."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from markupsafe import Markup

from wmarena.experiments.report.labels import AttackLabel, Victim
from wmarena.experiments.report.number_format import number, points, signed, tick
from wmarena.experiments.report.sections.survival import AttackComparison
from wmarena.experiments.report.svg import Scale, clipped, marker, picture, series_line, tag, x_ticks, y_grid
from wmarena.experiments.results.rows import required

FURTHEST_PP = 20.0
"""Larger drops are drawn hollow on the edge, unless most are larger: a model that lost 20 points is worthless."""

LOWEST = -1.0
"""Smaller margins are drawn hollow on the edge."""

_WIDTH, _HEIGHT = 340.0, 230.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 30.0, 8.0, 20.0, 34.0


@dataclass(frozen=True)
class CurvePoint:
    """One suspect: drop of the test metric in percentage points, and margin of the mark."""

    strength: float
    seed: int
    drop_pp: float
    margin: float


def swept(comparisons: Sequence[AttackComparison]) -> list[AttackLabel]:
    """List attacks with two strengths or more, in order."""
    return list(dict.fromkeys(d.attack_label for d in comparisons if len(d.strengths) > 1))


def curve(comparison: AttackComparison) -> list[CurvePoint]:
    """List the finished suspects of a comparison, by strength, then seed."""
    found = [
        CurvePoint(row.strength, row.seed, 100 * row.test_drop, required(row.margin))
        for row in comparison.done
        if row.strength is not None and row.test_drop is not None
    ]
    return sorted(found, key=lambda p: (p.strength, p.seed))


def mean_curve(found: Sequence[CurvePoint]) -> list[tuple[float, float]]:
    """Compute (mean drop, mean margin) over seeds for each strength."""
    strengths = list(dict.fromkeys(p.strength for p in found))
    at = [[p for p in found if p.strength == strength] for strength in strengths]
    return [(fmean(p.drop_pp for p in part), fmean(p.margin for p in part)) for part in at]


@dataclass(frozen=True)
class Frame:
    """Axes of one panel; ``budget_pp`` is the largest drop at which a removal counts."""

    x: Scale
    y: Scale
    budget_pp: float

    @classmethod
    def around(cls, found: Sequence[CurvePoint], budget_pp: float) -> "Frame":
        """Choose axes that include the points, the threshold and the budget, up to ``FURTHEST_PP`` and ``LOWEST``."""
        drops = sorted(p.drop_pp for p in found)
        reach = max([1.35 * budget_pp, *drops])
        if drops and drops[len(drops) // 2] <= FURTHEST_PP:
            reach = min(reach, max(FURTHEST_PP, 1.35 * budget_pp))
        left = max(min([0.0, *drops]), -0.25 * reach)
        lowest = max(min([-0.3, *(p.margin for p in found)]), LOWEST)
        x = Scale(left - 0.03 * reach, 1.03 * reach, _LEFT, _WIDTH - _RIGHT)
        return cls(x, Scale(lowest - 0.06, 1.08, _HEIGHT - _BOTTOM, _TOP), budget_pp)


def curve_panel(attack_label: AttackLabel, comparisons: Sequence[AttackComparison], order: Sequence[Victim]) -> Markup:
    """Draw a line per scheme through the means over seeds, and a point per seed and strength."""
    part = [d for d in comparisons if d.attack_label == attack_label]
    curves = {order.index(d.victim): (d, curve(d)) for d in part}
    budget_pp = 100 * max(row.max_drop for d in part for row in d.rows)
    frame = Frame.around([p for _, found in curves.values() for p in found], budget_pp)
    lines = [
        series_line([(frame.x.at(a), frame.y.at(b)) for a, b in mean_curve(found)], i)
        for i, (_, found) in curves.items()
    ]
    dots = [_dot(i, comparison, point, frame) for i, (comparison, found) in curves.items() for point in found]
    label = f"Margin against accuracy drop under {attack_label}: a line per scheme, a point per seed and strength"
    return picture(_WIDTH, _HEIGHT, label, [*_axes(frame), clipped(frame.x, frame.y, lines), *dots], class_="panel")


def _dot(index: int, comparison: AttackComparison, point: CurvePoint, frame: Frame) -> Markup:
    outside = not (frame.x.holds(point.drop_pp) and frame.y.holds(point.margin))
    title = (
        f"{comparison.victim}, {comparison.strength_name} {point.strength:g}, seed {point.seed}: "
        f"margin {signed(point.margin)}, drop {points(point.drop_pp / 100)}" + (", beyond the frame" if outside else "")
    )
    return marker(index, frame.x(point.drop_pp), frame.y(point.margin), 2.8, hollow=outside, title=title)


def _axes(frame: Frame) -> list[Markup]:
    """Draw grid, axes, threshold, budget, and the zone in which a mark counts as removed."""
    x, y = frame.x, frame.y
    zero, budget, bottom = y(0.0), x(frame.budget_pp), y.start
    roomy = budget - x.start > 50
    out = [tag("rect", x=x.start, y=zero, width=budget - x.start, height=bottom - zero, class_="zone")]
    out += y_grid(x, y, y.ticks(), lambda margin: number(margin, 1))
    out += x_ticks(x, bottom, x.ticks(5), tick)
    out += [
        tag("line", x1=x.start, x2=x.end, y1=bottom, y2=bottom, class_="axis"),
        tag("line", x1=x.start, x2=x.end, y1=zero, y2=zero, class_="threshold"),
        tag("line", x1=budget, x2=budget, y1=y.end, y2=bottom, class_="budget"),
        tag("text", f"budget {frame.budget_pp:g} pp", x=budget + 4, y=bottom - 6, class_="note"),
        *([tag("text", "removed", x=x.start + 5, y=bottom - 6, class_="note zone-name")] if roomy else []),
        tag("text", "threshold", x=x.end - 2, y=zero - 4, class_="note end"),
        tag("text", "accuracy drop, pp", x=x.end, y=_HEIGHT - 4, class_="tick end"),
        tag("text", "margin", x=0, y=9, class_="tick"),
    ]
    return out
