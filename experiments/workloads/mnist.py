"""MNIST and Fashion-MNIST with LeNet-5: a minute of training on a CPU, seconds on a GPU."""

from dataclasses import dataclass
from typing import ClassVar

from experiments.workloads.base import ImageWorkload
from experiments.workloads.data import Source
from experiments.workloads.mnist_data import FASHION_MNIST, FASHION_STATISTICS, MNIST, MNIST_STATISTICS
from experiments.workloads.networks.base import Network
from experiments.workloads.networks.lenet import LeNet5


@dataclass(frozen=True, kw_only=True)
class MnistLeNet5(ImageWorkload):
    """MNIST with LeNet-5 in Caffe's variant, Adam on one cosine cycle."""

    name: ClassVar[str] = "mnist_lenet5"
    source: ClassVar[Source] = MNIST
    mean, std = MNIST_STATISTICS

    def build(self) -> Network:
        return LeNet5()


@dataclass(frozen=True, kw_only=True)
class FashionLeNet5(ImageWorkload):
    """Fashion-MNIST with LeNet-5 in Caffe's variant, Adam on one cosine cycle."""

    name: ClassVar[str] = "fashion_lenet5"
    source: ClassVar[Source] = FASHION_MNIST
    mean, std = FASHION_STATISTICS

    def build(self) -> Network:
        return LeNet5()
