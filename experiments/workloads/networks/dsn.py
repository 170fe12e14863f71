"""The networks of Deep Serial Number for 28x28 grey and 32x32 colour images: convolutions, then dense layers.

No batch norm: statistics of stamped and raw images differ, and one set of running averages fits neither. The paper
(appendix A) gives channels and widths only; convolutions are padded here, so that a stamp at the border is seen as
often as any other. Initialised as PyTorch's layers are [tang2020].
"""

from torch import nn

from wmarena.experiments.workloads.networks.base import DenseOnConvolutions


class DsnMnist(DenseOnConvolutions):
    """Taps for 28x28 inputs: stage1 (n, 32, 14, 14), stage2 (n, 32, 7, 7), fc1 (n, 120)."""

    stage_names = ("stage1", "stage2", "fc1")

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stage1 = _stage(1, 32, n_convolutions=1)
        self.stage2 = _stage(32, 32, n_convolutions=1)
        self.fc1 = nn.Linear(32 * 7 * 7, 120)
        self.head = nn.Linear(120, num_classes)


class DsnGtsrb(DenseOnConvolutions):
    """Taps for 32x32 inputs: (n, 32, 16, 16), (n, 64, 8, 8), (n, 128, 4, 4), fc1 (n, 512)."""

    stage_names = ("stage1", "stage2", "stage3", "fc1")

    def __init__(self, num_classes: int = 43) -> None:
        super().__init__()
        self.stage1 = _stage(3, 32, n_convolutions=2)
        self.stage2 = _stage(32, 64, n_convolutions=2)
        self.stage3 = _stage(64, 128, n_convolutions=2)
        self.fc1 = nn.Linear(128 * 4 * 4, 512)
        self.head = nn.Linear(512, num_classes)


def _stage(n_in: int, n_out: int, *, n_convolutions: int) -> nn.Sequential:
    """Convolutions 3x3 with ReLU, then max-pooling by two."""
    layers: list[nn.Module] = []
    for channels in (n_in, *[n_out] * (n_convolutions - 1)):
        layers += [nn.Conv2d(channels, n_out, 3, padding=1), nn.ReLU()]
    # Windows do not overlap, so max-pooling's backward pass is deterministic on CUDA too.
    return nn.Sequential(*layers, nn.MaxPool2d(2))
