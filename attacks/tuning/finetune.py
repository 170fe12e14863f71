"""Fine-tuning: train the stolen model on with the adversary's data [Adi et al. 2018, section 5].

    variant   head                trained
    ftll      kept                output layer
    ftal      kept                all layers
    rtll      re-initialised      output layer
    rtal      re-initialised      all layers

With ``renew: dense`` "output layer" means every dense layer after the convolutions [Tang et al. 2020, transfer]; a
network without hidden dense layers has no other than the output layer.

SGD, momentum 0.9, weight decay 5e-4, batch 100, at the last training rate (1e-3). The rate is constant, so epoch e
does not depend on how many epochs were asked for: longer strengths continue the shorter ones' trajectory.

Differs from the authors' code: "last layer" really freezes the others (no gradients are computed for them), and
whether batch-norm statistics move meanwhile is a choice (``bn_mode``); the authors' code always moves them.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from wmarena.attacks.base import AttackView, Family
from wmarena.attacks.fine_tuning import TuningAttack, reinitialise
from wmarena.attacks.knowledge import Knowledge
from wmarena.schemes.params import param
from wmarena.schemes.prf import subseed


@dataclass(frozen=True, kw_only=True)
class FineTune(TuningAttack):
    """Continue training on the adversary's data, all layers or the last, with the old head or a new one."""

    name: ClassVar[str] = "finetune"
    family: ClassVar[Family] = "tune"
    knows: ClassVar[frozenset[Knowledge]] = frozenset({"weights"})
    paper: ClassVar[str] = "Adi et al. 2018, Turning Your Weakness Into a Strength"
    incremental: ClassVar[bool] = True

    renew: Literal["head", "dense"] = param(
        "head",
        doc="which layers rt renews and ll trains: the output layer, or all dense layers",
        stage="attack",
        choices=("head", "dense"),
    )

    @property
    def replaces_head(self) -> bool:
        return self.renews_head

    def run(self, model: nn.Module, view: AttackView) -> nn.Module:
        _, head = view.task.split(model, self.renew)
        if self.renews_head:
            # A resumed run overwrites the new head with the checkpoint's, so drawing it again changes nothing.
            reinitialise(head, subseed(view.seed, "head"))
        self.tune(model, head, view.data, view)
        return model
