"""Functionality-equivalent rewrites: the stolen model's function stays, its weights change place or scale.

    permute    in every group of hidden channels a share of the channels changes places
    rescale    every hidden channel is multiplied by a_c where it is written and divided by it where it is read,
               log a_c uniform in [-log r, log r]

Both cost no accuracy, no data and no training. They do not affect marks that are read from answers, but marks that are
read from weights or features at fixed positions. ``wmarena.schemes.symmetry.groups`` defines groups and explains why
some cannot be scaled.

Source: Li, Yang, Wang, Liew, "Leveraging Multi-task Learning for Unambiguous and Flexible Deep Neural Network
Watermarking" (SafeAI at AAAI 2022), which names such rewrites as a weakness.
Differs from a uniform permutation: the chosen channels form one random cycle, so that each of them moves.

Reported (``Finding``): the largest difference of logits on 64 of the adversary's inputs, as served and in
double precision, and how many channels in how many groups were rewritten.
"""

import copy
import math
from abc import ABC, abstractmethod
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
class _Rewriting(Attack, ABC):
    """A rewrite of all channel groups, checked and measured."""

    family: ClassVar[Family] = "equivalence"
    knows: ClassVar[frozenset[Knowledge]] = frozenset({"weights"})
    rewrites: ClassVar[bool] = True

    def run(self, model: nn.Module, view: AttackView) -> Finding:
        original, inputs = copy.deepcopy(model), _some_inputs(view)
        groups = self.usable(_groups(model, inputs), view)
        n_channels = self.rewrite(groups, torch.Generator().manual_seed(subseed(view.seed, self.name)))
        exact = ensure_equivalent(original, model, inputs)
        served, _ = logit_difference(original, model, inputs, torch.float32)
        details: dict[str, Json] = {
            "max_logit_difference": served,
            "max_logit_difference_float64": exact,
            "channels": n_channels,
            "groups": len(groups),
        }
        return Finding(model, details)

    def usable(self, groups: list[Group], view: AttackView) -> list[Group]:
        """Return the groups that this rewrite changes. Raises ValueError if there are none."""
        return groups

    @abstractmethod
    def rewrite(self, groups: list[Group], generator: torch.Generator) -> int:
        """Rewrite ``groups`` in place; return the number of channels changed."""


@dataclass(frozen=True, kw_only=True)
class Permute(_Rewriting):
    """Reorder hidden channels and everything that reads them."""

    name: ClassVar[str] = "permute"
    paper: ClassVar[str] = "Li et al. 2022, Leveraging Multi-task Learning for Watermarking (neuron permutation)"

    fraction: float = param(
        1.0, doc="share of each group's channels that change places", stage="attack", low=0, high=1, strength=True
    )

    def rewrite(self, groups: list[Group], generator: torch.Generator) -> int:
        n_moved = 0
        for group in groups:
            order = partial_cycle(group.width, self.fraction, generator)
            group.permute(order)
            n_moved += int((order != torch.arange(group.width)).sum())
        return n_moved


@dataclass(frozen=True, kw_only=True)
class Rescale(_Rewriting):
    """Multiply hidden channels by positive factors and divide everything that reads them."""

    name: ClassVar[str] = "rescale"
    paper: ClassVar[str] = "Neyshabur et al. 2015, Path-SGD (rescaling of rectified networks)"

    factor: float = param(
        2.0, doc="r: factors are log-uniform in [1/r, r]", stage="attack", low=1, high=1000, strength=True
    )

    def usable(self, groups: list[Group], view: AttackView) -> list[Group]:
        found = [group for group in groups if group.gains]
        if not found:
            raise ValueError(
                f"expected a network with channels between homogeneous operations, got none in {view.task.name}; "
                "use permute"
            )
        return found

    def rewrite(self, groups: list[Group], generator: torch.Generator) -> int:
        for gain in (gain for group in groups for gain in group.gains):
            exponents = 2 * torch.rand(gain.width, generator=generator, dtype=torch.float64) - 1
            gain.scale(torch.exp(exponents * math.log(self.factor)))
        return sum(group.width for group in groups) if self.factor > 1 else 0


def partial_cycle(width: int, fraction: float, generator: torch.Generator) -> Tensor:
    """Draw (width,) int64: a permutation that moves floor(fraction * width) channels in one random cycle.

    A single channel cannot move.
    """
    # A float may be one rounding error short (0.29 * 100).
    count = min(width, int(fraction * width + 1e-9))
    order = torch.arange(width)
    chosen = torch.randperm(width, generator=generator)[:count]
    order[chosen] = chosen.roll(1)
    return order


def _some_inputs(view: AttackView) -> Tensor:
    """Return (64, ...) of the adversary's normalised inputs, or as many as there are."""
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
