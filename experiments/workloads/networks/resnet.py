"""ResNet-18 for small images: 3x3 stem without pooling, basic blocks of 64-128-256-512 channels [he2016].

The usual CIFAR form of the ImageNet network: the 7x7 stem of stride 2 and the max-pool are replaced by one 3x3
convolution of stride 1, so that 32x32 inputs reach the fourth layer as 4x4 maps.
"""

from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from wmarena.experiments.workloads.networks.base import Network


class BasicBlock(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)); stride 2 and a 1x1 shortcut where the channels change."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride=1 if n_in == n_out else 2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.shortcut = nn.Identity() if n_in == n_out else self.projection(n_in, n_out)

    def projection(self, n_in: int, n_out: int) -> nn.Module:
        """Map (n, n_in, h, w) to (n, n_out, h / 2, w / 2)."""
        return nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride=2, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, n_out, h / stride, w / stride)."""
        inner = F.relu(self.bn1(self.conv1(inputs)))
        return F.relu(self.bn2(self.conv2(inner)) + self.shortcut(inputs))


class ResNet(Network):
    """A 3x3 stem and layers of equal blocks; the taps are the first three layers."""

    stage_names = ("layer1", "layer2", "layer3")
    block: ClassVar[type[BasicBlock]] = BasicBlock

    def __init__(self, n_channels: int, num_classes: int, widths: tuple[int, ...], n_blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        for i, (n_in, n_out) in enumerate(pairwise((widths[0], *widths)), start=1):
            blocks = [self.block(n_in, n_out), *(self.block(n_out, n_out) for _ in range(n_blocks - 1))]
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
        self.head = nn.Linear(widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def taps(self, inputs: Tensor) -> tuple[Tensor, ...]:
        return super().taps(F.relu(self.bn1(self.conv1(inputs))))

    def features(self, last: Tensor) -> Tensor:
        # mean(), not adaptive pooling: the latter's backward pass is not deterministic on CUDA.
        return last.mean(dim=(2, 3))


class ResNet18(ResNet):
    """Taps for 32x32 inputs: layer1 (n, 64, 32, 32), layer2 (n, 128, 16, 16), layer3 (n, 256, 8, 8)."""

    def __init__(self, n_channels: int, num_classes: int = 10) -> None:
        super().__init__(n_channels, num_classes, widths=(64, 128, 256, 512), n_blocks=2)

    def features(self, last: Tensor) -> Tensor:
        return super().features(self.get_submodule("layer4")(last))
