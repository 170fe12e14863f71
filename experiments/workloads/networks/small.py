"""Two networks that train in seconds on one CPU thread: a CNN with batch norm, and an MLP."""

from torch import Tensor, nn
from torch.nn import functional as F

from wmarena.experiments.workloads.networks.base import Network


class SmallCnn(Network):
    """Three stages of convolution 3x3, batch norm and ReLU (16, 32, 64 channels), global average pool, dense.

    Taps for 24x24 inputs: stage1 (n, 16, 12, 12), stage2 (n, 32, 6, 6), stage3 (n, 64, 6, 6).
    """

    stage_names = ("stage1", "stage2", "stage3")

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stage1 = _stage(1, 16, pool=True)
        self.stage2 = _stage(16, 32, pool=True)
        self.stage3 = _stage(32, 64, pool=False)
        self.head = nn.Linear(64, num_classes)

    def features(self, last: Tensor) -> Tensor:
        # mean(), not adaptive pooling: the latter's backward pass is not deterministic on CUDA.
        return last.mean(dim=(2, 3))


class SmallMlp(Network):
    """Three hidden layers of 256, 128 and 64 units with ReLU; the taps are the hidden layers."""

    stage_names = ("hidden1", "hidden2", "hidden3")

    def __init__(self, n_inputs: int, num_classes: int = 10) -> None:
        super().__init__()
        self.hidden1 = nn.Linear(n_inputs, 256)
        self.hidden2 = nn.Linear(256, 128)
        self.hidden3 = nn.Linear(128, 64)
        self.head = nn.Linear(64, num_classes)

    def taps(self, inputs: Tensor) -> tuple[Tensor, ...]:
        first = F.relu(self.hidden1(inputs.flatten(1)))
        second = F.relu(self.hidden2(first))
        return first, second, F.relu(self.hidden3(second))


def _stage(n_in: int, n_out: int, *, pool: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()]
    # Windows do not overlap, so max-pooling's backward pass is deterministic on CUDA too.
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))
