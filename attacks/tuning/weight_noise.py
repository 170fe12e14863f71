"""Weight noise and weight shifting: blur the weights, or take the mean filter out of them, and heal the task.

    noise     w' = w + N(0, (noise sd(w))^2)                                      convolutions and linear layers
    shifting  w' = w - shift mean_c(w) + N(0, (noise sd(w))^2)                    convolutions only, with shift > 0

    w           (C, ...) one layer's weight        sd(w)  standard deviation of the whole tensor
    mean_c(w)   (1, ...) the mean filter: a mark in the mean filter is turned upside down by a shift above 1

Biases, norms and buffers stay. All strengths share their random direction. ``epochs`` of fine-tuning follow where
asked for; the authors of shifting take shift 1.5, noise 1 and 10 epochs.

Source: Lukas et al. 2022 (WRT), "weight shifting". Differs from their code: layers are found by their kind, not by
names that contain "conv".
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from wmarena.attacks.base import Attack, AttackView, Family
from wmarena.attacks.compression.channels import weight_of, weighted_layers
from wmarena.attacks.fine_tuning import sgd, tune_all
from wmarena.attacks.knowledge import Knowledge
from wmarena.schemes.params import param
from wmarena.schemes.prf import subseed


@dataclass(frozen=True, kw_only=True)
class WeightNoise(Attack):
    """Add Gaussian noise to the weights, in units of each layer's spread; optionally shift filters by their mean."""

    name: ClassVar[str] = "weight_noise"
    family: ClassVar[Family] = "compress"
    knows: ClassVar[frozenset[Knowledge]] = frozenset({"weights"})
    paper: ClassVar[str] = (
        "Lukas et al. 2022, SoK: How Robust is Image Classification Deep Neural Network Watermarking?"
    )

    noise: float = param(
        0.1,
        doc="standard deviation of the noise, in those of the layer's weights",
        stage="attack",
        low=0,
        strength=True,
    )
    shift: float = param(
        0.0, doc="times the mean filter that convolutions lose; 0 = noise alone, on all layers", stage="attack", low=0
    )
    epochs: int = param(0, doc="epochs of fine-tuning afterwards; 0 = none", stage="attack", low=0)
    lr: float = param(1e-3, doc="learning rate of that fine-tuning", stage="attack", low=0, low_open=True)

    @property
    def label(self) -> str:
        shifted = f"{self.name}-shift" if self.shift else self.name
        return f"{shifted}-ft{self.epochs}" if self.epochs else shifted

    def run(self, model: nn.Module, view: AttackView) -> nn.Module:
        for name, weight in self._targets(model, view).items():
            with torch.no_grad():
                noise = self.noise * weight.std(correction=0) * _direction(weight, view.seed, name)
                if self.shift:
                    weight.sub_(self.shift * weight.mean(dim=0, keepdim=True))
                weight.add_(noise)
        tune_all(model, view, sgd(epochs=self.epochs, lr=self.lr))
        return model

    def _targets(self, model: nn.Module, view: AttackView) -> dict[str, nn.Parameter]:
        """Layer name -> weight (C, ...) of what is changed."""
        layers = weighted_layers(model)
        if self.shift:
            layers = {name: m for name, m in layers.items() if not isinstance(m, nn.Linear)}
            if not layers:
                raise ValueError(
                    f"expected a network with convolutions, got none in {view.task.name}; use shift: 0 for noise alone"
                )
        return {name: weight_of(m) for name, m in layers.items()}


def _direction(weight: Tensor, seed: int, name: str) -> Tensor:
    """Standard normal values like ``weight``, drawn on the CPU: the same on every device and for every strength."""
    generator = torch.Generator().manual_seed(subseed(seed, "weight_noise", name))
    return torch.randn(weight.shape, generator=generator).to(weight)
