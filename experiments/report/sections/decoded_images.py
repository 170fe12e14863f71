"""Images decoded from a white-box mark, before and after each attack (Tartaglione)."""

import base64
import binascii
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from wmarena.experiments.report.labels import AttackLabel, Victim
from wmarena.experiments.report.sections.overview import SchemeSummary
from wmarena.experiments.results.rows import ResultRow

MOST_PIXELS = 1 << 20
"""Largest accepted number of pixels."""


@dataclass(frozen=True, kw_only=True)
class DecodedImage:
    """One decoded image.

    Attributes:
        row: the verdict; its statistic is Pearson's r between decoded and embedded values.
        png: the image as a file.
    """

    victim: Victim
    attack_label: AttackLabel
    row: ResultRow
    png: bytes

    @property
    def source(self) -> str:
        """The image as a data URI."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


def decoded_images_of(found: Sequence[SchemeSummary]) -> list[list[DecodedImage]]:
    """Decode per scheme: the published model of its first seed, then the decisive suspect of each attack on it."""
    out = []
    for summary in found:
        comparisons = [*([summary.unattacked] if summary.unattacked else []), *summary.comparisons]
        seeds = sorted({s.seed for comparison in comparisons for s in comparison.seeds if decoded(s.row) is not None})
        line = [
            image
            for comparison in comparisons
            for s in comparison.seeds
            if s.seed in seeds[:1]
            and (image := _decoded_image(summary.victim, comparison.attack_label, s.row)) is not None
        ]
        if line:
            out.append(line)
    return out


def _decoded_image(victim: Victim, attack_label: AttackLabel, row: ResultRow) -> DecodedImage | None:
    pixels = decoded(row)
    if pixels is None:
        return None
    raw = io.BytesIO()
    Image.fromarray(pixels).save(raw, format="PNG")
    return DecodedImage(victim=victim, attack_label=attack_label, row=row, png=raw.getvalue())


def decoded(row: ResultRow) -> "np.ndarray | None":
    """Parse ``decoded`` and ``decoded_shape`` of the verdict to (h, w) or (h, w, 3) uint8; None if invalid."""
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
