"""ResNet-32 for CIFAR: three layers of five basic blocks, 16-32-64 channels, 464,154 parameters [he2016].

Shortcuts have no parameters (the paper's option A): where the map is halved, every second pixel is taken and the new
channels are zero, half of them before and half behind the old ones.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from wmarena.experiments.workloads.networks.base import Network

_BLOCKS = 5


class PaddedBlock(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)), with a shortcut that pads channels by zeros."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.stride = 1 if n_in == n_out else 2
        self.padding = (n_out - n_in) // 2
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride=self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)

    def shortcut(self, inputs: Tensor) -> Tensor:
        """(n, n_out, h / stride, w / stride)."""
        if self.stride == 1:
            return inputs
        return F.pad(inputs[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, n_out, h / stride, w / stride)."""
        inner = F.relu(self.bn1(self.conv1(inputs)))
        return F.relu(self.bn2(self.conv2(inner)) + self.shortcut(inputs))


class ResNet32(Network):
    """Taps for 32x32 inputs: layer1 (n, 16, 32, 32), layer2 (n, 32, 16, 16), layer3 (n, 64, 8, 8)."""

    stage_names = ("layer1", "layer2", "layer3")

    def __init__(self, n_channels: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _layer(16, 16)
        self.layer2 = _layer(16, 32)
        self.layer3 = _layer(32, 64)
        self.head = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def taps(self, inputs: Tensor) -> tuple[Tensor, ...]:
        first = self.layer1(F.relu(self.bn1(self.conv1(inputs))))
        second = self.layer2(first)
        return first, second, self.layer3(second)

    def features(self, last: Tensor) -> Tensor:
        # mean(), not adaptive pooling: the latter's backward pass is not deterministic on CUDA.
        return last.mean(dim=(2, 3))


def _layer(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(PaddedBlock(n_in, n_out), *(PaddedBlock(n_out, n_out) for _ in range(_BLOCKS - 1)))
