"""CIFAR-10 with ResNet-32, trained as its authors did [he2016]; about 92.5 % are to be expected.

The paper's 64,000 steps, divided by ten after 32,000 and 48,000, are given in epochs of 45,000 images.
"""

from dataclasses import dataclass
from typing import ClassVar

from wmarena.experiments.workloads.data import DataSource
from wmarena.experiments.workloads.images.base import ImageWorkload, preset
from wmarena.experiments.workloads.images.cifar_data import CIFAR10, CIFAR10_STATISTICS
from wmarena.experiments.workloads.networks.base import Network
from wmarena.experiments.workloads.networks.resnet32 import ResNet32


@dataclass(frozen=True, kw_only=True)
class Cifar10ResNet32(ImageWorkload):
    """CIFAR-10 with ResNet-32, SGD in three steps, random crops and mirroring; bf16 on CUDA."""

    name: ClassVar[str] = "cifar10_resnet32"
    source: ClassVar[DataSource] = CIFAR10
    mean, std = CIFAR10_STATISTICS

    epochs: int = preset("epochs", 182)
    lr: float = preset("lr", 0.1)
    batch_size: int = preset("batch_size", 128)
    weight_decay: float = preset("weight_decay", 1e-4)
    optimiser: str = preset("optimiser", "sgd")
    schedule: str = preset("schedule", "step")
    milestones: tuple[int, ...] = preset("milestones", (91, 136))
    crop: int = preset("crop", 4)
    flip: bool = preset("flip", True)
    precision: str = preset("precision", "bf16")

    def build(self) -> Network:
        return ResNet32(self.source.input_shape[0], self.num_classes)
