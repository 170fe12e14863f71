"""Base classes of networks: named taps, and a linear output layer after the last of them."""

from collections.abc import Iterable
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from wmarena.schemes.base import SplitAt


class Extractor(nn.Module):
    """The part of a network before its output layer; shares its parameters."""

    def __init__(self, network: "Network") -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, head.in_features)."""
        return self.network.features(self.network.taps(inputs)[-1])


class Network(nn.Module):
    """A classifier whose forward pass is ``head(features(taps(inputs)[-1]))``.

    Taps and predictions share their code, so a mark read from the taps is a mark of what is served.

    Attributes:
        stage_names: one name per tap, in order.
        head: the output layer.
    """

    stage_names: ClassVar[tuple[str, ...]]
    head: nn.Linear

    def taps(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Outputs of the named stages, each (n, channels[, h, w]); by default each stage is a submodule."""
        return self._in_turn(self.stage_names, inputs)

    def _in_turn(self, names: Iterable[str], inputs: Tensor) -> tuple[Tensor, ...]:
        """Outputs of the named submodules, each applied to the output of the one before."""
        found: list[Tensor] = []
        for name in names:
            inputs = self.get_submodule(name)(inputs)
            found.append(inputs)
        return tuple(found)

    def features(self, last: Tensor) -> Tensor:
        """(n, head.in_features) from the last tap; by default the tap itself."""
        return last

    def split(self, at: SplitAt) -> tuple[nn.Module, nn.Module]:
        """(extractor, predictor) that share this network's parameters: ``network(x) == predictor(extractor(x))``."""
        return self.split_before_dense() if at == "dense" else (Extractor(self), self.head)

    def split_before_dense(self) -> tuple[nn.Module, nn.Module]:
        """Split where the convolutions end; by default at the head."""
        return Extractor(self), self.head

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, num_classes) logits."""
        logits: Tensor = self.head(self.features(self.taps(inputs)[-1]))
        return logits


class DenseOnConvolutions(Network):
    """Named stages of convolutions, one hidden dense layer ``fc1`` with ReLU, a dense output layer."""

    fc1: nn.Linear

    def convolutions(self) -> list[nn.Module]:
        """The convolutional stages as modules, in order."""
        return [self.get_submodule(name) for name in self.stage_names[:-1]]

    def convolve(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Outputs of the convolutional stages; calls registered modules only, so that torch.fx can trace it."""
        return self._in_turn(self.stage_names[:-1], inputs)

    def taps(self, inputs: Tensor) -> tuple[Tensor, ...]:
        stages = self.convolve(inputs)
        return *stages, F.relu(self.fc1(stages[-1].flatten(1)))

    def split_before_dense(self) -> tuple[nn.Module, nn.Module]:
        predictor = nn.Sequential(nn.Flatten(), self.fc1, nn.ReLU(), self.head)
        return nn.Sequential(*self.convolutions()), predictor
