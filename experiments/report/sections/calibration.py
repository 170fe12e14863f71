"""Calibration: statistics of keys that nobody embedded, compared with the null model of the p-values."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from wmarena.experiments.report.labels import Labels, Victim
from wmarena.experiments.report.number_format import MINUS, number
from wmarena.experiments.report.svg import Panel, Scale, picture, polyline, tag, x_ticks
from wmarena.experiments.results.calibration import Calibration

_WIDTH, _HEIGHT = 340.0, 170.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 10.0, 10.0, 22.0, 34.0
_MOST_BARS = 41


@dataclass(frozen=True, kw_only=True)
class NullCheck:
    """A scheme's calibration with its label."""

    victim: Victim
    found: Calibration


def null_checks(found: Sequence[Calibration], labels: Labels, known: Sequence[Victim]) -> list[NullCheck]:
    """Label calibrations as in the other tables."""
    by_name = {(v.workload, str(v.scheme), v.params): v for v in known}
    pairs = ((labels.victim(calibration), calibration) for calibration in found)
    return [NullCheck(victim=by_name.get((v.workload, str(v.scheme), v.params), v), found=c) for v, c in pairs]


@dataclass(frozen=True)
class Histogram:
    """Counts in bins of equal width from ``low`` on."""

    low: float
    width: float
    counts: tuple[int, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> "Histogram":
        """Choose bins: a multiple of the statistic's own steps, or the square root of the number of values.

        A statistic of n trials has the values k/n only: other widths would show comb-shaped artefacts.
        """
        distinct = sorted(set(values))
        gaps = [b - a for a, b in pairwise(distinct) if b - a > 1e-9]
        span = distinct[-1] - distinct[0]
        if not gaps or not span:
            return cls(distinct[0] - 0.005, 0.01, (len(values),))
        bars = min(_MOST_BARS, 1 + math.ceil(math.sqrt(len(values))))
        width = span / bars
        if len(distinct) <= len(values) / 2:
            width = min(gaps) * max(1, math.ceil(width / min(gaps) - 1e-9))
        low = distinct[0] - width / 2
        counts = [0] * (1 + int((distinct[-1] - low) / width))
        for value in values:
            counts[min(len(counts) - 1, int((value - low) / width))] += 1
        return cls(low, width, tuple(counts))


def null_panel(check: NullCheck) -> Panel:
    """Draw observed counts as bars, the null model as a line, and both thresholds."""
    found = check.found
    bars = Histogram.of(found.statistics)
    # A decision threshold above every possible statistic (no key can pass) is drawn on the edge.
    ends = [found.gauss_threshold, min(1.0, found.threshold), bars.low, bars.low + bars.width * len(bars.counts)]
    if found.expected_mean is not None and found.expected_sd is not None:
        ends += [found.expected_mean - 3 * found.expected_sd, found.expected_mean + 3 * found.expected_sd]
    room = 0.04 * (max(ends) - min(ends))
    x = Scale(min(ends) - room, max(ends) + room, _LEFT, _WIDTH - _RIGHT)
    curve = _null_curve(found, x, bars.width)
    tallest = max([*bars.counts, *(count for _, count in curve)])
    y = Scale(0.0, 1.05 * tallest, _HEIGHT - _BOTTOM, _TOP)
    parts = [_bar(bars, i, x, y) for i, count in enumerate(bars.counts) if count]
    if curve:
        parts.append(polyline([(x(at), y(count)) for at, count in curve], "null"))
    parts += _axes(found, x, y)
    keys = f"statistics of {found.n_pairs} keys that nobody embedded"
    label = f"{check.victim}: {keys}, the null model and the thresholds"
    note = f"{found.n_pairs} pairs, {found.p_method.replace('_', ' ')}"
    drawing = picture(_WIDTH, _HEIGHT, label, parts, class_="panel")
    return Panel(caption=str(check.victim), drawing=drawing, width=_WIDTH, height=_HEIGHT, note=note)


def _bar(bars: Histogram, index: int, x: Scale, y: Scale) -> Markup:
    left, right = x(bars.low + bars.width * index), x(bars.low + bars.width * (index + 1))
    top = y(bars.counts[index])
    tooltip = tag("title", f"{bars.counts[index]} around {number(bars.low + bars.width * (index + 0.5), 3)}")
    return tag("rect", tooltip, x=left, y=top, width=max(0.6, right - left - 0.6), height=y.start - top, class_="bar")


def _null_curve(found: Calibration, x: Scale, width: float) -> list[tuple[float, float]]:
    """Compute expected counts per bin for a normal curve with the null model's mean and standard deviation."""
    mean, spread = found.expected_mean, found.expected_sd
    if mean is None or not spread:
        return []
    peak = found.n_pairs * width / (spread * math.sqrt(2 * math.pi))
    places = [mean + spread * (i / 10 - 4) for i in range(81)]
    inside = [at for at in places if x.holds(at)]
    return [(at, peak * math.exp(-(((at - mean) / spread) ** 2) / 2)) for at in inside]


def _axes(found: Calibration, x: Scale, y: Scale) -> list[Markup]:
    out = [tag("line", x1=x.start, x2=x.end, y1=y.start, y2=y.start, class_="axis")]
    out += x_ticks(x, y.start, x.ticks(5), lambda tick: f"{tick:g}".replace("-", MINUS))
    for value, kind, name, height in (
        (found.threshold, "threshold", "threshold", 9.0),
        (found.gauss_threshold, "budget", "5 % rule", 19.0),
    ):
        at = x(value)
        side = "end" if at > (x.start + x.end) / 2 else ""
        shift = -3 if side else 3
        tooltip = tag("title", f"{name}: {number(value, 3)}")
        out.append(tag("line", tooltip, x1=at, x2=at, y1=height - 7, y2=y.start, class_=kind))
        out.append(tag("text", name, x=at + shift, y=height, class_=f"note {side}".rstrip()))
    out.append(tag("text", "statistic", x=x.end, y=_HEIGHT - 4, class_="tick end"))
    return out
