"""Functionality-equivalent rewrites: the stolen model answers as before, and nothing lies where the owner put it.

    permute    in every group of hidden channels a share of the channels changes places
    rescale    every hidden channel is multiplied by a_c where it is written and divided by it where it is read,
               log a_c uniform in [-log r, log r]

Both cost no accuracy, no data and no training. Marks that are read from answers cannot notice; marks that are read
from weights or features at fixed positions can. What a group is, and why scaling leaves some networks' groups alone,
is said in ``wmarena.schemes.symmetry.groups``.

Source: Li, Yang, Wang, Liew, "Leveraging Multi-task Learning for Unambiguous and Flexible Deep Neural Network
Watermarking" (SafeAI at AAAI 2022), where such rewrites are admitted as a weakness.
Differs from a uniform permutation: the chosen channels form one random cycle, so that each of them really moves.

Found out on the way (``Finding``): the largest difference of logits on 64 of the adversary's inputs, as served and in
double precision, and how many channels in how many groups were rewritten.
"""

import copy
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from wmarena.attacks.base import Attack, AttackView, Family, Finding
from wmarena.attacks.knowledge import Knowledge
from wmarena.schemes.params import Json, param
from wmarena.schemes.prf import subseed
from wmarena.schemes.symmetry.groups import Group, channel_groups, ensure_equivalent, logit_difference

_N_INPUTS = 64
"""Inputs on which the function is compared."""


@dataclass(frozen=True, kw_only=True)
class Permute(Attack):
    """Reorder hidden channels and everything that reads them."""

    name: ClassVar[str] = "permute"
    family: ClassVar[Family] = "equivalence"
    knows: ClassVar[frozenset[Knowledge]] = frozenset({"weights"})
    paper: ClassVar[str] = "Li et al. 2022, Leveraging Multi-task Learning for Watermarking (neuron permutation)"
    rewrites: ClassVar[bool] = True

    fraction: float = param(
        1.0, doc="share of each group's channels that change places", stage="attack", low=0, high=1, strength=True
    )

    def run(self, model: nn.Module, view: AttackView) -> Finding:
        original, inputs = copy.deepcopy(model), _some_inputs(view)
        generator = torch.Generator().manual_seed(subseed(view.seed, self.name))
        groups, n_moved = _groups(model, inputs), 0
        for group in groups:
            order = partial_cycle(group.width, self.fraction, generator)
            group.permute(order)
            n_moved += int((order != torch.arange(group.width)).sum())
        return _finding(original, model, inputs, groups, n_moved)


@dataclass(frozen=True, kw_only=True)
class Rescale(Attack):
    """Multiply hidden channels by positive factors and divide everything that reads them."""

    name: ClassVar[str] = "rescale"
    family: ClassVar[Family] = "equivalence"
    knows: ClassVar[frozenset[Knowledge]] = frozenset({"weights"})
    paper: ClassVar[str] = "Neyshabur et al. 2015, Path-SGD (rescaling of rectified networks)"
    rewrites: ClassVar[bool] = True

    factor: float = param(
        2.0, doc="r: factors are log-uniform in [1/r, r]", stage="attack", low=1, high=1000, strength=True
    )

    def run(self, model: nn.Module, view: AttackView) -> Finding:
        original, inputs = copy.deepcopy(model), _some_inputs(view)
        generator = torch.Generator().manual_seed(subseed(view.seed, self.name))
        groups = [group for group in _groups(model, inputs) if group.gains]
        if not groups:
            raise ValueError(
                f"expected a network with channels between homogeneous operations, got none in {view.task.name}; "
                "use permute"
            )
        for gain in (gain for group in groups for gain in group.gains):
            exponents = 2 * torch.rand(gain.width, generator=generator, dtype=torch.float64) - 1
            gain.scale(torch.exp(exponents * math.log(self.factor)))
        n_scaled = sum(group.width for group in groups) if self.factor > 1 else 0
        return _finding(original, model, inputs, groups, n_scaled)


def partial_cycle(width: int, fraction: float, generator: torch.Generator) -> Tensor:
    """(width,) int64: a permutation that moves floor(fraction * width) random channels in one random cycle.

    A single channel has nowhere to go and stays.
    """
    # A float may be one rounding error short (0.29 * 100).
    count = min(width, int(fraction * width + 1e-9))
    order = torch.arange(width)
    chosen = torch.randperm(width, generator=generator)[:count]
    order[chosen] = chosen.roll(1)
    return order


def _some_inputs(view: AttackView) -> Tensor:
    """(64, ...) of the adversary's normalised inputs, or as many as there are."""
    with torch.no_grad():
        return next(iter(view.data.in_order(_N_INPUTS)))[0]


def _groups(model: nn.Module, inputs: Tensor) -> list[Group]:
    groups = channel_groups(model, inputs)
    if not groups:
        raise ValueError(
            f"expected a network with hidden channels that can be rewritten, got none in {type(model).__name__}; "
            "its layers are unknown or read their input's channels in a fixed order"
        )
    return groups


def _finding(original: nn.Module, model: nn.Module, inputs: Tensor, groups: list[Group], channels: int) -> Finding:
    """The rewritten ``model`` with what was measured on it; raises as ``ensure_equivalent`` does."""
    exact = ensure_equivalent(original, model, inputs)
    served, _ = logit_difference(original, model, inputs, torch.float32)
    details: dict[str, Json] = {
        "max_logit_difference": served,
        "max_logit_difference_float64": exact,
        "channels": channels,
        "groups": len(groups),
    }
    return Finding(model, details)
