"""Attacker's cost per seed: a point at the drop at which the verdict fell, an arrow if it never fell."""

from collections.abc import Sequence

from markupsafe import Markup

from wmarena.experiments.report.labels import AttackLabel, Victim
from wmarena.experiments.report.number_format import percent, tick
from wmarena.experiments.report.sections.removal_cost import priced
from wmarena.experiments.report.sections.survival import AttackComparison
from wmarena.experiments.report.svg import HUES, Panel, Scale, marker, picture, tag
from wmarena.experiments.results.costs import Bracket

FURTHEST = 0.25
"""Larger relative drops are drawn hollow on the edge, unless most are larger."""

_WIDTH, _TOP, _BOTTOM, _LABEL, _RIGHT = 720.0, 8.0, 34.0, 190.0, 16.0
_STEP, _GAP = 7.0, 9.0


def price_panel(comparisons: Sequence[AttackComparison], order: Sequence[Victim]) -> Panel:
    """Draw one line of points per attack and scheme, grouped by attack, in the given order."""
    shown = priced(comparisons)
    groups: dict[AttackLabel, list[AttackComparison]] = {}
    for comparison in shown:
        groups.setdefault(comparison.attack_label, []).append(comparison)
    heights = [_STEP * len(part) + _GAP for part in groups.values()]
    height = _TOP + sum(heights) + _BOTTOM
    x = _scale([b for d in shown for b in d.sweep.brackets])
    parts = _axis(x, height - _BOTTOM)
    top = _TOP
    for (attack_label, part), tall in zip(groups.items(), heights, strict=True):
        parts.append(tag("line", x1=0, x2=x.end, y1=top + tall, y2=top + tall, class_="grid"))
        parts.append(tag("text", str(attack_label), x=0, y=top + tall / 2 + 3.5, class_="name"))
        for i, comparison in enumerate(sorted(part, key=lambda d: order.index(d.victim))):
            line = top + _GAP / 2 + _STEP * (i + 0.5)
            index = order.index(comparison.victim)
            parts += [_point(bracket, comparison, index, x, line) for bracket in comparison.sweep.brackets]
        top += tall
    label = "Attacker's cost: a point per seed where the verdict fell, an arrow where it never fell"
    drawing = picture(_WIDTH, height, label, parts, class_="panel wide")
    return Panel(caption="What removal costs", drawing=drawing, width=_WIDTH, height=height)


def _scale(found: Sequence[Bracket]) -> Scale:
    ends = sorted(end for b in found if (end := b.kept if b.cost is None else b.cost) is not None)
    reach = max([0.05, *ends])
    if ends and ends[len(ends) // 2] <= FURTHEST:
        reach = min(reach, FURTHEST)
    return Scale(min([0.0, *ends]) - 0.02 * reach, 1.02 * reach, _LABEL, _WIDTH - _RIGHT)


def _point(bracket: Bracket, comparison: AttackComparison, index: int, x: Scale, y: float) -> Markup:
    """Draw a filled point if the cheapest suspect beats training from scratch, else hollow; an arrow if none fell."""
    who = f"{comparison.victim} under {comparison.attack_label}, seed {bracket.seed}"
    if bracket.cost is None:
        if bracket.kept is None:
            return Markup("")
        never = tag("title", f"{who}: never fell, up to {percent(bracket.kept)}")
        start = x(bracket.kept)
        path = f"M{start:.1f} {y:.1f}h9m-3.2-2.6l3.2 2.6l-3.2 2.6"
        return tag("path", never, d=path, class_=f"line s{index % HUES}")
    tooltip = f"{who}: fell at {percent(bracket.cost)}"
    if bracket.beats_scratch is False:
        tooltip += ", but no better than training from scratch"
    beyond = not x.holds(bracket.cost)
    hollow = beyond or bracket.beats_scratch is False
    title = tooltip + (", beyond the frame" if beyond else "")
    return marker(index, x(bracket.cost), y, 2.6, hollow=hollow, title=title)


def _axis(x: Scale, bottom: float) -> list[Markup]:
    out = [tag("line", x1=x.start, x2=x.end, y1=bottom, y2=bottom, class_="axis")]
    for percentage in x.ticks(6, 100):
        at = x(percentage / 100)
        out.append(tag("line", x1=at, x2=at, y1=_TOP, y2=bottom, class_="grid"))
        out.append(tag("text", tick(percentage), x=at, y=bottom + 14, class_="tick mid"))
    out.append(tag("text", "relative drop, %", x=x.end, y=bottom + 30, class_="tick end"))
    return out
