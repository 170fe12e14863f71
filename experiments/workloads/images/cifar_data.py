"""CIFAR-10: 50,000 and 10,000 colour images of 32x32 [krizhevsky2009], from official batches or Parquet."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from wmarena.experiments.workloads.data import Container, DamagedData, Dataset, DataSource, Images, torchvision_download
from wmarena.experiments.workloads.images.base import ImageWorkload, preset
from wmarena.experiments.workloads.images.encoded import ParquetPair

CIFAR10_STATISTICS = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
"""Mean and standard deviation of the official training pixels in [0, 1], per channel."""


@dataclass(frozen=True)
class _OfficialBatches(Container):
    """The unpacked official archive, read by torchvision, which checks every file's MD5 before it unpickles it."""

    root: Path

    def __str__(self) -> str:
        return f"{self.root / 'cifar-10-batches-py'} (official batches)"

    def present(self) -> bool:
        return (self.root / "cifar-10-batches-py" / "batches.meta").is_file()

    def read(self) -> Dataset:
        return Dataset(self._images(train=True), self._images(train=False))

    def _images(self, *, train: bool) -> Images:
        # Imported here: loading torchvision takes a second, and copies in Parquet do not need it.
        from torchvision.datasets import CIFAR10 as OFFICIAL

        try:
            data = OFFICIAL(str(self.root), train=train)
        except RuntimeError as error:
            raise DamagedData(f"expected the official batches with their MD5 sums, got {self}: {error}") from None
        return Images(np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)), np.asarray(data.targets, dtype=np.int64))


CIFAR10 = DataSource(
    name="CIFAR-10",
    input_shape=(3, 32, 32),
    n_train=50_000,
    n_test=10_000,
    in_root=lambda root: (_OfficialBatches(root), ParquetPair(root / "cifar10", "cifar10")),
    download=torchvision_download("CIFAR10"),
    hint="unpack cifar-10-python.tar.gz there",
)


@dataclass(frozen=True, kw_only=True)
class Cifar10Workload(ImageWorkload):
    """CIFAR-10 with SGD in steps, batches of 128, random crops and mirroring; bf16 on CUDA."""

    source: ClassVar[DataSource] = CIFAR10
    mean, std = CIFAR10_STATISTICS

    batch_size: int = preset("batch_size", 128)
    optimiser: str = preset("optimiser", "sgd")
    schedule: str = preset("schedule", "step")
    crop: int = preset("crop", 4)
    flip: bool = preset("flip", True)
    precision: str = preset("precision", "bf16")
