"""A secret pattern on images of one class: drawing it, applying it to images, checking a key.

    s        source class, uniform on [0, C)           t        target class, uniform on the other C - 1
    block    a rectangle at a uniform place, of 2x2 cells that are black or white with probability 1/2 each
    noise    one field for all images (or one for each), N(0, sigma^2) on pixels in [0, 1], in whole grey levels
    x + p    pixels of the block replace those of x; noise is added and clipped to [0, 255]

Target and pattern follow from the seed: a claimant can choose seeds, not patterns (a block that shows a small image
of class t would pass on every model). Images are the claimant's own; a human judge checks that they are of class s.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from wmarena.schemes.base import Samples
from wmarena.schemes.keys import Key
from wmarena.schemes.prf import Prf
from wmarena.schemes.triggers.labelled import class_count, input_shape

_CELL = 2
"""Side of a block's cells, in pixels."""

_CLEAR = -1
"""Value of a block's pattern where the image stays."""


class Stamp(ABC):
    """A family of patterns, drawn from a stream and applied to images."""

    @abstractmethod
    def draw(self, prf: Prf, n: int, shape: tuple[int, ...]) -> Tensor:
        """Draw a pattern (1, channels, height, width) int16 for all images, or (n, ...) with one for each of ``n``."""

    @abstractmethod
    def on(self, images: Tensor, pattern: Tensor) -> Tensor:
        """Apply ``pattern`` (1 or m, ...) to ``images`` (m, channels, height, width) uint8."""

    def through(self, gradient: Tensor, pattern: Tensor) -> Tensor:
        """Propagate the gradient from patterned images to plain ones; clipping counts as the identity."""
        return gradient


@dataclass(frozen=True)
class Block(Stamp):
    """Black and white cells at a random place, in place of printed text.

    Attributes:
        height, width: pixels; cut to the image where that is smaller.
    """

    height: int
    width: int

    def draw(self, prf: Prf, n: int, shape: tuple[int, ...]) -> Tensor:
        channels, *sides = shape
        height, width = min(self.height, sides[0]), min(self.width, sides[1])
        top = int(prf.integers("row", 1, sides[0] - height + 1)[0])
        left = int(prf.integers("column", 1, sides[1] - width + 1)[0])
        rows, columns = -(-height // _CELL), -(-width // _CELL)
        cells = 255 * prf.bits("cells", rows * columns).reshape(rows, columns).astype(np.int16)
        pattern = np.full((1, channels, *sides), _CLEAR, dtype=np.int16)
        pixels = cells.repeat(_CELL, axis=0).repeat(_CELL, axis=1)[:height, :width]
        pattern[:, :, top : top + height, left : left + width] = pixels
        return torch.from_numpy(pattern)

    def on(self, images: Tensor, pattern: Tensor) -> Tensor:
        return torch.where(pattern == _CLEAR, images.to(torch.int16), pattern).to(torch.uint8)

    def through(self, gradient: Tensor, pattern: Tensor) -> Tensor:
        return gradient * (pattern == _CLEAR)


@dataclass(frozen=True)
class Noise(Stamp):
    """Gaussian noise.

    Attributes:
        sigma: standard deviation, of pixels in [0, 1].
        fresh: one field for each image instead of one for all.
    """

    sigma: float
    fresh: bool = False

    def draw(self, prf: Prf, n: int, shape: tuple[int, ...]) -> Tensor:
        field = prf.normal("noise", (n if self.fresh else 1, *shape))
        return torch.from_numpy(np.rint(255 * self.sigma * field).astype(np.int16))

    def on(self, images: Tensor, pattern: Tensor) -> Tensor:
        return (images.to(torch.int16) + pattern).clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class PatternDraw:
    """One pattern with one target: the owner's, or that of a random key.

    Attributes:
        pattern: (1 or n, channels, height, width) int16.
    """

    target: int
    pattern: Tensor

    @classmethod
    def of(cls, prf: Prf, stamp: Stamp, source: int, n: int, num_classes: int, shape: tuple[int, ...]) -> Self:
        """Draw from a stream; ``target`` is uniform on the classes but ``source``."""
        target = (source + 1 + int(prf.integers("target", 1, num_classes - 1)[0])) % num_classes
        return cls(target, stamp.draw(prf, n, shape))


@dataclass(frozen=True)
class PatternKey:
    """The content of a pattern mark's key. Embedding adds the images.

    Attributes:
        source: s.
        own: target and pattern; with a field for each image 2n fields: n for ``images``, n for ``fresh``.
        images: (m, channels, height, width) uint8, of class s and trained on; empty before embedding.
        fresh: (m', ...) uint8, of class s and never trained on; may be empty.
    """

    source: int
    own: PatternDraw
    images: Tensor
    fresh: Tensor
    num_classes: int
    shape: tuple[int, ...]

    @classmethod
    def of(cls, key: Key) -> Self:
        """Read a key. Raises ValueError if it is not one of a pattern mark."""
        if not {"classes", "pattern"} <= set(key.secret):
            raise ValueError(f"expected a key with classes and a pattern, got {key!r}; draw it with keygen")
        shape = input_shape(key)
        source, target = key.secret["classes"].tolist()
        none = torch.empty((0, *shape), dtype=torch.uint8)
        return cls(
            source=source,
            own=PatternDraw(target, key.secret["pattern"]),
            images=key.secret.get("images", none),
            fresh=key.secret.get("fresh", none),
            num_classes=class_count(key),
            shape=shape,
        )

    @property
    def for_images(self) -> Tensor:
        """The pattern (1 or m, ...) of ``images``."""
        return self._part(self.own.pattern, 0, len(self.images))

    @property
    def for_fresh(self) -> Tensor:
        """The pattern (1 or m', ...) of ``fresh``."""
        return self._part(self.own.pattern, len(self.own.pattern) // 2, len(self.fresh))

    @staticmethod
    def _part(pattern: Tensor, first: int, n: int) -> Tensor:
        return pattern if len(pattern) == 1 else pattern[first : first + n]

    def another(self, prf: Prf, stamp: Stamp) -> PatternDraw:
        """Draw a random key's pattern and target for the same images."""
        return PatternDraw.of(prf, stamp, self.source, len(self.images), self.num_classes, self.shape)

    def flaw(self, key: Key, stamp: Stamp, n: int) -> str | None:
        """Return why the key can prove nothing, or None.

        Args:
            key: the key that this was read from.
            n: images that its pattern was drawn for.
        """
        if not len(self.images):
            return "the key holds no images: it was never embedded"
        due = draw_secret(key.prf, stamp, self.source, n, self.num_classes, self.shape)
        if not 0 <= self.source < self.num_classes or self.own.target != due.target:
            return "the target class is not the seed's"
        same = self.own.pattern.shape == due.pattern.shape
        # A sine may differ in its last digit between platforms, hence a tolerance of one grey level.
        if not same or int((self.own.pattern.int() - due.pattern.int()).abs().max()) > 1:
            return "the pattern is not the seed's"
        if len(self.images) > n or len(self.fresh) > n:
            return f"{len(self.images)} and {len(self.fresh)} images, the pattern is for {n} at most"
        return None


def draw_secret(prf: Prf, stamp: Stamp, source: int, n: int, num_classes: int, shape: tuple[int, ...]) -> PatternDraw:
    """Draw a key's target and pattern, with fields for ``n`` images that are trained on and ``n`` that are not."""
    return PatternDraw.of(prf, stamp, source, 2 * n, num_classes, shape)


def images_of_class(samples: Samples, label: int, n: int, prf: Prf) -> Tensor:
    """Choose at most ``n`` images (m, channels, height, width) uint8 of one class by ``prf``, on the CPU."""
    raw, labels = samples.raw()
    found = torch.nonzero(labels == label).flatten()
    chosen = torch.from_numpy(prf.permutation("chosen", len(found))[:n]).to(found.device)
    return raw[found[chosen]].cpu()
