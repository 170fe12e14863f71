"""How steep the valley is that a mark was put into: the replicas' excess loss while it was embedded (Tartaglione)."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from wmarena.experiments.report.labels import Labels, Victim
from wmarena.experiments.report.number_format import number
from wmarena.experiments.report.svg import HUES, Panel, Scale, marker, nice_ticks, picture, polyline, tag
from wmarena.experiments.results.rows import ResultRow
from wmarena.orchestrator.plan.task import TaskId

HISTORY = "history.json"
CURVE = "steepness"
"""Name under which an embedding logs how much the loss rises when its mark is disturbed."""

_WIDTH, _HEIGHT = 340.0, 190.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 40.0, 10.0, 20.0, 34.0


@runtime_checkable
class FileStore(Protocol):
    """What is asked of a store. Raises OSError where an artifact is missing or damaged."""

    def read(self, task_id: TaskId, name: str) -> bytes:
        """One file of an artifact."""
        ...


@dataclass(frozen=True, kw_only=True)
class ValleyCurve:
    """One embedding: (step, mean loss of the disturbed models minus the loss of the model)."""

    victim: Victim
    seed: int
    points: tuple[tuple[float, float], ...]


def valleys(rows: Iterable[ResultRow], labels: Labels, store: object) -> list[ValleyCurve]:
    """Embeddings that logged their steepness; none without a store that gives files."""
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
        # An embedding that failed, or an artifact that is gone: the rest of the report stands without it.
        return ()
    return tuple((point["step"], point[CURVE]) for point in history if CURVE in point)


def valley_panel(found: Sequence[ValleyCurve], order: Sequence[Victim]) -> Panel:
    """A line per embedding."""
    steps = [step for valley in found for step, _ in valley.points]
    heights = [height for valley in found for _, height in valley.points]
    x = Scale(min(steps), max(steps), _LEFT, _WIDTH - _RIGHT)
    top = max([0.01, *heights])
    y = Scale(min([0.0, *heights]) - 0.03 * top, 1.05 * top, _HEIGHT - _BOTTOM, _TOP)
    parts = []
    for tick in nice_ticks(y.low, y.high):
        parts.append(tag("line", x1=x.start, x2=x.end, y1=y(tick), y2=y(tick), class_="grid"))
        parts.append(tag("text", f"{tick:g}".replace("-", "−"), x=x.start - 6, y=y(tick) + 3.5, class_="tick end"))
    for tick in nice_ticks(x.low, x.high, 4):
        parts.append(tag("text", f"{tick:g}", x=x(tick), y=y.start + 14, class_="tick mid"))
    parts += [
        tag("line", x1=x.start, x2=x.end, y1=y.start, y2=y.start, class_="axis"),
        tag("text", "excess loss", x=0, y=9, class_="tick"),
        tag("text", "step of the embedding", x=x.end, y=_HEIGHT - 4, class_="tick end"),
    ]
    for valley in found:
        index = order.index(valley.victim)
        parts.append(polyline([(x(a), y(b)) for a, b in valley.points], f"line s{index % HUES}"))
        step, height = valley.points[-1]
        title = f"{valley.victim}, seed {valley.seed}: {number(height, 3)} at the end"
        parts.append(marker(index, x(step), y(height), 2.6, title=title))
    label = "Excess loss of models whose mark was disturbed, over the steps of the embedding"
    drawing = picture(_WIDTH, _HEIGHT, label, parts, class_="panel")
    return Panel(caption="The valley", drawing=drawing, width=_WIDTH, height=_HEIGHT)
