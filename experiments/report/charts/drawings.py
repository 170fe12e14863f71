"""All drawings of a report, as panels of the page and as files."""

from collections.abc import Iterator
from pathlib import Path

from markupsafe import Markup

from wmarena.experiments.report.charts.removal_cost import price_panel
from wmarena.experiments.report.charts.strips import control_strip, seconds_bar
from wmarena.experiments.report.charts.svg_file import sheet
from wmarena.experiments.report.page import ReportPage, WorkloadSection
from wmarena.experiments.report.sections.calibration import null_panel
from wmarena.experiments.report.sections.removal_cost import priced
from wmarena.experiments.report.sections.strengths import strength_panel
from wmarena.experiments.report.sections.tradeoff import trade_off_panel
from wmarena.experiments.report.sections.unlocking import stamp_panel
from wmarena.experiments.report.sections.valley import valley_panel
from wmarena.experiments.report.svg import Panel
from wmarena.orchestrator.files.atomic import write_whole
from wmarena.orchestrator.store.local import safe_name

_STRIP_WIDTH, _STRIP_HEIGHT = 330.0, 33.0


def prices_of(section: WorkloadSection) -> list[Panel]:
    """Draw the attacker's cost; empty if no attack has one."""
    found = priced(section.comparisons)
    order = [d for family in section.families for line in family.lines.values() for d in line if d in found]
    return [price_panel(order, section.victims)] if order else []


def strengths_of(section: WorkloadSection) -> list[Panel]:
    """Draw margin and drop over the strength, a panel per swept attack with results."""
    with_results = [a for a in section.curves if any(d.done for d in section.comparisons if d.attack_label == a)]
    return [strength_panel(attack_label, section.comparisons, section.victims) for attack_label in with_results]


def trade_off_of(section: WorkloadSection) -> list[Panel]:
    """Draw the trade-off over all attacks."""
    return [trade_off_panel(section.trade_offs, section.victims)] if section.trade_offs else []


def valley_of(section: WorkloadSection) -> list[Panel]:
    """Draw the steepness while embedding."""
    return [valley_panel(section.valleys, section.victims)] if section.valleys else []


def nulls_of(page: ReportPage) -> list[Panel]:
    """Draw a histogram per calibrated scheme."""
    return [null_panel(check) for check in page.null_checks if check.found.statistics]


def stamps_of(page: ReportPage) -> list[Panel]:
    """Draw a map per marked model."""
    return [stamp_panel(found) for found in page.stamps]


def write_drawings(page: ReportPage, folder: Path) -> None:
    """Write one SVG file per drawing of the page and one PNG file per decoded emblem."""
    for name, title, panels, legend in _sheets(page):
        if panels:
            write_whole(folder / f"{name}.svg", sheet(title, panels, legend).encode())
    for image in (r for line in page.decoded_images for r in line):
        stem = safe_name(f"emblem-{image.victim.workload}-{image.victim.scheme}-{image.attack_label}")
        write_whole(folder / f"{stem}.png", image.png)


def _sheets(page: ReportPage) -> Iterator[tuple[str, str, list[Panel], list[str]]]:
    """Yield (name of the file, title, panels, legend)."""
    for section in page.sections:
        name, legend = safe_name(section.workload), [str(victim) for victim in section.victims]
        yield f"costs-{name}", f"What removal costs on {section.workload}", prices_of(section), legend
        yield f"tradeoff-{name}", f"All attacks together on {section.workload}", trade_off_of(section), legend
        yield f"strengths-{name}", f"Margin against strength on {section.workload}", strengths_of(section), legend
        yield f"valley-{name}", f"Steepness around the mark on {section.workload}", valley_of(section), legend
    yield "nulls", "Keys that nobody embedded", nulls_of(page), []
    yield "stamps", "Serial numbers that unlock, sorted by accuracy", stamps_of(page), []
    yield "controls", "Negative controls", _control_strips(page), []
    yield "seconds", "Cost in seconds", _seconds_bars(page), []


def _control_strips(page: ReportPage) -> list[Panel]:
    return [_strip(f"{c.victim}: {c.name}", control_strip(c)) for s in page.summaries for c in s.controls]


def _seconds_bars(page: ReportPage) -> list[Panel]:
    longest = max((step.total for step in page.steps), default=0.0)
    return [_strip(f"{step.kind.value} {step.what}", seconds_bar(step, longest)) for step in page.steps]


def _strip(caption: str, drawing: Markup) -> Panel:
    return Panel(caption=caption, drawing=drawing, width=_STRIP_WIDTH, height=_STRIP_HEIGHT)
