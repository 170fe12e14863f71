"""A subset of an image data set, stored on the device as one uint8 tensor.

No loader processes, no Python code per image: an epoch is one shuffled index, a batch is one gather. Order and
augmentation of an epoch depend on (seed, epoch) alone, so training can resume at any epoch.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from wmarena.experiments.workloads.images.pixels import Pixels
from wmarena.experiments.workloads.splits import stratified
from wmarena.schemes.base import Batch
from wmarena.schemes.prf import Prf, derive, subseed

_ROOT = b"wmarena: shares of training data"


class ImageSamples:
    """Images with labels (``wmarena.schemes.base.Samples``); holds no other split.

    Args:
        raw: (n, c, h, w) uint8.
        labels: (n,) int64.
        pixels: computes inputs; both tensors are moved to its device.
    """

    def __init__(self, raw: Tensor, labels: Tensor, pixels: Pixels) -> None:
        if raw.dtype != torch.uint8 or raw.dim() != 4 or labels.shape != raw.shape[:1]:
            raise ValueError(
                "expected uint8 images (n, c, h, w) and labels (n,), "
                f"got {raw.dtype} {tuple(raw.shape)} and {tuple(labels.shape)}"
            )
        self._raw = raw.to(pixels.device)
        self._labels = labels.to(pixels.device, torch.int64)
        self._pixels = pixels

    def __len__(self) -> int:
        return len(self._raw)

    def batches(self, batch_size: int, *, seed: int, epoch: int, augment: bool = True) -> Iterator[Batch]:
        """Yield one shuffled epoch of batches, the last one perhaps partial; depends on (seed, epoch) only."""
        shuffle = torch.Generator().manual_seed(subseed(seed, "order", epoch))
        order = torch.randperm(len(self), generator=shuffle).to(self._pixels.device)
        generator = torch.Generator().manual_seed(subseed(seed, "augment", epoch))
        moves = self._pixels.draw_augmentation(len(self), generator) if augment else None
        for start in range(0, len(self), batch_size):
            index = order[start : start + batch_size]
            raw = self._raw[index]
            if moves is not None:
                raw = self._pixels.augmented(raw, moves[start : start + batch_size])
            yield self._pixels.inputs(raw), self._labels[index]

    def in_order(self, batch_size: int = 1000) -> Iterator[Batch]:
        """Yield all samples once, unshuffled, unaugmented."""
        for raw, labels in zip(torch.split(self._raw, batch_size), torch.split(self._labels, batch_size), strict=True):
            yield self._pixels.inputs(raw), labels

    def raw(self) -> Batch:
        """Return all (images (n, c, h, w) uint8, labels (n,)), in order."""
        return self._raw, self._labels

    def share(self, fraction: float, *, domain: str, seed: int) -> "ImageSamples":
        """Copy a class-stratified random share; shares of different domains overlap by chance only.

        Args:
            fraction: in (0, 1]; rounded to whole samples, at least one a class.
            domain, seed: select the draw; equal values give equal shares.

        Raises:
            ValueError: ``fraction`` is outside (0, 1].
        """
        return self._subset(self._draw(fraction, domain, seed))

    def split(self, fraction: float, *, domain: str, seed: int) -> tuple["ImageSamples", "ImageSamples"]:
        """Copy (rest, part): ``part`` is the result of ``share``, ``rest`` all other samples.

        Raises:
            ValueError: ``fraction`` is outside (0, 1], or the rest would be empty.
        """
        part = self._draw(fraction, domain, seed)
        if len(part) == len(self):
            raise ValueError(
                f"expected a fraction that leaves some of {len(self)} samples, got {fraction}; "
                "a part has one sample of every class at least"
            )
        return self._subset(np.setdiff1d(np.arange(len(self)), part)), self._subset(part)

    def _draw(self, fraction: float, domain: str, seed: int) -> np.ndarray:
        if not 0 < fraction <= 1:
            raise ValueError(f"expected a fraction in (0, 1], got {fraction}")
        labels = self._labels.cpu().numpy()
        n = max(len(np.unique(labels)), round(fraction * len(self)))
        return stratified(labels, n, Prf(derive(_ROOT, domain, str(seed))))

    def _subset(self, chosen: np.ndarray) -> "ImageSamples":
        index = torch.from_numpy(chosen).to(self._pixels.device)
        return ImageSamples(self._raw[index], self._labels[index], self._pixels)
