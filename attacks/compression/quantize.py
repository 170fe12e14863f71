"""Weight quantisation: round every layer's weights to few values, stored as floats.

    w' = low + step round((w - low) / step),   step = (high - low) / (2^bits - 1)

    low, high   least and largest weight of the tensor, or of one output channel of it (``per_channel``);
                -max |w| and max |w| with ``symmetric`` (an even number of levels around zero, none at zero)

Weights of convolutions and linear layers; biases, norms and buffers stay, as in integer inference. Fewer bits are a
stronger attack.

With ``epochs`` the network is fine-tuned on the fixed grid: real-valued weights start at the victim's, every forward
pass sees them rounded, gradients pass the rounding as if it were the identity (straight-through), and the rounded
weights are returned.

Source: Lukas et al. 2022 (WRT), "weight quantization". Differs from their code: nearest of 2^bits levels that include
both ends, where theirs takes the middle of each of the 2^bits - 1 cells; no rounding of biases and norms; and
fine-tuning stays on the grid, while theirs leaves it with the first step.
"""

import copy
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from wmarena.attacks.base import LUKAS_2022, AttackView, Family
from wmarena.attacks.compression.channels import weight_of, weighted_layers
from wmarena.attacks.fine_tuning import RecoveringAttack, recovery_lr
from wmarena.schemes.params import param


@dataclass(frozen=True, kw_only=True)
class Quantize(RecoveringAttack):
    """Round the weights of all convolutions and linear layers to 2^bits values a tensor."""

    name: ClassVar[str] = "quantize"
    family: ClassVar[Family] = "compress"
    paper: ClassVar[str] = LUKAS_2022
    direction: ClassVar[Literal[1, -1]] = -1

    bits: int = param(
        5, doc="a tensor keeps 2^bits values; fewer are stronger", stage="attack", low=1, high=16, strength=True
    )
    symmetric: bool = param(False, doc="levels symmetric around zero", stage="attack")
    per_channel: bool = param(False, doc="a range for every output channel, not for the tensor", stage="attack")
    epochs: int = param(0, doc="epochs of fine-tuning on the grid; 0 = none", stage="attack", low=0)
    lr: float = recovery_lr()

    @property
    def label(self) -> str:
        return self.labelled("symmetric" if self.symmetric else "", "per_channel" if self.per_channel else "")

    def run(self, model: nn.Module, view: AttackView) -> nn.Module:
        weights = [weight_of(m) for m in weighted_layers(model).values()]
        grids = [Grid.of(w, self.bits, symmetric=self.symmetric, per_channel=self.per_channel) for w in weights]
        if self.epochs:
            self._tune(model, grids, view)
        with torch.no_grad():
            for weight, grid in zip(weights, grids, strict=True):
                weight.copy_(grid.nearest(weight))
        return model

    def _tune(self, model: nn.Module, grids: list["Grid"], view: AttackView) -> None:
        """Fine-tune ``model`` in place through the rounding; its weights are real-valued afterwards."""
        # Parametrising renames and reorders a layer's tensors, so only a copy is parametrised.
        tuned = copy.deepcopy(model)
        layers = list(weighted_layers(tuned).values())
        for layer, grid in zip(layers, grids, strict=True):
            parametrize.register_parametrization(layer, "weight", _StraightThrough(grid))
        self.recover(tuned, view)
        for layer in layers:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        model.load_state_dict(tuned.state_dict())


@dataclass(frozen=True)
class Grid:
    """2^bits equally spaced levels for a tensor or each of its rows.

    Attributes:
        low, step: lowest level and distance of two levels, broadcastable to the weight (C, ...).
        n_levels: 2^bits.
    """

    low: Tensor
    step: Tensor
    n_levels: int

    @classmethod
    def of(cls, weight: Tensor, bits: int, *, symmetric: bool = False, per_channel: bool = False) -> "Grid":
        """Build the grid between the extremes of ``weight`` (C, ...), of each of its C rows if ``per_channel``."""
        rows = weight.detach().reshape(len(weight) if per_channel else 1, -1)
        low, high = rows.aminmax(dim=1)
        if symmetric:
            high = torch.maximum(-low, high)
            low = -high
        shape = (-1, *[1] * (weight.dim() - 1))
        return cls(low.reshape(shape), ((high - low) / (2**bits - 1)).reshape(shape), 2**bits)

    def nearest(self, weight: Tensor) -> Tensor:
        """Return the nearest level to each value of ``weight`` (C, ...)."""
        # Equal weights have a step of zero and one level.
        divisor = torch.where(self.step > 0, self.step, torch.ones_like(self.step))
        index = ((weight - self.low) / divisor).round().clamp(0, self.n_levels - 1)
        return self.low + index * self.step


class _StraightThrough(nn.Module):
    """A rounding to a grid that passes the gradient unchanged."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, weight: Tensor) -> Tensor:
        """Return (C, ...) exactly the grid's levels: the difference of equal numbers is zero."""
        return self.grid.nearest(weight).detach() + (weight - weight.detach())
