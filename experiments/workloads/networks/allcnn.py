"""ALL-CNN-C: nine convolutions, 1,369,738 parameters, no batch norm [springenberg2015].

    stage1  3x3-96, 3x3-96, 3x3-96 stride 2     stage2  3x3-192, 3x3-192, 3x3-192 stride 2
    stage3  3x3-192 unpadded, 1x1-192           head    1x1-C, global average pool

ReLU after every convolution of the stages; dropout 0.2 on the inputs and 0.5 behind either strided convolution.

Differs from the paper: pooling comes before the 1x1 convolution to C channels, which is then a linear layer. The two
commute, but the ReLU between them in the paper cannot be kept. Weights are He's normal draws, biases zero: PyTorch's
default shrinks the signal in a network as deep as this without normalisation.
"""

from torch import Tensor, nn

from wmarena.experiments.workloads.networks.base import Network


class AllCnnC(Network):
    """Taps for 32x32 inputs: stage1 (n, 96, 16, 16), stage2 (n, 192, 8, 8), stage3 (n, 192, 6, 6)."""

    stage_names = ("stage1", "stage2", "stage3")

    def __init__(self, n_channels: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        self.stage1 = _strided_stage(n_channels, 96, dropout=0.2)
        self.stage2 = _strided_stage(96, 192, dropout=0.5)
        self.stage3 = nn.Sequential(
            nn.Dropout(0.5), nn.Conv2d(192, 192, 3), nn.ReLU(), nn.Conv2d(192, 192, 1), nn.ReLU()
        )
        self.head = nn.Linear(192, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def features(self, last: Tensor) -> Tensor:
        # mean(), not adaptive pooling: the latter's backward pass is not deterministic on CUDA.
        return last.mean(dim=(2, 3))


def _strided_stage(n_in: int, n_out: int, *, dropout: float) -> nn.Sequential:
    """Dropout, two convolutions, a third one of stride 2."""
    layers: list[nn.Module] = [nn.Dropout(dropout)]
    for n_channels, stride in ((n_in, 1), (n_out, 1), (n_out, 2)):
        layers += [nn.Conv2d(n_channels, n_out, 3, stride=stride, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)
