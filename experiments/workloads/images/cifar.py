"""CIFAR-10 with ResNet-18, random crops and mirroring."""

from dataclasses import dataclass
from typing import ClassVar

from wmarena.experiments.workloads.data import DataSource
from wmarena.experiments.workloads.images.base import preset
from wmarena.experiments.workloads.images.cifar_data import CIFAR10, CIFAR10_STATISTICS
from wmarena.experiments.workloads.images.resnet_recipe import ResNet18Workload


@dataclass(frozen=True, kw_only=True)
class Cifar10ResNet18(ResNet18Workload):
    """CIFAR-10 with ResNet-18, SGD in three steps, random crops and mirroring."""

    name: ClassVar[str] = "cifar10_resnet18"
    source: ClassVar[DataSource] = CIFAR10
    mean, std = CIFAR10_STATISTICS

    crop: int = preset("crop", 4)
    flip: bool = preset("flip", True)
