"""Strip charts of the page: statistics of controls, paired differences, seconds."""

from collections.abc import Sequence

from markupsafe import Markup

from wmarena.experiments.report.number_format import number, points, seconds
from wmarena.experiments.report.sections.controls import BAND, ControlSummary
from wmarena.experiments.report.sections.fidelity import Fidelity
from wmarena.experiments.report.sections.runtime import TaskDurations
from wmarena.experiments.report.svg import Scale, picture, tag
from wmarena.experiments.results.rows import required

_STRIP_WIDTH, _STRIP_HEIGHT = 220.0, 22.0


def control_strip(control: ControlSummary) -> Markup:
    """Draw statistics on [0, 1]: the band of chance, the threshold, a point per seed."""
    x, middle = Scale(0.0, 1.0, 4.0, _STRIP_WIDTH - 4), _STRIP_HEIGHT / 2
    parts = [tag("line", x1=x.start, x2=x.end, y1=middle, y2=middle, class_="axis")]
    if control.band is not None:
        low, high = control.band
        tooltip = tag("title", f"chance: {number(low)} to {number(high)} in {100 * BAND:g} % of unrelated models")
        parts.append(tag("rect", tooltip, x=x(low), y=5, width=x(high) - x(low), height=12, class_="band"))
    for threshold in sorted({required(row.threshold) for row in control.done}):
        tooltip = tag("title", f"threshold {number(threshold, 3)}")
        parts.append(tag("line", tooltip, x1=x(threshold), x2=x(threshold), y1=2, y2=20, class_="threshold"))
    for row in control.done:
        statistic = required(row.statistic)
        tooltip = tag("title", f"seed {row.seed}: {number(statistic, 3)}")
        kind = "hit" if row.verdict else "dot"
        parts.append(tag("circle", tooltip, cx=x(statistic), cy=middle, r=3.2, class_=kind))
    label = f"{control.name}: statistic of each seed against the band of chance and the threshold"
    return picture(_STRIP_WIDTH, _STRIP_HEIGHT, label, parts, class_="strip")


def fidelity_reach(found: Sequence[Fidelity]) -> float:
    """Compute the half-width of a common axis for paired differences, at least half a percentage point."""
    return max([0.005, *(abs(pair.difference) for f in found for pair in f.pairs)]) * 1.1


def fidelity_strip(fidelity: Fidelity, reach: float) -> Markup:
    """Draw marked - clean around zero: a point per seed, the mean as a bar."""
    x, middle = Scale(-reach, reach, 4.0, _STRIP_WIDTH - 4), _STRIP_HEIGHT / 2
    mean = fidelity.mean_difference
    parts = [
        tag("line", x1=x.start, x2=x.end, y1=middle, y2=middle, class_="axis"),
        tag("line", x1=x(0.0), x2=x(0.0), y1=3, y2=19, class_="threshold"),
        tag("rect", x=x(mean) - 1.2, y=4, width=2.4, height=14, class_="mean"),
    ]
    for pair in fidelity.pairs:
        tooltip = tag("title", f"seed {pair.seed}: {points(pair.difference)}")
        parts.append(tag("circle", tooltip, cx=x(pair.difference), cy=middle, r=3.2, class_="dot"))
    label = f"{fidelity.victim}: marked minus clean accuracy of each seed, mean {points(mean)}"
    return picture(_STRIP_WIDTH, _STRIP_HEIGHT, label, parts, class_="strip")


def seconds_bar(step: TaskDurations, longest: float) -> Markup:
    """Draw the total seconds of a step relative to the longest one."""
    width = max(1.0, _STRIP_WIDTH * step.total / longest) if longest > 0 else 1.0
    bar = tag("rect", x=0, y=6, width=width, height=10, rx=1.5, class_="bar")
    return picture(_STRIP_WIDTH, _STRIP_HEIGHT, f"{seconds(step.total)} in total", [bar], class_="strip")
