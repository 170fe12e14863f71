"""Preprocessing of stored pixels: augmentation, padding, normalisation, in batches on the device."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


class Pixels:
    """Preprocessor from uint8 batches (n, c, h, w) to normalised float32 inputs (n, c, h + 2 pad, w + 2 pad).

    Args:
        mean, std: per channel, of pixels scaled to [0, 1].
        device: device of the inputs.
        pad: black border added to every image, in pixels.
        crop: augmentation: a black border of this many pixels, then a random crop of the original size; 0 = none.
        flip: augmentation: mirror half of the images left to right.
    """

    def __init__(
        self,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        pad: int = 0,
        crop: int = 0,
        flip: bool = False,
    ) -> None:
        self.device = device
        self._pad, self._crop, self._flip = pad, crop, flip
        self._mean = torch.tensor([255.0 * m for m in mean], device=device).view(1, -1, 1, 1)
        self._std = torch.tensor([255.0 * s for s in std], device=device).view(1, -1, 1, 1)

    def inputs(self, raw: Tensor) -> Tensor:
        """(n, c, h + 2 pad, w + 2 pad) float32 from uint8 pixels on any device."""
        pixels = raw.to(self.device, non_blocking=True)
        if self._pad:
            pixels = F.pad(pixels, (self._pad,) * 4)
        return pixels.to(torch.float32, memory_format=torch.channels_last).sub_(self._mean).div_(self._std)

    def draw_augmentation(self, n: int, generator: torch.Generator) -> Tensor | None:
        """Draw (n, 3) int64: row and column of the crop, and 1 to mirror; None without augmentation.

        Drawn on the CPU for a whole epoch: equal on every kind of device, and one transfer per epoch.
        """
        if not self._crop and not self._flip:
            return None
        corner = torch.randint(0, 2 * self._crop + 1, (n, 2), generator=generator)
        mirror = torch.randint(0, 2 if self._flip else 1, (n, 1), generator=generator)
        return torch.cat([corner, mirror], dim=1).to(self.device)

    def augmented(self, raw: Tensor, moves: Tensor) -> Tensor:
        """Crop and mirror the batch ``raw`` (n, c, h, w) by ``moves`` (n, 3), in one gather."""
        n, _, height, width = raw.shape
        padded = F.pad(raw, (self._crop,) * 4)
        row, column, mirror = (m.view(n, 1, 1) for m in moves.unbind(1))
        rows = row + torch.arange(height, device=raw.device).view(1, height, 1)
        forward = torch.arange(width, device=raw.device).view(1, 1, width)
        columns = column + torch.where(mirror == 1, width - 1 - forward, forward)
        image = torch.arange(n, device=raw.device).view(n, 1, 1)
        # Index tensors around a slice: the result is (n, h, w, c).
        return padded[image, :, rows, columns].permute(0, 3, 1, 2)
