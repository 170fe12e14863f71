"""Drawings for the page, as escaped SVG text whose colours come from the page's style sheet, light or dark."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

HUES = 8
"""Number of line colours in the style sheet (``.s0`` ... ``.s7``); markers tell schemes apart beyond colour."""

_SHAPES = ("circle", "square", "diamond", "up", "down")
_UNIT_PATHS = {
    "square": "M-1-1H1V1H-1Z",
    "diamond": "M0-1.4 1.4 0 0 1.4-1.4 0Z",
    "up": "M0-1.25 1.3 1H-1.3Z",
    "down": "M0 1.25 1.3-1H-1.3Z",
}


def tag(name: str, *children: str, **attributes: object) -> Markup:
    """One element; children that are not Markup are escaped, ``class_`` and ``stroke_width`` lose their underscores."""
    pairs = [(k.rstrip("_").replace("_", "-"), v) for k, v in attributes.items() if v is not None]
    text = "".join(f' {k}="{escape(_short(v))}"' for k, v in pairs)
    body = "".join(escape(child) for child in children)
    return Markup(f"<{name}{text}>{body}</{name}>" if body else f"<{name}{text}/>")


def _short(value: object) -> object:
    """Coordinates to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value


def picture(width: float, height: float, label: str, children: Iterable[Markup], **attributes: object) -> Markup:
    """A drawing with a name for those who cannot see it."""
    box = f"0 0 {_short(float(width))} {_short(float(height))}"
    return tag("svg", *children, viewBox=box, role="img", aria_label=label, **attributes)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A drawing with its caption: a figure of the page, and part of a file."""

    caption: str
    drawing: Markup
    width: float
    height: float
    note: str = ""


def marker(index: int, x: float, y: float, size: float = 3.2, *, hollow: bool = False, title: str = "") -> Markup:
    """The point of series ``index``: colour and shape both name the series."""
    shape = _SHAPES[index % len(_SHAPES)]
    classes = f"mark s{index % HUES}{' hollow' if hollow else ''}"
    told = [tag("title", title)] if title else []
    if shape == "circle":
        return tag("circle", *told, cx=x, cy=y, r=size, class_=classes)
    where = f"translate({_short(x)} {_short(y)}) scale({_short(size)})"
    return tag("path", *told, d=_UNIT_PATHS[shape], transform=where, class_=classes)


def legend_key(index: int) -> Markup:
    """Line and point of a series, for a legend."""
    line = tag("line", x1=1, y1=6, x2=21, y2=6, class_=f"line s{index % HUES}")
    return tag("svg", line, marker(index, 11, 6), viewBox="0 0 22 12", class_="key", aria_hidden="true")


@dataclass(frozen=True)
class Scale:
    """A linear map from data to pixels; called, it puts values outside the domain on its edge."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Pixel of ``value``."""
        return self.at(self.clamp(value))

    def at(self, value: float) -> float:
        """Pixel of ``value``, also beyond the edge."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def clamp(self, value: float) -> float:
        """``value``, or the nearest edge of the domain."""
        return min(max(value, self.low), self.high)

    def holds(self, value: float) -> bool:
        """True if ``value`` is inside the domain."""
        return self.low <= value <= self.high


def polyline(points: Sequence[tuple[float, float]], class_: str) -> Markup:
    """A line through pixel points."""
    return tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=class_)


def clipped(x: Scale, y: Scale, children: Iterable[Markup]) -> Markup:
    """Children as far as they lie inside the frame of two scales (y runs upwards)."""
    width, height = x.end - x.start, y.start - y.end
    box = f"{x.start:g} {y.end:g} {width:g} {height:g}"
    return tag("svg", *children, x=x.start, y=y.end, width=width, height=height, viewBox=box, class_="plot")


def nice_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers inside [low, high]: steps of 1, 2 or 5 times a power of ten."""
    span = high - low
    step = 10.0 ** _floor_log10(span / about)
    for factor in (1, 2, 5, 10):
        if span / (step * factor) <= about:
            step *= factor
            break
    first = -(-low // step)
    ticks = [round((first + i) * step, 10) for i in range(int((high - first * step) / step + 1e-9) + 1)]
    return [0.0 if t == 0 else t for t in ticks]


def _floor_log10(value: float) -> int:
    exponent = 0
    while value < 10.0**exponent:
        exponent -= 1
    while value >= 10.0 ** (exponent + 1):
        exponent += 1
    return exponent
