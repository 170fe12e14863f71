"""Fine-tuning: continue training the stolen model on the adversary's data [Adi et al. 2018, section 5].

    variant   head                trained
    ftll      kept                output layer
    ftal      kept                all layers
    rtll      re-initialised      output layer
    rtal      re-initialised      all layers

With ``renew: dense`` "output layer" means every dense layer after the convolutions [Tang et al. 2020, transfer].

SGD, momentum 0.9, weight decay 5e-4, batch 100, at the last training rate (1e-3). The rate is constant, so epoch e
does not depend on the number of epochs: longer strengths continue the shorter ones' trajectory.

Differs from the authors' code: "last layer" freezes the others (no gradients are computed for them), and ``bn_mode``
decides whether batch-norm statistics move meanwhile; the authors' code always moves them.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from wmarena.attacks.base import AttackView
from wmarena.attacks.fine_tuning import TuningAttack, reinitialise
from wmarena.schemes.params import param
from wmarena.schemes.prf import subseed


@dataclass(frozen=True, kw_only=True)
class FineTune(TuningAttack):
    """Continue training on the adversary's data, all layers or the last, with the old head or a new one."""

    name: ClassVar[str] = "finetune"

    renew: Literal["head", "dense"] = param(
        "head", doc="which layers rt renews and ll trains: the output layer, or all dense layers", stage="attack"
    )

    @property
    def replaces_head(self) -> bool:
        return self.renews_head

    def run(self, model: nn.Module, view: AttackView) -> nn.Module:
        _, head = view.task.split(model, self.renew)
        if self.renews_head:
            # A resumed run replaces this head by the checkpoint's.
            reinitialise(head, subseed(view.seed, "head"))
        self.tune(model, head, view.data, view)
        return model
