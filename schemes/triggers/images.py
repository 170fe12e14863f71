"""Trigger images drawn from a key: abstract pictures (waves under triangles), and glyphs (ink on white paper).

Abstract pictures replace those that Adi et al. (USENIX Security 2018, section 5.1) collected, glyphs the handwriting of
another data set that Zhang et al. (AsiaCCS 2018) use as unrelated images; neither needs a download. All arithmetic is
on integers from the key's stream, so one seed gives the same bytes, which a commitment needs, on every platform.

    wave      s(t) = 4 u (1 - u) for the first half turn, its negative for the second (u in [0, 1): a parabola that
              stays within 6 % of a sine and needs no floating point)
    image     round-down of 255 (v - min v) / (max v - min v) over each channel, v = sum of ``WAVES`` plane waves
    triangle  pixels inside become (pixel + 3 colour) / 4
    glyph     one line through ``BENDS`` random points, one dark colour, as wide as a tenth of the image's side
"""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from wmarena.schemes.commitment import tensor_bytes
from wmarena.schemes.prf import Prf

WAVES = 4
TRIANGLES = 3
BENDS = 6

_TURN = 1 << 16
_HALF = _TURN // 2
_FINE = 16
_DARK = 96
"""Ink is darker than this grey level in every channel."""


def abstract_images(prf: Prf, n: int, shape: tuple[int, ...]) -> Tensor:
    """Draw ``n`` independent images (n, channels, height, width) uint8 from the labels "waves" and "triangles"."""
    _check(shape)
    pixels = _stretched(_waves(prf, n, shape))
    _paint_triangles(pixels, prf)
    return torch.from_numpy(pixels.astype(np.uint8))


def glyph_images(prf: Prf, n: int, shape: tuple[int, ...]) -> Tensor:
    """Draw ``n`` images (n, channels, height, width) uint8 of one dark line, from the labels "bends" and "ink"."""
    _check(shape)
    channels, height, width = shape
    bends = prf.integers("bends", n * BENDS * 2, _TURN).reshape(n, BENDS, 2)
    ink = prf.integers("ink", n * channels, _DARK).reshape(n, channels, 1, 1)
    # In sixteenths of a pixel, so that distances are whole numbers.
    points = bends * np.array([_FINE * height, _FINE * width]) >> 16
    y = (_FINE * np.arange(height, dtype=np.int64) + _FINE // 2)[:, None]
    x = (_FINE * np.arange(width, dtype=np.int64) + _FINE // 2)[None, :]
    radius = max(_FINE, _FINE * min(height, width) // 20)
    on_line = np.zeros((n, 1, height, width), dtype=bool)
    for first, second in pairwise(range(BENDS)):
        on_line |= _near(points[:, first], points[:, second], y, x, radius)[:, None]
    return torch.from_numpy(np.where(on_line, ink, 255).astype(np.uint8))


def has_repeats(images: Tensor) -> bool:
    """Return True if two of the images (n, ...) are equal in every pixel."""
    in_order = sorted(tensor_bytes(image) for image in images)
    return any(first == second for first, second in pairwise(in_order))


def _check(shape: tuple[int, ...]) -> None:
    if len(shape) != 3:
        raise ValueError(f"expected an image shape (channels, height, width), got {shape}; use a workload of images")


def _waves(prf: Prf, n: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return (n, channels, height, width) int64: sums of plane waves of up to three periods per side."""
    channels, height, width = shape
    drawn = prf.integers("waves", n * WAVES * (2 + 2 * channels), _TURN).reshape(n, WAVES, 2 + 2 * channels)
    y, x = np.arange(height, dtype=np.int64)[:, None], np.arange(width, dtype=np.int64)[None, :]
    total = np.zeros((n, channels, height, width), dtype=np.int64)
    for wave in range(WAVES):
        # Turns per side in (-3, 3), in units of 1 / _TURN; each channel has its own phase and amplitude.
        rate_y, rate_x = (6 * (drawn[:, wave, axis] - _HALF) for axis in (0, 1))
        plane = rate_y[:, None, None] * y // height + rate_x[:, None, None] * x // width
        phase, amplitude = (drawn[:, wave, start : start + channels, None, None] for start in (2, 2 + channels))
        total += amplitude * _parabolic_wave(plane[:, None] + phase)
    return total


def _parabolic_wave(turns: np.ndarray) -> np.ndarray:
    """Return values in [-2^13, 2^13] for angles in units of 1 / 2^16 turn."""
    angle = turns % _TURN
    half = angle % _HALF
    # half (2^15 - half) peaks at 2^28.
    bump = half * (_HALF - half) >> 15
    wave: np.ndarray = np.where(angle < _HALF, bump, -bump)
    return wave


def _stretched(values: np.ndarray) -> np.ndarray:
    """Stretch each channel to 0..255."""
    low = values.min(axis=(2, 3), keepdims=True)
    span = np.maximum(values.max(axis=(2, 3), keepdims=True) - low, 1)
    stretched: np.ndarray = (values - low) * 255 // span
    return stretched


def _paint_triangles(pixels: np.ndarray, prf: Prf) -> None:
    """Blend triangles into (n, channels, height, width) in place."""
    n, channels, height, width = pixels.shape
    drawn = prf.integers("triangles", n * TRIANGLES * (6 + channels), _TURN).reshape(n, TRIANGLES, 6 + channels)
    y, x = np.arange(height, dtype=np.int64)[:, None], np.arange(width, dtype=np.int64)[None, :]
    for triangle in range(TRIANGLES):
        corners_y = drawn[:, triangle, 0:3] * height >> 16
        corners_x = drawn[:, triangle, 3:6] * width >> 16
        colour = drawn[:, triangle, 6:, None, None] >> 8
        inside = _inside(corners_y, corners_x, y, x)[:, None]
        pixels[...] = np.where(inside, (pixels + 3 * colour) // 4, pixels)


def _inside(corners_y: np.ndarray, corners_x: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return (n, height, width) bool: which pixels lie in the triangle with corners (n, 3), edges included."""
    left = np.ones((len(corners_y), y.size, x.size), dtype=bool)
    right = left.copy()
    for a, b in ((0, 1), (1, 2), (2, 0)):
        ay, ax, by, bx = (c[:, i, None, None] for i in (a, b) for c in (corners_y, corners_x))
        cross = (bx - ax) * (y - ay) - (by - ay) * (x - ax)
        left &= cross >= 0
        right &= cross <= 0
    inside: np.ndarray = left | right
    return inside


def _near(start: np.ndarray, end: np.ndarray, y: np.ndarray, x: np.ndarray, radius: int) -> np.ndarray:
    """Return (n, height, width) bool: points within ``radius`` of the segments from ``start`` to ``end`` (n, 2)."""
    (ay, ax), (by, bx) = ((p[:, 0, None, None], p[:, 1, None, None]) for p in (start, end))
    squared = (by - ay) ** 2 + (bx - ax) ** 2
    along = (y - ay) * (by - ay) + (x - ax) * (bx - ax)
    across = (y - ay) * (bx - ax) - (x - ax) * (by - ay)
    beside = (along >= 0) & (along <= squared) & (across**2 <= radius**2 * squared)
    at_start = (y - ay) ** 2 + (x - ax) ** 2 <= radius**2
    at_end = (y - by) ** 2 + (x - bx) ** 2 <= radius**2
    near: np.ndarray = beside | at_start | at_end
    return near
