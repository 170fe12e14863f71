"""ResNet-18 for small images: 3x3 stem without pooling, basic blocks of 64-128-256-512 channels [he2016].

The usual CIFAR form of the ImageNet network: the 7x7 stem of stride 2 and the max-pool are replaced by one 3x3
convolution of stride 1, so that 32x32 inputs reach the fourth layer as 4x4 maps.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from wmarena.experiments.workloads.networks.base import Network


class BasicBlock(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)); the shortcut is 1x1 where the shape changes."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride=stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, n_out, h / stride, w / stride)."""
        inner = F.relu(self.bn1(self.conv1(inputs)))
        return F.relu(self.bn2(self.conv2(inner)) + self.shortcut(inputs))


class ResNet18(Network):
    """Taps for 32x32 inputs: layer1 (n, 64, 32, 32), layer2 (n, 128, 16, 16), layer3 (n, 256, 8, 8)."""

    stage_names = ("layer1", "layer2", "layer3")

    def __init__(self, n_channels: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_channels, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(BasicBlock(64, 64, 1), BasicBlock(64, 64, 1))
        self.layer2 = nn.Sequential(BasicBlock(64, 128, 2), BasicBlock(128, 128, 1))
        self.layer3 = nn.Sequential(BasicBlock(128, 256, 2), BasicBlock(256, 256, 1))
        self.layer4 = nn.Sequential(BasicBlock(256, 512, 2), BasicBlock(512, 512, 1))
        self.head = nn.Linear(512, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def taps(self, inputs: Tensor) -> tuple[Tensor, ...]:
        first = self.layer1(F.relu(self.bn1(self.conv1(inputs))))
        second = self.layer2(first)
        return first, second, self.layer3(second)

    def features(self, last: Tensor) -> Tensor:
        # mean(), not adaptive pooling: the latter's backward pass is not deterministic on CUDA.
        pooled: Tensor = self.layer4(last).mean(dim=(2, 3))
        return pooled
