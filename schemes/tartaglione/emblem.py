"""The picture that is embedded: the letters WM, white on a colour gradient; public and not random.

It is drawn in integers at any size, so every machine has the same bytes.
"""

import numpy as np

MIN_SIDE = 12
"""Pixels; below this size the letters are illegible."""

_LETTERS = (
    "#...#.#...#",
    "#...#.##.##",
    "#...#.#.#.#",
    "#.#.#.#.#.#",
    "#.#.#.#...#",
    "##.##.#...#",
    "#...#.#...#",
)
_CELLS = 13
"""The picture is a grid of 13x13 cells; the letters have 11x7 of them, in the middle."""

_BRIGHTEST = 160
"""The gradient's largest value, darker than the letters."""


def emblem(side: int, channels: int) -> np.ndarray:
    """Draw (side, side, channels) uint8; the channels brighten to the right, downwards, and to the left.

    Args:
        side: pixels, at least ``MIN_SIDE``.
        channels: 3 (red, green, blue) or 1 (grey).

    Raises:
        ValueError: ``side`` or ``channels`` is none of these.
    """
    if side < MIN_SIDE or channels not in (1, 3):
        raise ValueError(f"expected a side of {MIN_SIDE} or more and 1 or 3 channels, got {side} and {channels}")
    ramp = np.arange(side) * _BRIGHTEST // (side - 1)
    right = np.broadcast_to(ramp, (side, side))
    picture = np.stack([right, right.T, right[:, ::-1]], axis=2)[:, :, :channels].astype(np.uint8)
    picture[_letters(side)] = 255
    return picture


def _letters(side: int) -> np.ndarray:
    """Return (side, side) bool: where the letters are, by the nearest cell."""
    cells = np.zeros((_CELLS, _CELLS), dtype=bool)
    rows = np.array([[mark == "#" for mark in row] for row in _LETTERS])
    top, left = (_CELLS - rows.shape[0]) // 2, (_CELLS - rows.shape[1]) // 2
    cells[top : top + rows.shape[0], left : left + rows.shape[1]] = rows
    nearest = np.arange(side) * _CELLS // side
    return cells[np.ix_(nearest, nearest)]
