"""MNIST and Fashion-MNIST with LeNet-5: a minute of training on a CPU, seconds on a GPU."""

from dataclasses import dataclass
from typing import ClassVar

from wmarena.experiments.workloads.data import DataSource
from wmarena.experiments.workloads.images.base import ImageWorkload
from wmarena.experiments.workloads.images.mnist_data import FASHION_MNIST, FASHION_STATISTICS, MNIST, MNIST_STATISTICS
from wmarena.experiments.workloads.networks.base import Network
from wmarena.experiments.workloads.networks.lenet import LeNet5


class _LeNet5Workload(ImageWorkload):
    def build(self) -> Network:
        return LeNet5()


@dataclass(frozen=True, kw_only=True)
class MnistLeNet5(_LeNet5Workload):
    """MNIST with LeNet-5 in Caffe's variant, Adam on one cosine cycle."""

    name: ClassVar[str] = "mnist_lenet5"
    source: ClassVar[DataSource] = MNIST
    mean, std = MNIST_STATISTICS


@dataclass(frozen=True, kw_only=True)
class FashionLeNet5(_LeNet5Workload):
    """Fashion-MNIST with LeNet-5 in Caffe's variant, Adam on one cosine cycle."""

    name: ClassVar[str] = "fashion_lenet5"
    source: ClassVar[DataSource] = FASHION_MNIST
    mean, std = FASHION_STATISTICS
