"""Excess loss of replicas with a perturbed mark, logged while embedding (Tartaglione)."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from wmarena.experiments.report.labels import Labels, Victim
from wmarena.experiments.report.number_format import MINUS, number
from wmarena.experiments.report.svg import Panel, Scale, marker, picture, series_line, tag, y_grid
from wmarena.experiments.results.rows import ResultRow
from wmarena.orchestrator.plan.task import TaskId

HISTORY = "history.json"
CURVE = "steepness"
"""Logged name of the rise of the loss when the mark is perturbed."""

_WIDTH, _HEIGHT = 340.0, 190.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 40.0, 10.0, 20.0, 34.0


@runtime_checkable
class FileStore(Protocol):
    """Required method of the store. Raises OSError if an artifact is missing or damaged."""

    def read(self, task_id: TaskId, name: str) -> bytes:
        """Read one file of an artifact."""
        ...


@dataclass(frozen=True, kw_only=True)
class ValleyCurve:
    """One embedding: (step, mean loss of the perturbed replicas minus the loss of the model)."""

    victim: Victim
    seed: int
    points: tuple[tuple[float, float], ...]


def valleys(rows: Iterable[ResultRow], labels: Labels, store: object) -> list[ValleyCurve]:
    """Collect embeddings that logged their steepness; none if the store has no ``read``."""
    if not isinstance(store, FileStore):
        return []
    first: dict[str, ResultRow] = {}
    for row in rows:
        first.setdefault(row.embed_id, row)
    out = []
    for embed_id, row in first.items():
        points = _steepness(store, TaskId(embed_id))
        if len(points) > 1:
            out.append(ValleyCurve(victim=labels.victim(row), seed=row.seed, points=points))
    return out


def _steepness(store: FileStore, embed: TaskId) -> tuple[tuple[float, float], ...]:
    try:
        history = json.loads(store.read(embed, HISTORY))
    except (OSError, ValueError):
        # The embedding failed or its artifact was deleted: omit the curve.
        return ()
    return tuple((point["step"], point[CURVE]) for point in history if CURVE in point)


def valley_panel(found: Sequence[ValleyCurve], order: Sequence[Victim]) -> Panel:
    """Draw a line per embedding."""
    steps = [step for valley in found for step, _ in valley.points]
    heights = [height for valley in found for _, height in valley.points]
    x = Scale(min(steps), max(steps), _LEFT, _WIDTH - _RIGHT)
    top = max([0.01, *heights])
    y = Scale(min([0.0, *heights]) - 0.03 * top, 1.05 * top, _HEIGHT - _BOTTOM, _TOP)
    parts = y_grid(x, y, y.ticks(), lambda tick: f"{tick:g}".replace("-", MINUS))
    for tick in x.ticks(4):
        parts.append(tag("text", f"{tick:g}", x=x(tick), y=y.start + 14, class_="tick mid"))
    parts += [
        tag("line", x1=x.start, x2=x.end, y1=y.start, y2=y.start, class_="axis"),
        tag("text", "excess loss", x=0, y=9, class_="tick"),
        tag("text", "step of the embedding", x=x.end, y=_HEIGHT - 4, class_="tick end"),
    ]
    for valley in found:
        index = order.index(valley.victim)
        parts.append(series_line([(x(a), y(b)) for a, b in valley.points], index))
        step, height = valley.points[-1]
        title = f"{valley.victim}, seed {valley.seed}: {number(height, 3)} at the end"
        parts.append(marker(index, x(step), y(height), 2.6, title=title))
    label = "Excess loss of models whose mark was disturbed, over the steps of the embedding"
    drawing = picture(_WIDTH, _HEIGHT, label, parts, class_="panel")
    return Panel(caption="The valley", drawing=drawing, width=_WIDTH, height=_HEIGHT)
