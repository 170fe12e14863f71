"""Weight noise and weight shifting: add noise to the weights or subtract their mean filter, then fine-tune.

    noise     w' = w + N(0, (noise sd(w))^2)                                      convolutions and linear layers
    shifting  w' = w - shift mean_c(w) + N(0, (noise sd(w))^2)                    convolutions only, with shift > 0

    w           (C, ...) one layer's weight        sd(w)  standard deviation of the whole tensor
    mean_c(w)   (1, ...) the mean filter: a shift above 1 inverts a mark in it

Biases, norms and buffers stay. All strengths share their random direction. ``epochs`` of fine-tuning may follow; the
authors of shifting use shift 1.5, noise 1 and 10 epochs.

Source: Lukas et al. 2022 (WRT), "weight shifting". Differs from their code: layers are found by their kind, not by
names that contain "conv".
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from wmarena.attacks.base import LUKAS_2022, AttackView, Family
from wmarena.attacks.compression.channels import weight_of, weighted_layers
from wmarena.attacks.fine_tuning import RecoveringAttack, recovery_epochs, recovery_lr
from wmarena.schemes.params import param
from wmarena.schemes.prf import subseed


@dataclass(frozen=True, kw_only=True)
class WeightNoise(RecoveringAttack):
    """Add Gaussian noise to the weights, in units of each layer's spread; optionally shift filters by their mean."""

    name: ClassVar[str] = "weight_noise"
    family: ClassVar[Family] = "compress"
    paper: ClassVar[str] = LUKAS_2022

    noise: float = param(
        0.1,
        doc="standard deviation of the noise over that of the layer's weights",
        stage="attack",
        low=0,
        strength=True,
    )
    shift: float = param(
        0.0, doc="mean filters subtracted from convolutions; 0 = noise alone, on all layers", stage="attack", low=0
    )
    epochs: int = recovery_epochs()
    lr: float = recovery_lr()

    @property
    def label(self) -> str:
        return self.labelled("shift" if self.shift else "")

    def run(self, model: nn.Module, view: AttackView) -> nn.Module:
        for name, weight in self._targets(model, view).items():
            with torch.no_grad():
                # Measured before the shift, which changes the spread.
                noise = self.noise * weight.std(correction=0) * _direction(weight, view.seed, name)
                if self.shift:
                    weight.sub_(self.shift * weight.mean(dim=0, keepdim=True))
                weight.add_(noise)
        self.recover(model, view)
        return model

    def _targets(self, model: nn.Module, view: AttackView) -> dict[str, nn.Parameter]:
        """Return layer name -> weight (C, ...) to be changed."""
        layers = weighted_layers(model)
        if self.shift:
            layers = {name: m for name, m in layers.items() if not isinstance(m, nn.Linear)}
            if not layers:
                raise ValueError(
                    f"expected a network with convolutions, got none in {view.task.name}; use shift: 0 for noise alone"
                )
        return {name: weight_of(m) for name, m in layers.items()}


def _direction(weight: Tensor, seed: int, name: str) -> Tensor:
    """Draw standard normal values of ``weight``'s shape on the CPU: equal on every device and for every strength."""
    generator = torch.Generator().manual_seed(subseed(seed, "weight_noise", name))
    return torch.randn(weight.shape, generator=generator).to(weight)
