"""Clipping: the largest weights of each layer are cut down to the size of smaller ones.

    w' = clamp(w, -c, c),  c the (1 - share) quantile of |w| in the layer        convolutions and linear layers

An example of an attack in one file. It needs no data; ``view.data`` would be the adversary's share.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from wmarena.attacks.base import Attack, AttackView, Family
from wmarena.attacks.compression.channels import weight_of, weighted_layers
from wmarena.attacks.knowledge import Knowledge
from wmarena.schemes.params import param


@dataclass(frozen=True, kw_only=True)
class Clip(Attack):
    """Cut the largest weights of each layer down to a quantile."""

    name: ClassVar[str] = "clip"
    family: ClassVar[Family] = "compress"
    knows: ClassVar[frozenset[Knowledge]] = frozenset({"weights"})
    paper: ClassVar[str] = "none: an example"

    share: float = param(
        0.1,
        doc="share of a layer's weights that is clipped",
        stage="attack",
        low=0,
        high=1,
        high_open=True,
        strength=True,
    )

    def run(self, model: nn.Module, view: AttackView) -> nn.Module:
        with torch.no_grad():
            for layer in weighted_layers(model).values():
                weight = weight_of(layer)
                sizes = weight.abs().flatten()
                # kthvalue, because torch.quantile refuses large layers.
                bound = sizes.kthvalue(max(1, round((1 - self.share) * len(sizes)))).values
                weight.clamp_(-bound, bound)
        return model
