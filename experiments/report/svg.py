"""Building blocks of drawings: escaped SVG text, coloured by the page's style sheet, light or dark."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

HUES = 8
"""Number of line colours in the style sheet (``.s0`` ... ``.s7``); marker shapes distinguish schemes beyond colour."""

_SHAPES = ("circle", "square", "diamond", "up", "down")
_UNIT_PATHS = {
    "square": "M-1-1H1V1H-1Z",
    "diamond": "M0-1.4 1.4 0 0 1.4-1.4 0Z",
    "up": "M0-1.25 1.3 1H-1.3Z",
    "down": "M0 1.25 1.3-1H-1.3Z",
}


def tag(name: str, *children: str, **attributes: object) -> Markup:
    """Build one element; escape children that are not Markup; ``class_`` means class, ``stroke_width`` stroke-width."""
    pairs = [(k.rstrip("_").replace("_", "-"), v) for k, v in attributes.items() if v is not None]
    text = "".join(f' {k}="{escape(_short(v))}"' for k, v in pairs)
    body = "".join(escape(child) for child in children)
    return Markup(f"<{name}{text}>{body}</{name}>" if body else f"<{name}{text}/>")


def _short(value: object) -> object:
    """Round coordinates to a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value


def picture(width: float, height: float, label: str, children: Iterable[Markup], **attributes: object) -> Markup:
    """Build an SVG picture with an accessible name."""
    box = f"0 0 {_short(float(width))} {_short(float(height))}"
    return tag("svg", *children, viewBox=box, role="img", aria_label=label, **attributes)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A drawing with its caption; a figure of the page and a part of a file."""

    caption: str
    drawing: Markup
    width: float
    height: float
    note: str = ""


def marker(index: int, x: float, y: float, size: float = 3.2, *, hollow: bool = False, title: str = "") -> Markup:
    """Draw a point of series ``index``; colour and shape both identify the series."""
    shape = _SHAPES[index % len(_SHAPES)]
    classes = f"mark s{index % HUES}{' hollow' if hollow else ''}"
    tooltip = [tag("title", title)] if title else []
    if shape == "circle":
        return tag("circle", *tooltip, cx=x, cy=y, r=size, class_=classes)
    where = f"translate({_short(x)} {_short(y)}) scale({_short(size)})"
    return tag("path", *tooltip, d=_UNIT_PATHS[shape], transform=where, class_=classes)


def legend_key(index: int) -> Markup:
    """Draw line and point of a series for a legend."""
    line = tag("line", x1=1, y1=6, x2=21, y2=6, class_=f"line s{index % HUES}")
    return tag("svg", line, marker(index, 11, 6), viewBox="0 0 22 12", class_="key", aria_hidden="true")


@dataclass(frozen=True)
class Scale:
    """A linear map from data to pixels; a call clamps values to the domain."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Pixel of ``value``."""
        return self.at(self.clamp(value))

    def at(self, value: float) -> float:
        """Pixel of ``value``, also outside the domain."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def clamp(self, value: float) -> float:
        """Nearest value in the domain."""
        return min(max(value, self.low), self.high)

    def ticks(self, about: int = 4, unit: float = 1.0) -> list[float]:
        """Round numbers in the domain, in ``unit`` parts of the scale's unit (100: per cent)."""
        return nice_ticks(unit * self.low, unit * self.high, about)

    def holds(self, value: float) -> bool:
        """True if ``value`` is inside the domain."""
        return self.low <= value <= self.high


def series_line(points: Sequence[tuple[float, float]], index: int) -> Markup:
    """Draw the line of series ``index`` through pixel points."""
    return polyline(points, f"line s{index % HUES}")


def polyline(points: Sequence[tuple[float, float]], class_: str) -> Markup:
    """Draw a line through pixel points."""
    return tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=class_)


def clipped(x: Scale, y: Scale, children: Iterable[Markup]) -> Markup:
    """Clip children to the frame of two scales (y points upwards)."""
    width, height = x.end - x.start, y.start - y.end
    box = f"{x.start:g} {y.end:g} {width:g} {height:g}"
    return tag("svg", *children, x=x.start, y=y.end, width=width, height=height, viewBox=box, class_="plot")


def y_grid(x: Scale, y: Scale, ticks: Iterable[float], text: Callable[[float], str], unit: float = 1.0) -> list[Markup]:
    """Draw a labelled grid line per tick; ``unit`` as in ``Scale.ticks``."""
    out = []
    for tick in ticks:
        at = y(tick / unit)
        line = tag("line", x1=x.start, x2=x.end, y1=at, y2=at, class_="grid")
        out += [line, tag("text", text(tick), x=x.start - 6, y=at + 3.5, class_="tick end")]
    return out


def x_ticks(
    x: Scale, y: float, ticks: Iterable[float], text: Callable[[float], str], unit: float = 1.0
) -> list[Markup]:
    """Draw labelled marks below the x axis at pixel ``y``; ``unit`` as in ``Scale.ticks``."""
    out = []
    for tick in ticks:
        at = x(tick / unit)
        out.append(tag("line", x1=at, x2=at, y1=y, y2=y + 3, class_="axis"))
        out.append(tag("text", text(tick), x=at, y=y + 14, class_="tick mid"))
    return out


def nice_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Choose round numbers in [low, high]: steps of 1, 2 or 5 times a power of ten."""
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
