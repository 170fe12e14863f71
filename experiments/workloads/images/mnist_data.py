"""MNIST and Fashion-MNIST: 60,000 and 10,000 grey images of 28x28 each [lecun1998; xiao2017]."""

from pathlib import Path

from wmarena.experiments.workloads.data import DataSource, torchvision_download
from wmarena.experiments.workloads.images.idx import IdxFolder

MNIST_STATISTICS = ((0.1307,), (0.3081,))
"""Mean and standard deviation of the training pixels in [0, 1], per channel."""

FASHION_STATISTICS = ((0.286,), (0.353,))
"""The same of Fashion-MNIST."""


MNIST = DataSource(
    name="MNIST",
    input_shape=(1, 28, 28),
    n_train=60_000,
    n_test=10_000,
    in_root=lambda root: (IdxFolder(root / "MNIST" / "raw"),),
    download=torchvision_download("MNIST"),
    hint="copy torchvision's MNIST/raw there",
)

FASHION_MNIST = DataSource(
    name="Fashion-MNIST",
    input_shape=(1, 28, 28),
    n_train=60_000,
    n_test=10_000,
    in_root=lambda root: (IdxFolder(root / "FashionMNIST" / "raw"),),
    # Path of Debian's package of the data set.
    in_system=(IdxFolder(Path("/usr/share/datasets/fashion-mnist")),),
    download=torchvision_download("FashionMNIST"),
    hint="copy torchvision's FashionMNIST/raw there, or run `apt install dataset-fashion-mnist` (Debian, Ubuntu)",
)
