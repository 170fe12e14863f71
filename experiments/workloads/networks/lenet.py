"""LeNet-5 in Caffe's variant: 431,080 parameters, one ReLU, no batch norm [lecun1998; jia2014].

conv 5x5-20, max-pool 2, conv 5x5-50, max-pool 2, dense 500 with ReLU, dense C. Caffe's ``lenet.prototxt`` has no
ReLU after its convolutions; max-pooling is the non-linearity there. Initialised as PyTorch's layers are.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from wmarena.experiments.workloads.networks.base import DenseOnConvolutions


class LeNet5(DenseOnConvolutions):
    """Taps for 28x28 inputs: pool1 (n, 20, 12, 12), pool2 (n, 50, 4, 4), fc1 (n, 500) after its ReLU."""

    stage_names = ("pool1", "pool2", "fc1")

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * 4 * 4, 500)
        self.head = nn.Linear(500, num_classes)

    def convolve(self, inputs: Tensor) -> tuple[Tensor, ...]:
        pool1 = F.max_pool2d(self.conv1(inputs), 2)
        return pool1, F.max_pool2d(self.conv2(pool1), 2)

    def convolutions(self) -> list[nn.Module]:
        return [nn.Sequential(conv, nn.MaxPool2d(2)) for conv in (self.conv1, self.conv2)]
