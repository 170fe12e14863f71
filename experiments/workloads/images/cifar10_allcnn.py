"""CIFAR-10 with ALL-CNN-C, trained as in the paper [springenberg2015]; expected accuracy 90 to 92 %.

Differs from the paper: inputs are standardised per channel, not whitened; random crops and mirroring are those of the
other CIFAR workloads.
"""

from dataclasses import dataclass
from typing import ClassVar

from wmarena.experiments.workloads.images.base import preset
from wmarena.experiments.workloads.images.cifar_data import Cifar10Workload
from wmarena.experiments.workloads.networks.allcnn import AllCnnC
from wmarena.experiments.workloads.networks.base import Network


@dataclass(frozen=True, kw_only=True)
class Cifar10AllCnn(Cifar10Workload):
    """CIFAR-10 with ALL-CNN-C, SGD in four steps, random crops and mirroring; bf16 on CUDA."""

    name: ClassVar[str] = "cifar10_allcnn"

    epochs: int = preset("epochs", 350)
    lr: float = preset("lr", 0.05)
    weight_decay: float = preset("weight_decay", 1e-3)
    milestones: tuple[int, ...] = preset("milestones", (200, 250, 300))

    def build(self) -> Network:
        return AllCnnC(self.source.input_shape[0], self.num_classes)
