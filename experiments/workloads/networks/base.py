"""What every network offers: named taps, and a linear output layer that follows the last of them."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from wmarena.schemes.base import SplitAt


class Extractor(nn.Module):
    """What a network computes before its output layer, as a module that shares its parameters."""

    def __init__(self, network: "Network") -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, head.in_features)."""
        return self.network.features(self.network.taps(inputs)[-1])


class Network(nn.Module, ABC):
    """A classifier whose forward pass is ``head(features(taps(inputs)[-1]))``.

    Taps and predictions share their code, so a mark read from the taps is a mark of what is served.

    Attributes:
        stage_names: one name per tap, in order.
        head: the output layer.
    """

    stage_names: ClassVar[tuple[str, ...]]
    head: nn.Linear

    @abstractmethod
    def taps(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Outputs of the named stages, each (n, channels[, h, w])."""

    def features(self, last: Tensor) -> Tensor:
        """(n, head.in_features) from the last tap; the tap itself unless a subclass has more to compute."""
        return last

    def split(self, at: SplitAt) -> tuple[nn.Module, nn.Module]:
        """(extractor, predictor) that share this network's parameters: ``network(x) == predictor(extractor(x))``."""
        return self.split_before_dense() if at == "dense" else (Extractor(self), self.head)

    def split_before_dense(self) -> tuple[nn.Module, nn.Module]:
        """The split where the convolutions end; at the head unless a subclass has hidden dense layers."""
        return Extractor(self), self.head

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, num_classes) logits."""
        logits: Tensor = self.head(self.features(self.taps(inputs)[-1]))
        return logits
