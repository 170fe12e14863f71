"""Integers as images: QR codes of version 1 (21x21 modules), error level M, mask 0, numeric mode.

An integer below 2^30 is written with ten decimal digits. Every parameter that an encoder could choose is fixed,
so the same integer gives the same image under every library version. Modules are floor(side / 21) pixels, dark 0 on
white 255, centred, equal in all channels; the map is injective because codes can be decoded.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

MODULES = 21
"""Side of a version-1 code, in modules."""

LIMIT = 2**30
"""Integers lie in [0, LIMIT)."""

_DIGITS = 10


def qr_codes(values: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Draw one code per integer, (n, *shape) uint8.

    Args:
        values: integers in [0, 2^30).
        shape: (channels, height, width) of one image.

    Raises:
        ValueError: a side below 21 pixels, or an integer outside the range.
    """
    channels, height, width = shape
    scale = min(height, width) // MODULES
    if scale < 1:
        raise ValueError(
            f"expected images of at least {MODULES}x{MODULES} pixels for QR codes, got {height}x{width}; "
            "use a workload with larger inputs"
        )
    wrong = [v for v in values if not 0 <= v < LIMIT]
    if wrong:
        raise ValueError(f"expected integers in [0, 2^30), got {wrong[0]}")
    dark = np.array([_matrix(v) for v in values], dtype=bool).reshape(-1, MODULES, MODULES)
    painted = np.where(dark, 0, 255).astype(np.uint8).repeat(scale, axis=1).repeat(scale, axis=2)
    side = MODULES * scale
    top, left = (height - side) // 2, (width - side) // 2
    canvas = np.full((len(dark), channels, height, width), 255, dtype=np.uint8)
    canvas[:, :, top : top + side, left : left + side] = painted[:, None]
    return torch.from_numpy(canvas)


def _matrix(value: int) -> tuple[bytearray, ...]:
    # Imported here: training and most attacks encode no integer.
    import segno

    text = f"{value:0{_DIGITS}d}"
    code = segno.make_qr(text, version=1, error="m", mode="numeric", mask=0, boost_error=False)
    matrix: tuple[bytearray, ...] = code.matrix
    return matrix
