"""Small networks of every kind that channels flow through, with nothing left at its initial value, and rewrites."""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wmarena.experiments.workloads.networks.lenet import LeNet5
from wmarena.experiments.workloads.networks.resnet import ResNet18
from wmarena.experiments.workloads.networks.small import SmallCnn, SmallMlp
from wmarena.schemes.symmetry.groups import channel_groups


class BottleneckNet(nn.Module):
    """Stem of 12 channels, two bottleneck blocks (1x1, 3x3, 1x1) with 24 channels out, projection in the first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.project = nn.Sequential(nn.Conv2d(12, 24, 1, stride=2), nn.BatchNorm2d(24))
        self.first = _bottleneck(12, 6, 24, stride=2)
        self.second = _bottleneck(24, 8, 24, stride=1)
        self.head = nn.Linear(24, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.stem(inputs)
        x = F.relu(self.first(x) + self.project(x))
        x = F.relu(self.second(x) + x)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _bottleneck(n_in: int, n_mid: int, n_out: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(n_in, n_mid, 1, bias=False),
        nn.BatchNorm2d(n_mid),
        nn.ReLU(),
        nn.Conv2d(n_mid, n_mid, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(n_mid),
        nn.ReLU(),
        nn.Conv2d(n_mid, n_out, 1, bias=False),
        nn.BatchNorm2d(n_out),
    )


class PaddedNet(nn.Module):
    """One block whose shortcut takes every second pixel and pads 8 channels to 16 with zeros (option A)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 10, 3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(10)
        self.conv2 = nn.Conv2d(10, 16, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        x = F.relu(self.stem(inputs))
        inner = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        x = F.relu(inner + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)))
        return self.head(x.mean(dim=(2, 3)))


class MixedNet(nn.Module):
    """Concatenation, depthwise convolution, batch norm after flattening, a sigmoid, a view, no norm in between."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(2, 6, 3, padding=1)
        self.right = nn.Conv2d(2, 7, 3, padding=1)
        self.depthwise = nn.Conv2d(13, 13, 3, padding=1, groups=13)
        self.mix = nn.Conv2d(13, 9, 1)
        self.flat_norm = nn.BatchNorm1d(9 * 4)
        self.hidden1 = nn.Linear(9 * 4, 11)
        self.hidden2 = nn.Linear(11, 10)
        self.head = nn.Linear(10, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        both = torch.cat([F.relu(self.left(inputs)), F.leaky_relu(self.right(inputs), 0.1)], dim=1)
        x = F.max_pool2d(F.relu(self.mix(F.dropout(self.depthwise(both), 0.5, self.training))), 4)
        x = torch.sigmoid(self.hidden1(self.flat_norm(x.view(x.size(0), -1))))
        return self.head(torch.relu(self.hidden2(x) * 2))


class PlainResidualNet(nn.Module):
    """Residual blocks without batch norm: the stream's readers also write it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(20, 16)
        self.blocks = nn.ModuleList([nn.Linear(16, 16) for _ in range(3)])
        self.head = nn.Linear(16, 5)

    def forward(self, inputs: Tensor) -> Tensor:
        x = F.relu(self.stem(inputs))
        for block in self.blocks:
            x = F.relu(x + block(x))
        return self.head(x)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[int]]] = {
    "digits_cnn": (SmallCnn, (1, 24, 24), [16, 32, 64]),
    "digits_mlp": (lambda: SmallMlp(576), (1, 24, 24), [256, 128, 64]),
    "lenet5": (LeNet5, (1, 28, 28), [20, 50, 500]),
    "resnet18": (
        lambda: ResNet18(3),
        (3, 8, 8),
        [64, 64, 64, 128, 128, 128, 256, 256, 256, 512, 512, 512],
    ),
    "bottleneck": (BottleneckNet, (3, 8, 8), [12, 24, 6, 6, 8, 8]),
    "option_a": (PaddedNet, (1, 8, 8), [10]),
    "mixed": (MixedNet, (2, 8, 8), [6, 7, 9, 11, 10]),
    "plain_residual": (PlainResidualNet, (20,), [16]),
}
"""Name -> (factory, input shape, widths of its groups in any order)."""


def network(name: str, seed: int = 0) -> nn.Module:
    """A network in eval mode whose biases, norms and statistics are drawn from ``seed``, none at its initial value."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = NETWORKS[name][0]()
        for tensor in model.state_dict().values():
            if tensor.dim() == 1:
                tensor.copy_(0.5 + torch.rand(tensor.shape))
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("bias"):
                parameter.data.sub_(1)
    return model.eval()


def some_inputs(name: str, n: int = 64) -> Tensor:
    """(n, *shape) standard normal inputs of a network."""
    return torch.randn(n, *NETWORKS[name][1], generator=torch.Generator().manual_seed(7))


def rewritten(
    model: nn.Module, inputs: Tensor, *, seed: int = 0, factor: float = 1.0, permuted: bool = True
) -> nn.Module:
    """A copy with all groups permuted at random (unless not) and all gains log-uniform in [1/factor, factor]."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for group in channel_groups(other, inputs):
        if permuted:
            group.permute(torch.randperm(group.width, generator=generator))
        for gain in group.gains:
            exponents = 2 * torch.rand(gain.width, generator=generator, dtype=torch.float64) - 1
            gain.scale(torch.exp(exponents * math.log(factor)))
    return other


def noisy(model: nn.Module, share: float, *, seed: int = 0) -> nn.Module:
    """A copy whose parameters moved by ``share`` of each tensor's standard deviation."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for parameter in other.parameters():
        values = parameter.data
        values.add_(share * values.std() * torch.randn(values.shape, generator=generator))
    return other


def largest_change(first: nn.Module, second: nn.Module) -> float:
    """Largest absolute difference between two networks' tensors."""
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)
