"""Every drawing of the page, where it stands on the page and as a file of its own."""

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


def prices_of(arena: WorkloadSection) -> list[Panel]:
    """The attacker's cost; nothing if no attack has one."""
    found = priced(arena.duels)
    order = [duel for family in arena.families for line in family.lines.values() for duel in line if duel in found]
    return [price_panel(order, arena.victims)] if order else []


def strengths_of(arena: WorkloadSection) -> list[Panel]:
    """Margin and drop over the strength, a panel per swept attack with results."""
    with_results = [a for a in arena.curves if any(d.done for d in arena.duels if d.assault == a)]
    return [strength_panel(assault, arena.duels, arena.victims) for assault in with_results]


def trade_off_of(arena: WorkloadSection) -> list[Panel]:
    """All attacks together."""
    return [trade_off_panel(arena.trade_offs, arena.victims)] if arena.trade_offs else []


def valley_of(arena: WorkloadSection) -> list[Panel]:
    """Steepness while embedding."""
    return [valley_panel(arena.valleys, arena.victims)] if arena.valleys else []


def nulls_of(page: ReportPage) -> list[Panel]:
    """A histogram per calibrated scheme."""
    return [null_panel(check) for check in page.null_checks if check.found.statistics]


def stamps_of(page: ReportPage) -> list[Panel]:
    """A map per marked model."""
    return [stamp_panel(found) for found in page.stamps]


def write_drawings(page: ReportPage, folder: Path) -> list[Path]:
    """What ``write_figures`` does not draw: one SVG file per figure, a PNG file per decoded emblem."""
    written = []
    for name, title, panels, legend in _sheets(page):
        if panels:
            target = folder / f"{name}.svg"
            write_whole(target, sheet(title, panels, legend).encode())
            written.append(target)
    for reading in (r for line in page.spelled for r in line):
        stem = safe_name(f"emblem-{reading.victim.workload}-{reading.victim.scheme}-{reading.assault}")
        target = folder / f"{stem}.png"
        write_whole(target, reading.png)
        written.append(target)
    return written


def _sheets(page: ReportPage) -> Iterator[tuple[str, str, list[Panel], list[str]]]:
    """(name of the file, title, panels, legend)."""
    for arena in page.arenas:
        name, legend = safe_name(arena.workload), [str(victim) for victim in arena.victims]
        yield f"costs-{name}", f"What removal costs on {arena.workload}", prices_of(arena), legend
        yield f"tradeoff-{name}", f"All attacks together on {arena.workload}", trade_off_of(arena), legend
        yield f"strengths-{name}", f"Margin against strength on {arena.workload}", strengths_of(arena), legend
        yield f"valley-{name}", f"Steepness around the mark on {arena.workload}", valley_of(arena), legend
    yield "nulls", "Keys that nobody embedded", nulls_of(page), []
    yield "stamps", "Serial numbers that unlock, sorted by accuracy", stamps_of(page), []
    yield "controls", "Negative controls", _control_strips(page), []
    yield "seconds", "Cost in seconds", _seconds_bars(page), []


def _control_strips(page: ReportPage) -> list[Panel]:
    found = [c for s in page.summaries for c in s.controls]
    return [_strip(f"{c.victim}: {c.name}", control_strip(c)) for c in found]


def _seconds_bars(page: ReportPage) -> list[Panel]:
    longest = max((step.total for step in page.steps), default=0.0)
    return [_strip(f"{step.kind.value} {step.what}", seconds_bar(step, longest)) for step in page.steps]


def _strip(caption: str, drawing: Markup) -> Panel:
    return Panel(caption=caption, drawing=drawing, width=_STRIP_WIDTH, height=_STRIP_HEIGHT)
