"""CIFAR-10 with ALL-CNN-C, trained as its authors did [springenberg2015]; 90 to 92 % are to be expected.

Differs from the paper: inputs are standardised per channel, not whitened; random crops and mirroring are those of the
other CIFAR workloads.
"""

from dataclasses import dataclass
from typing import ClassVar

from wmarena.experiments.workloads.data import DataSource
from wmarena.experiments.workloads.images.base import ImageWorkload, preset
from wmarena.experiments.workloads.images.cifar_data import CIFAR10, CIFAR10_STATISTICS
from wmarena.experiments.workloads.networks.allcnn import AllCnnC
from wmarena.experiments.workloads.networks.base import Network


@dataclass(frozen=True, kw_only=True)
class Cifar10AllCnn(ImageWorkload):
    """CIFAR-10 with ALL-CNN-C, SGD in four steps, random crops and mirroring; bf16 on CUDA."""

    name: ClassVar[str] = "cifar10_allcnn"
    source: ClassVar[DataSource] = CIFAR10
    mean, std = CIFAR10_STATISTICS

    epochs: int = preset("epochs", 350)
    lr: float = preset("lr", 0.05)
    batch_size: int = preset("batch_size", 128)
    weight_decay: float = preset("weight_decay", 1e-3)
    optimiser: str = preset("optimiser", "sgd")
    schedule: str = preset("schedule", "step")
    milestones: tuple[int, ...] = preset("milestones", (200, 250, 300))
    crop: int = preset("crop", 4)
    flip: bool = preset("flip", True)
    precision: str = preset("precision", "bf16")

    def build(self) -> Network:
        return AllCnnC(self.source.input_shape[0], self.num_classes)
