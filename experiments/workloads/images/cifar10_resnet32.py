"""CIFAR-10 with ResNet-32, trained as in the paper [he2016]; expected accuracy about 92.5 %.

The paper's 64,000 steps, with the learning rate divided by ten after 32,000 and 48,000, in epochs of 45,000 images.
"""

from dataclasses import dataclass
from typing import ClassVar

from wmarena.experiments.workloads.images.base import preset
from wmarena.experiments.workloads.images.cifar_data import Cifar10Workload
from wmarena.experiments.workloads.networks.base import Network
from wmarena.experiments.workloads.networks.resnet32 import ResNet32


@dataclass(frozen=True, kw_only=True)
class Cifar10ResNet32(Cifar10Workload):
    """CIFAR-10 with ResNet-32, SGD in three steps, random crops and mirroring; bf16 on CUDA."""

    name: ClassVar[str] = "cifar10_resnet32"

    epochs: int = preset("epochs", 182)
    lr: float = preset("lr", 0.1)
    weight_decay: float = preset("weight_decay", 1e-4)
    milestones: tuple[int, ...] = preset("milestones", (91, 136))

    def build(self) -> Network:
        return ResNet32(self.source.input_shape[0], self.num_classes)
