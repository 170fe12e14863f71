"""MNIST and Fashion-MNIST: 60,000 and 10,000 grey images of 28x28, drop-in twins [lecun1998; xiao2017]."""

from pathlib import Path

from wmarena.experiments.workloads.data import Container, DataSource
from wmarena.experiments.workloads.images.idx import IdxFolder

MNIST_STATISTICS = ((0.1307,), (0.3081,))
"""Mean and standard deviation of the training pixels in [0, 1], per channel."""

FASHION_STATISTICS = ((0.286,), (0.353,))
"""The same of Fashion-MNIST."""


def _mnist_folders(root: Path) -> tuple[Container, ...]:
    return (IdxFolder(root / "MNIST" / "raw"),)


def _fashion_folders(root: Path) -> tuple[Container, ...]:
    return (IdxFolder(root / "FashionMNIST" / "raw"),)


def _download_mnist(root: Path) -> None:
    # Imported here: loading torchvision takes a second, and only a download needs it.
    from torchvision.datasets import MNIST

    MNIST(str(root), download=True)


def _download_fashion(root: Path) -> None:
    from torchvision.datasets import FashionMNIST

    FashionMNIST(str(root), download=True)


MNIST = DataSource(
    name="MNIST",
    input_shape=(1, 28, 28),
    n_train=60_000,
    n_test=10_000,
    in_root=_mnist_folders,
    download=_download_mnist,
    hint="copy torchvision's MNIST/raw there",
)

FASHION_MNIST = DataSource(
    name="Fashion-MNIST",
    input_shape=(1, 28, 28),
    n_train=60_000,
    n_test=10_000,
    in_root=_fashion_folders,
    # Where Debian's package of the data set puts it.
    in_system=(IdxFolder(Path("/usr/share/datasets/fashion-mnist")),),
    download=_download_fashion,
    hint="copy torchvision's FashionMNIST/raw there, or run `apt install dataset-fashion-mnist` (Debian, Ubuntu)",
)
