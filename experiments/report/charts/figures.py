"""Figures as files for papers and slides: SVG with selectable text, and PNG."""

import io
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from statistics import fmean

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from wmarena.experiments.report.labels import AttackLabel
from wmarena.experiments.report.number_format import signed, span
from wmarena.experiments.report.page import ReportPage, WorkloadSection
from wmarena.experiments.report.sections.curves import Frame, curve, mean_curve
from wmarena.experiments.report.sections.fidelity import Fidelity
from wmarena.experiments.report.sections.survival import AttackComparison
from wmarena.experiments.report.sentences import tally
from wmarena.orchestrator.files.atomic import write_whole
from wmarena.orchestrator.store.local import safe_name

INK, SOFT, KEPT, LOST = "#1a1d21", "#545c66", "#0b5cad", "#cd5200"
COLOURS = ("#0b5cad", "#c04a00", "#00765a", "#8f3a84", "#6b5600", "#b3261e", "#3b6f8f", "#4a4f57")
_MARKERS = ("o", "s", "D", "^", "v")
STYLE = {
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "wmarena",  # equal rows give equal files
    "text.parse_math": False,  # a dollar in a name is no formula
}


def write_figures(page: ReportPage, folder: Path) -> None:
    """Write ``survival-<workload>``, ``curves-<workload>`` and ``fidelity``, each as .svg and .png."""
    with mpl.rc_context(STYLE):
        for section in page.sections:
            name = safe_name(section.workload)
            if any(comparison.done for comparison in section.comparisons):
                save(survival_figure(section), folder / f"survival-{name}")
            if section.curves:
                save(curves_figure(section), folder / f"curves-{name}")
        if page.fidelity:
            save(fidelity_figure(page.fidelity), folder / "fidelity")


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure atomically as ``stem``.svg and .png; return both paths."""
    FigureCanvasAgg(figure)
    out = []
    for kind in ("svg", "png"):
        raw = io.BytesIO()
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(raw, format=kind, dpi=160, bbox_inches="tight", metadata=metadata)
        target = stem.with_name(f"{stem.name}.{kind}")
        write_whole(target, raw.getvalue())
        out.append(target)
    return out


def survival_figure(section: WorkloadSection) -> Figure:
    """Draw the survival matrix: margin (mean, range) and seeds survived, coloured by outcome."""
    n_rows, n_columns = len(section.matrix), len(section.victims)
    figure = Figure(figsize=(2.2 + 1.35 * n_columns, 0.9 + 0.52 * n_rows))
    axes = figure.add_subplot()
    for y, line in enumerate(section.matrix.values()):
        for x, comparison in enumerate(line):
            _matrix_cell(axes, x, y, comparison)
    axes.set_xlim(-0.5, n_columns - 0.5)
    axes.set_ylim(n_rows - 0.5, -0.5)
    axes.set_xticks(range(n_columns), [str(victim) for victim in section.victims])
    axes.set_yticks(range(n_rows), [str(attack_label) for attack_label in section.matrix])
    axes.xaxis.tick_top()
    axes.tick_params(length=0, labelcolor=INK)
    axes.spines[:].set_visible(False)
    axes.set_title(f"Survival on {section.workload}", pad=14)
    return figure


def _matrix_cell(axes: Axes, x: int, y: int, comparison: AttackComparison | None) -> None:
    if comparison is None or not comparison.done:
        axes.text(x, y, "no result" if comparison else "–", ha="center", va="center", color=SOFT)
        return
    mean = fmean(comparison.margins)
    lost = {"removed": 0.34, "mixed": 0.17}.get(comparison.outcome)
    colour, alpha = (LOST, lost) if lost else (KEPT, 0.05 + 0.22 * min(1.0, max(0.0, mean)))
    if comparison.outcome == "worthless":
        colour, alpha = SOFT, 0.09
    axes.fill_between([x - 0.48, x + 0.48], y - 0.46, y + 0.46, color=colour, alpha=alpha, linewidth=0)
    axes.text(x, y - 0.14, signed(mean), ha="center", va="center", weight="bold")
    below = "  ".join(part for part in (span(comparison.margins), tally(comparison)) if part)
    axes.text(x, y + 0.22, below, ha="center", va="center", size=6.5, color=SOFT)


def curves_figure(section: WorkloadSection) -> Figure:
    """Draw margin against accuracy drop, a panel per swept attack."""
    n = len(section.curves)
    columns = min(3, n)
    lines = -(-n // columns)
    figure = Figure(figsize=(3.2 * columns, 2.5 * lines + 0.4), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for axes, attack_label in zip(panels, section.curves, strict=False):
        _curve_panel(axes, section, attack_label)
    for axes in list(panels):
        axes.set_visible(False)
    handles = [
        mpl.lines.Line2D([], [], color=colour, marker=marker, markersize=4, label=str(victim))
        for victim, (colour, marker) in zip(section.victims, map(_style, count()), strict=False)
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=min(6, len(handles)))
    return figure


def _curve_panel(axes: Axes, section: WorkloadSection, attack_label: AttackLabel) -> None:
    attacked = [d for d in section.comparisons if d.attack_label == attack_label]
    budget = 100 * max(row.max_drop for d in attacked for row in d.rows)
    curves = {section.victims.index(d.victim): curve(d) for d in attacked}
    frame = Frame.around([p for found in curves.values() for p in found], budget)
    for index, found in curves.items():
        means, (colour, marker) = mean_curve(found), _style(index)
        axes.plot([drop for drop, _ in means], [margin for _, margin in means], color=colour, linewidth=1.3)
        inside = [p for p in found if frame.x.holds(p.drop_pp) and frame.y.holds(p.margin)]
        axes.plot([p.drop_pp for p in inside], [p.margin for p in inside], marker, color=colour, ms=3)
        for p in found:
            if p not in inside:
                edge = frame.x.clamp(p.drop_pp), frame.y.clamp(p.margin)
                axes.plot(*edge, marker, color=colour, ms=3, mfc="white", clip_on=False)
    axes.set_xlim(frame.x.low, frame.x.high)
    axes.set_ylim(frame.y.low, frame.y.high)
    axes.axhline(0, color=INK, linewidth=0.9)
    axes.axvline(budget, color=SOFT, linewidth=0.9, linestyle=(0, (3, 3)))
    axes.set_title(str(attack_label))
    axes.set_xlabel("accuracy drop, pp")
    axes.set_ylabel("margin")


def fidelity_figure(found: Sequence[Fidelity]) -> Figure:
    """Draw marked minus clean accuracy: a point per seed, a bar at the mean."""
    several = len({f.victim.workload for f in found}) > 1
    figure = Figure(figsize=(5.2, 0.7 + 0.34 * len(found)))
    axes = figure.add_subplot()
    axes.axvline(0, color=INK, linewidth=0.9)
    for y, f in enumerate(found):
        axes.plot([100 * pair.difference for pair in f.pairs], [y] * len(f.pairs), "o", color=INK, ms=4, alpha=0.7)
        axes.plot(100 * f.mean_difference, y, "|", color=KEPT, ms=13, markeredgewidth=2)
    names = [f"{f.victim} ({f.victim.workload})" if several else str(f.victim) for f in found]
    axes.set_yticks(range(len(found)), names)
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_xlabel("marked − clean accuracy, pp")
    axes.set_title("Fidelity")
    return figure


def _style(index: int) -> tuple[str, str]:
    """(colour, marker) of series ``index``."""
    return COLOURS[index % len(COLOURS)], _MARKERS[index % len(_MARKERS)]
