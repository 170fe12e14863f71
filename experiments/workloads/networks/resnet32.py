"""ResNet-32 for CIFAR: three layers of five basic blocks, 16-32-64 channels, 464,154 parameters [he2016].

Shortcuts have no parameters (the paper's option A): where the map is halved, every second pixel is taken and the new
channels are zero, half of them before and half behind the old ones.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from wmarena.experiments.workloads.networks.resnet import BasicBlock, ResNet


class ZeroPadding(nn.Module):
    """Take every second pixel and add ``padding`` zero channels on both sides."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.padding = padding

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, c + 2 padding, h / 2, w / 2)."""
        return F.pad(inputs[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))


class PaddedBlock(BasicBlock):
    """A basic block whose shortcut pads channels by zeros."""

    def projection(self, n_in: int, n_out: int) -> nn.Module:
        return ZeroPadding((n_out - n_in) // 2)


class ResNet32(ResNet):
    """Taps for 32x32 inputs: layer1 (n, 16, 32, 32), layer2 (n, 32, 16, 16), layer3 (n, 64, 8, 8)."""

    block = PaddedBlock

    def __init__(self, n_channels: int = 3, num_classes: int = 10) -> None:
        super().__init__(n_channels, num_classes, widths=(16, 32, 64), n_blocks=5)
