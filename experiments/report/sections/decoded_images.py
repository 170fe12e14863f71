"""What the weights spell: the emblem that a white-box mark was read as, before and after each attack (Tartaglione)."""

import base64
import binascii
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from wmarena.experiments.report.labels import AttackLabel, Victim
from wmarena.experiments.report.sections.overview import SchemeSummary
from wmarena.experiments.results.rows import ResultRow, required

MOST_PIXELS = 1 << 20
"""Images with more pixels than this are no emblem."""


@dataclass(frozen=True, kw_only=True)
class DecodedImage:
    """One decoded image.

    Attributes:
        statistic: Pearson's r of the values read with those written.
        png: the image as a file.
    """

    victim: Victim
    assault: AttackLabel
    seed: int
    strength: float | None
    statistic: float
    found: bool
    png: bytes

    @property
    def source(self) -> str:
        """The image as a data URI."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


def readings(found: Sequence[SchemeSummary]) -> list[list[DecodedImage]]:
    """One list per scheme: the published model of its first seed, then the decisive suspect of each attack on it."""
    out = []
    for summary in found:
        duels = [*([summary.unattacked] if summary.unattacked else []), *summary.duels]
        seeds = sorted({s.seed for duel in duels for s in duel.seeds if decoded(s.row) is not None})
        line = [
            reading
            for duel in duels
            for s in duel.seeds
            if s.seed in seeds[:1] and (reading := _reading(summary.victim, duel.assault, s.row)) is not None
        ]
        if line:
            out.append(line)
    return out


def _reading(victim: Victim, assault: AttackLabel, row: ResultRow) -> DecodedImage | None:
    pixels = decoded(row)
    if pixels is None:
        return None
    raw = io.BytesIO()
    Image.fromarray(pixels).save(raw, format="PNG")
    return DecodedImage(
        victim=victim,
        assault=assault,
        seed=row.seed,
        strength=row.strength,
        statistic=required(row.statistic),
        found=bool(row.verdict),
        png=raw.getvalue(),
    )


def decoded(row: ResultRow) -> "np.ndarray | None":
    """(h, w) or (h, w, 3) uint8 from the verdict's ``decoded`` and ``decoded_shape``; None where they make no image."""
    found = row.detail("verdict")
    try:
        raw = base64.b64decode(str(found.get("decoded") or ""), validate=True)
        shape = tuple(int(side) for side in found.get("decoded_shape") or ())
    except (binascii.Error, TypeError, ValueError):
        return None
    if len(shape) == 3 and shape[2] == 1:
        shape = shape[:2]
    proper = len(shape) == 2 or (len(shape) == 3 and shape[2] == 3)
    if not proper or min(shape) < 1 or len(raw) != int(np.prod(shape)) or len(raw) > 3 * MOST_PIXELS:
        return None
    return np.frombuffer(raw, np.uint8).reshape(shape)
