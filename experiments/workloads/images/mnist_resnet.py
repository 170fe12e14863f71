"""MNIST and Fashion-MNIST with ResNet-18; images are padded to 32x32 in black; no augmentation."""

from dataclasses import dataclass
from typing import ClassVar

from wmarena.experiments.workloads.data import DataSource
from wmarena.experiments.workloads.images.mnist_data import FASHION_MNIST, FASHION_STATISTICS, MNIST, MNIST_STATISTICS
from wmarena.experiments.workloads.images.resnet_recipe import ResNet18Workload


@dataclass(frozen=True, kw_only=True)
class MnistResNet18(ResNet18Workload):
    """MNIST with ResNet-18, SGD in three steps."""

    name: ClassVar[str] = "mnist_resnet18"
    source: ClassVar[DataSource] = MNIST
    mean, std = MNIST_STATISTICS
    pad: ClassVar[int] = 2


@dataclass(frozen=True, kw_only=True)
class FashionResNet18(ResNet18Workload):
    """Fashion-MNIST with ResNet-18, SGD in three steps."""

    name: ClassVar[str] = "fashion_resnet18"
    source: ClassVar[DataSource] = FASHION_MNIST
    mean, std = FASHION_STATISTICS
    pad: ClassVar[int] = 2
