"""Serial numbers that unlock a model with one valid number (DSN).

The accuracies are drawn sorted, from the highest to the lowest: in the order of the numbers the best cell would reveal
the secret.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

from wmarena.experiments.report.labels import Labels, Victim
from wmarena.experiments.report.number_format import percent
from wmarena.experiments.report.svg import Panel, picture, tag
from wmarena.experiments.results.rows import ResultRow

UNLOCKED = 0.5
"""Accuracy above which a serial number counts as unlocking."""

COLUMNS = 32
_CELL = 10.0
_TONES = 10


@dataclass(frozen=True, kw_only=True)
class StampMap:
    """Accuracy of one marked model under every serial number, highest first."""

    victim: Victim
    seed: int
    accuracies: tuple[float, ...]

    @property
    def share(self) -> float:
        """Share of serial numbers that unlock the model."""
        return sum(a > UNLOCKED for a in self.accuracies) / len(self.accuracies)


def stamp_maps(rows: Iterable[ResultRow], labels: Labels) -> list[StampMap]:
    """Collect published marked models whose verdict has the accuracy of every serial number."""
    out = []
    for row in rows:
        if row.is_unattacked and row.is_done:
            found = row.detail("verdict").get("stamp_accuracies")
            if found:
                sorted_down = tuple(sorted(map(float, found), reverse=True))
                out.append(StampMap(victim=labels.victim(row), seed=row.seed, accuracies=sorted_down))
    return out


def stamp_panel(found: StampMap) -> Panel:
    """Draw a cell per serial number, darker for higher accuracy, and a line at ``UNLOCKED``."""
    lines = -(-len(found.accuracies) // COLUMNS)
    width, height = COLUMNS * _CELL, lines * _CELL
    tones: dict[int, list[int]] = {}
    for i, accuracy in enumerate(found.accuracies):
        tones.setdefault(min(_TONES - 1, int(_TONES * accuracy)), []).append(i)
    parts = [_tone(tone, places) for tone, places in sorted(tones.items())]
    unlocking = round(found.share * len(found.accuracies))
    parts.append(tag("path", tag("title", "accuracy 50 %"), d=_border(unlocking), class_="frontier"))
    label = (
        f"{found.victim}, seed {found.seed}: accuracy under each of {len(found.accuracies)} serial numbers, "
        f"sorted; {percent(found.share)} unlock"
    )
    note = f"seed {found.seed}: {percent(found.share)} unlock"
    drawing = picture(width, height, label, parts, class_="panel stamps")
    return Panel(caption=str(found.victim), drawing=drawing, width=width, height=height, note=note)


def _tone(tone: int, places: Iterable[int]) -> Markup:
    cells = "".join(f"M{i % COLUMNS * _CELL:g} {i // COLUMNS * _CELL:g}h9.4v9.4h-9.4z" for i in places)
    tooltip = tag("title", f"accuracy {percent(tone / _TONES, 0)} to {percent((tone + 1) / _TONES, 0)}")
    return tag("path", tooltip, d=cells, class_="tone", fill_opacity=0.06 + 0.94 * tone / (_TONES - 1))


def _border(unlocking: int) -> str:
    """Build the path below the last unlocking cell."""
    full, rest = divmod(unlocking, COLUMNS)
    right, top = COLUMNS * _CELL, full * _CELL
    if not rest:
        return f"M0 {top:g}H{right:g}"
    return f"M0 {top + _CELL:g}H{rest * _CELL:g}V{top:g}H{right:g}"
