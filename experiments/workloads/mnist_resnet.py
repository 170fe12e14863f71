"""MNIST and Fashion-MNIST with ResNet-18; images get a black border to 32x32, and no augmentation."""

from dataclasses import dataclass
from typing import ClassVar

from experiments.workloads.data import Source
from experiments.workloads.mnist_data import FASHION_MNIST, FASHION_STATISTICS, MNIST, MNIST_STATISTICS
from experiments.workloads.resnet_recipe import ResNet18Workload


@dataclass(frozen=True, kw_only=True)
class MnistResNet18(ResNet18Workload):
    """MNIST with ResNet-18, SGD in three steps."""

    name: ClassVar[str] = "mnist_resnet18"
    source: ClassVar[Source] = MNIST
    mean, std = MNIST_STATISTICS
    pad: ClassVar[int] = 2


@dataclass(frozen=True, kw_only=True)
class FashionResNet18(ResNet18Workload):
    """Fashion-MNIST with ResNet-18, SGD in three steps."""

    name: ClassVar[str] = "fashion_resnet18"
    source: ClassVar[Source] = FASHION_MNIST
    mean, std = FASHION_STATISTICS
    pad: ClassVar[int] = 2
