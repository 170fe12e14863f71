"""MNIST with the network of Deep Serial Number: two minutes of training on a CPU, seconds on a GPU."""

from dataclasses import dataclass
from typing import ClassVar

from wmarena.experiments.workloads.data import DataSource
from wmarena.experiments.workloads.images.base import ImageWorkload
from wmarena.experiments.workloads.images.mnist_data import MNIST, MNIST_STATISTICS
from wmarena.experiments.workloads.networks.base import Network
from wmarena.experiments.workloads.networks.dsn import DsnMnist


@dataclass(frozen=True, kw_only=True)
class MnistDsn(ImageWorkload):
    """MNIST with the two convolutions and two dense layers of Deep Serial Number, Adam on one cosine cycle."""

    name: ClassVar[str] = "mnist_dsn"
    source: ClassVar[DataSource] = MNIST
    mean, std = MNIST_STATISTICS

    def build(self) -> Network:
        return DsnMnist()
