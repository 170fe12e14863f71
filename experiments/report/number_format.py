"""Number formatting: signs, units, per cent, durations, p-values."""

import math
from collections.abc import Sequence
from statistics import fmean

MINUS = "\u2212"
THIN = "\u202f"  # narrow no-break space between number and unit
ELLIPSIS = "\u2026"
NONE = "\u2013"


def signed(value: float, digits: int = 2) -> str:
    """Format ``+0.93`` or ``−0.25``; zero after rounding has no sign."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return f"{MINUS if value < 0 else '+'}{text}"


def number(value: float, digits: int = 2) -> str:
    """Format a number with a typographic minus sign."""
    return f"{value:.{digits}f}".replace("-", MINUS)


def tick(value: float) -> str:
    """Format a number of an axis: an integer, or one decimal."""
    return number(value, 0 if value == int(value) else 1)


def percent(value: float | None, digits: int = 1) -> str:
    """Format a rate in [0, 1] as per cent."""
    return NONE if value is None else f"{number(100 * value, digits)}{THIN}%"


def points(value: float | None, digits: int = 2) -> str:
    """Format a difference of two rates in percentage points, signed."""
    return NONE if value is None else f"{signed(100 * value, digits)}{THIN}pp"


def price(drop: float) -> str:
    """Format the cost of an attack: ``0.3 pp``, or ``no accuracy``."""
    return f"{number(100 * drop, 1)}{THIN}pp" if round(100 * drop, 1) > 0 else "no accuracy"


def span(values: Sequence[float], digits: int = 2, scale: float = 1.0) -> str:
    """Format the range ``0.91…0.95``; '' for fewer than two values."""
    if len(values) < 2:
        return ""
    return f"{number(scale * min(values), digits)}{ELLIPSIS}{number(scale * max(values), digits)}"


def mean_percent(values: Sequence[float], digits: int = 1) -> str:
    """Format the mean of rates in per cent."""
    return percent(fmean(values), digits) if values else NONE


def mean_number(values: Sequence[float], digits: int = 2) -> str:
    """Format the mean of numbers."""
    return number(fmean(values), digits) if values else NONE


def power_of_ten(log10_p: float | None) -> str:
    """Format a p-value given as log10: ``0.03``, ``2e−7``, ``1e−180``."""
    if log10_p is None:
        return NONE
    if math.isinf(log10_p):
        return "0"
    if log10_p > -2.5:
        return f"{10**log10_p:.2g}"
    mantissa, exponent = f"{10 ** (log10_p % 1):.0e}".split("e")
    return f"{mantissa}e{MINUS}{-(math.floor(log10_p) + int(exponent))}"


def p_value(p: float | None) -> str:
    """Format a p-value."""
    return NONE if p is None else power_of_ten(math.log10(p)) if p > 0 else "0"


def seconds(value: float | None) -> str:
    """Format a duration: ``0.4 s``, ``12 s``, ``3.5 min``, ``2.1 h``."""
    if value is None:
        return NONE
    if value < 99.5:
        return f"{value:.{0 if value >= 10 else 1 if value >= 0.1 else 3}f}{THIN}s"
    return f"{value / 60:.1f}{THIN}min" if value < 5400 else f"{value / 3600:.1f}{THIN}h"


def seconds_span(values: Sequence[float]) -> str:
    """Format shortest and longest duration; '' for fewer than two."""
    return f"{seconds(min(values))}{ELLIPSIS}{seconds(max(values))}" if len(values) > 1 else ""


def counted(n: int, noun: str, plural: str | None = None) -> str:
    """Format a count with its noun: ``1 seed``, ``3 seeds``."""
    return f"{n} {noun if n == 1 else plural or noun + 's'}"


def listed(items: Sequence[str]) -> str:
    """Join items: ``a, b and c``."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)
