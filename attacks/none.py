"""No attack: the published model itself, the reference for all other rows."""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from wmarena.attacks.base import Attack, AttackView, Family
from wmarena.attacks.knowledge import Knowledge


@dataclass(frozen=True, kw_only=True)
class NoAttack(Attack):
    """The marked model as it was published."""

    name: ClassVar[str] = "none"
    family: ClassVar[Family] = "none"
    knows: ClassVar[frozenset[Knowledge]] = frozenset()
    paper: ClassVar[str] = ""

    def run(self, model: nn.Module, view: AttackView) -> nn.Module:
        return model
