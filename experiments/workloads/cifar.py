"""CIFAR-10 with ResNet-18, with random crops and mirroring."""

from dataclasses import dataclass
from typing import ClassVar

from experiments.workloads.base import preset
from experiments.workloads.cifar_data import CIFAR10, CIFAR10_STATISTICS
from experiments.workloads.data import Source
from experiments.workloads.resnet_recipe import ResNet18Workload


@dataclass(frozen=True, kw_only=True)
class Cifar10ResNet18(ResNet18Workload):
    """CIFAR-10 with ResNet-18, SGD in three steps, random crops and mirroring."""

    name: ClassVar[str] = "cifar10_resnet18"
    source: ClassVar[Source] = CIFAR10
    mean, std = CIFAR10_STATISTICS

    crop: int = preset("crop", 4)
    flip: bool = preset("flip", True)
