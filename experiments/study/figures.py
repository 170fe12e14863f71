"""Draws a study's figures as SVG, with text as text, and PNG. Equal trials give equal files."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.interpolate import griddata
from scipy.stats import norm

from wmarena.experiments.report.charts.figures import COLOURS, INK, KEPT, LOST, SOFT, STYLE, save
from wmarena.experiments.study.documents import TrialDocument
from wmarena.experiments.study.gamma import Statistics
from wmarena.experiments.study.pareto import costs, feasible, front, hypervolumes
from wmarena.experiments.study.words import GAMMA
from wmarena.orchestrator.plan.proposals import Choices, Direction, Range, Space

_PAIR = 6.4
_MOST_CONTOURS = 6


def study_figures(
    folder: Path,
    documents: Sequence[TrialDocument],
    directions: Mapping[str, Direction],
    space: Space,
    importance: Mapping[str, Mapping[str, float]],
    best: Statistics | None,
) -> list[Path]:
    """Draw ``history``, ``importance``, ``contour-...``, ``front`` and ``gamma``, each only if it has data."""
    written: list[Path] = []
    with mpl.rc_context(STYLE):
        for name, figure in _drawn(documents, directions, space, importance, best):
            written += save(figure, folder / name)
    return written


def _drawn(
    documents: Sequence[TrialDocument],
    directions: Mapping[str, Direction],
    space: Space,
    importance: Mapping[str, Mapping[str, float]],
    best: Statistics | None,
) -> Iterator[tuple[str, Figure]]:
    found = feasible(documents)
    if found:
        yield "history", history_figure(documents, directions)
    if any(importance.values()):
        yield "importance", importance_figure(importance)
    ranges = [name for name, part in space.items() if isinstance(part, Range) and name != GAMMA]
    numeric = [name for name in ranges if len({d["params"][name] for d in found}) > 2]
    for number, (x, y) in enumerate(list(combinations(numeric, 2))[:_MOST_CONTOURS]):
        if len(found) >= 4:
            yield f"contour-{number}", contour_figure(found, directions, space, x, y)
    if len(directions) > 1 and found:
        yield "front", front_figure(documents, directions)
    if best is not None and best.null and best.positives():
        yield "gamma", gamma_figure(best)


def history_figure(documents: Sequence[TrialDocument], directions: Mapping[str, Direction]) -> Figure:
    """Plot each objective by trial: feasible ones filled; with one objective, the best so far as a line."""
    figure = Figure(figsize=(_PAIR, 2.3 * len(directions) + 0.3), layout="constrained")
    panels = figure.subplots(len(directions), 1, squeeze=False).flat
    for axes, (name, direction) in zip(panels, directions.items(), strict=True):
        valued = [d for d in documents if d["values"]]
        for kept, fill in ((True, KEPT), (False, "white")):
            part = [d for d in valued if d["feasible"] is kept]
            label = "keeps every limit" if kept else "breaks a limit"
            xs, ys = [d["number"] for d in part], [d["values"][name] for d in part]
            if part:
                axes.plot(xs, ys, "o", ms=4, color=KEPT, mfc=fill, label=label)
        pruned = [d["number"] for d in documents if d["state"] == "pruned"]
        if pruned:
            axes.plot(
                pruned, [0.02] * len(pruned), "|", color=LOST, label="pruned", transform=axes.get_xaxis_transform()
            )
        found = feasible(documents)
        if len(directions) == 1 and found:
            best = np.maximum.accumulate if direction == "maximize" else np.minimum.accumulate
            axes.step(
                [d["number"] for d in found], best([d["values"][name] for d in found]), where="post", color=INK, lw=1
            )
        axes.set_ylabel(name)
        axes.set_title(f"{name} ({direction})")
    axes.set_xlabel("trial")
    axes.legend(loc="best", fontsize=7)
    return figure


def importance_figure(importance: Mapping[str, Mapping[str, float]]) -> Figure:
    """Plot the share of each objective's variance that each parameter explains."""
    shown = {objective: shares for objective, shares in importance.items() if shares}
    names = list(dict.fromkeys(name for shares in shown.values() for name in shares))
    figure = Figure(figsize=(_PAIR, 0.8 + 0.34 * len(names) * max(1, len(shown))), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(shown)
    for number, (objective, shares) in enumerate(shown.items()):
        places = [i + (number - (len(shown) - 1) / 2) * height for i in range(len(names))]
        axes.barh(
            places, [shares.get(name, 0.0) for name in names], height * 0.9, color=COLOURS[number], label=objective
        )
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the variance (fANOVA)")
    if len(shown) > 1:
        axes.legend(fontsize=7)
    axes.set_title("Importance")
    return figure


def contour_figure(
    found: Sequence[TrialDocument], directions: Mapping[str, Direction], space: Space, x: str, y: str
) -> Figure:
    """Plot each objective over two parameters: trials as points, interpolated in between."""
    figure = Figure(figsize=(3.4 * len(directions), 2.9), layout="constrained")
    panels = figure.subplots(1, len(directions), squeeze=False).flat
    for axes, name in zip(panels, directions, strict=True):
        xs, ys = (_scaled([d["params"][p] for d in found], space[p]) for p in (x, y))
        values = np.array([d["values"][name] for d in found])
        grid_x, grid_y = np.meshgrid(np.linspace(xs.min(), xs.max(), 40), np.linspace(ys.min(), ys.max(), 40))
        if len(set(zip(xs, ys, strict=True))) >= 4 and np.ptp(values) > 0:
            surface = griddata((xs, ys), values, (grid_x, grid_y), method="nearest")
            smooth = _linear(xs, ys, values, grid_x, grid_y)
            surface = np.where(np.isnan(smooth), surface, smooth)
            drawn = axes.contourf(grid_x, grid_y, surface, levels=10, cmap="cividis", alpha=0.85)
            figure.colorbar(drawn, ax=axes)
        axes.plot(xs, ys, "o", ms=3, color="white", mec=INK, mew=0.6)
        axes.set_xlabel(_axis(x, space[x]))
        axes.set_ylabel(_axis(y, space[y]))
        axes.set_title(name)
    return figure


def _linear(xs: Any, ys: Any, values: Any, grid_x: Any, grid_y: Any) -> Any:
    """Interpolate linearly; all NaN for collinear points, which have no triangulation."""
    if np.linalg.matrix_rank(np.column_stack([xs - xs.mean(), ys - ys.mean()]), tol=1e-9) < 2:
        return np.full_like(grid_x, np.nan)
    return griddata((xs, ys), values, (grid_x, grid_y), method="linear", rescale=True)


def _scaled(values: Sequence[float], part: Range | Choices) -> Any:
    return np.log10(values) if isinstance(part, Range) and part.log else np.array(values, dtype=float)


def _axis(name: str, part: Range | Choices) -> str:
    return f"log10 {short(name)}" if isinstance(part, Range) and part.log else short(name)


def short(path: str) -> str:
    """Return a parameter's last part, for an axis."""
    return path.rpartition(".")[2]


def front_figure(documents: Sequence[TrialDocument], directions: Mapping[str, Direction]) -> Figure:
    """Plot the Pareto front in its first two objectives, and the hypervolume by trial."""
    names = list(directions)[:2]
    found, best = feasible(documents), front(documents, directions)
    figure = Figure(figsize=(_PAIR, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(*([d["values"][n] for d in found] for n in names), "o", ms=3.5, color=SOFT, alpha=0.6, label="trials")
    line = sorted(best, key=lambda d: costs(d, directions))
    left.plot(*([d["values"][n] for d in line] for n in names), "o-", ms=4.5, color=KEPT, lw=1, label="front")
    left.set_xlabel(f"{names[0]} ({directions[names[0]]})")
    left.set_ylabel(f"{names[1]} ({directions[names[1]]})")
    left.set_title("Pareto front")
    left.legend(fontsize=7)
    right.step([d["number"] for d in found], hypervolumes(documents, directions), where="post", color=KEPT)
    right.set_xlabel("trial")
    right.set_title("Hypervolume")
    return figure


def gamma_figure(found: Statistics) -> Figure:
    """Plot rates against γ, ROC and DET, with 95 % bands (Clopper-Pearson)."""
    grid = np.array(found.thresholds())
    positive = {"marked": found.marked, **found.attacked}
    figure = Figure(figsize=(9.6, 3.0), layout="constrained")
    rates, roc, det = figure.subplots(1, 3)
    false = np.array([found.false_positive_interval(g) for g in grid])
    seen = np.array([np.mean(np.array(found.null) >= g) for g in grid])
    rates.fill_between(grid, false[:, 0], false[:, 1], step="pre", color=SOFT, alpha=0.2, lw=0)
    rates.step(grid, seen, color=INK, lw=1.2, ls=(0, (4, 2)), label="unmarked")
    everyone = [("all", None), *((name, name) for name in found.attacked)] if found.attacked else [("marked", None)]
    for number, (label, attack) in enumerate(everyone):
        colour = COLOURS[number % len(COLOURS)]
        power = np.array([found.power(g, attack) for g in grid], dtype=float)
        band = np.array([found.power_interval(g, attack) for g in grid])
        rates.step(grid, power, color=colour, lw=1.2, label=label)
        if number == 0:
            for axes, x in ((rates, grid), (roc, seen)):
                axes.fill_between(x, band[:, 0], band[:, 1], step="pre", color=colour, alpha=0.12, lw=0)
        roc.step(seen, power, where="post", color=colour, lw=1.2, label=label)
        det.plot(_probit(seen), _probit(1 - power), "o-", ms=2.5, color=colour, lw=1, label=label)
    if found.own is not None:
        rates.axvline(found.own, color=INK, lw=0.8, ls=(0, (3, 3)))
    _name(rates, "γ", "share that passes", f"γ ({len(found.null)} unmarked, {sum(map(len, positive.values()))} marked)")
    _name(roc, "false positives", "power", "ROC")
    _name(det, "false positives", "misses", "DET (normal deviates)")
    ticks = [0.001, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95]
    det.set_xticks(_probit(np.array(ticks)), [f"{t:g}" for t in ticks], fontsize=6, rotation=60)
    det.set_yticks(_probit(np.array(ticks)), [f"{t:g}" for t in ticks], fontsize=6)
    rates.legend(fontsize=6)
    return figure


def _probit(rates: Any) -> Any:
    return norm.ppf(np.clip(rates, 5e-4, 1 - 5e-4))


def _name(axes: Axes, x: str, y: str, title: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title)
