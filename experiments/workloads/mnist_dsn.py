"""MNIST with the network of Deep Serial Number: two minutes of training on a CPU, seconds on a GPU."""

from dataclasses import dataclass
from typing import ClassVar

from experiments.workloads.base import ImageWorkload
from experiments.workloads.data import Source
from experiments.workloads.mnist_data import MNIST, MNIST_STATISTICS
from experiments.workloads.networks.base import Network
from experiments.workloads.networks.dsn import DsnMnist


@dataclass(frozen=True, kw_only=True)
class MnistDsn(ImageWorkload):
    """MNIST with the two convolutions and two dense layers of Deep Serial Number, Adam on one cosine cycle."""

    name: ClassVar[str] = "mnist_dsn"
    source: ClassVar[Source] = MNIST
    mean, std = MNIST_STATISTICS

    def build(self) -> Network:
        return DsnMnist()
