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

import torch
from torch import nn

from attacks.base import Attack, AttackView, Family, isolated_rng
from attacks.knowledge import Knowledge
from attacks.tuning import sgd
from schemes.params import param
from schemes.prf import subseed


@dataclass(frozen=True, kw_only=True)
class FineTune(Attack):
    """Continue training on the adversary's data, all layers or the last, with the old head or a new one."""

    name: ClassVar[str] = "finetune"
    family: ClassVar[Family] = "tune"
    knows: ClassVar[frozenset[Knowledge]] = frozenset({"weights"})
    paper: ClassVar[str] = "Adi et al. 2018, Turning Your Weakness Into a Strength"
    incremental: ClassVar[bool] = True

    variant: Literal["ftll", "ftal", "rtll", "rtal"] = param(
        "ftal",
        doc="ft: keep the head, rt: re-initialise it; ll: train the last layer, al: all layers",
        stage="attack",
        choices=("ftll", "ftal", "rtll", "rtal"),
    )
    renew: Literal["head", "dense"] = param(
        "head",
        doc="which layers rt renews and ll trains: the output layer, or all dense layers",
        stage="attack",
        choices=("head", "dense"),
    )
    epochs: int = param(20, doc="passes over the adversary's data", stage="attack", low=1, strength=True)
    lr: float = param(1e-3, doc="learning rate, constant", stage="attack", low=0, low_open=True)
    batch_size: int = param(100, doc="samples a step", stage="attack", low=1)
    weight_decay: float = param(5e-4, doc="L2 penalty", stage="attack", low=0)
    bn_mode: Literal["train", "eval"] = param(
        "train", doc="train: batch-norm statistics move; eval: they stay", stage="attack", choices=("train", "eval")
    )

    @property
    def label(self) -> str:
        return f"{self.name}-{self.variant}"

    @property
    def replaces_head(self) -> bool:
        return self.variant.startswith("rt")

    def run(self, model: nn.Module, view: AttackView) -> nn.Module:
        _, head = view.task.split(model, self.renew)
        if self.replaces_head:
            # A resumed run overwrites the new head with the checkpoint's, so drawing it again changes nothing.
            reinitialise(head, subseed(view.seed, "head"))
        if self.variant.endswith("ll"):
            freeze_all_but(model, head)
        recipe = sgd(
            epochs=self.epochs,
            lr=self.lr,
            batch_size=self.batch_size,
            weight_decay=self.weight_decay,
            bn_mode=self.bn_mode,
        )
        view.task.fit(
            model,
            view.data,
            recipe,
            seed=subseed(view.seed, "finetune"),
            log=view.log,
            checkpoints=view.checkpoints,
            keep_at=(self.epochs,),
        )
        return model


def reinitialise(head: nn.Module, seed: int) -> None:
    """The framework's default initialisation of ``head``, drawn from ``seed`` alone.

    Raises:
        ValueError: ``head`` has no layer that can be re-initialised.
    """
    resets = [getattr(m, "reset_parameters", None) for m in head.modules()]
    if not any(resets):
        raise ValueError(
            f"expected an output layer with reset_parameters(), got {type(head).__name__}; "
            "let the workload's head() return its linear layer"
        )
    with isolated_rng(seed), torch.no_grad():
        for reset in filter(None, resets):
            reset()


def freeze_all_but(model: nn.Module, head: nn.Module) -> None:
    """Only the parameters of ``head`` require gradients: the backward pass ends there."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in head.parameters():
        parameter.requires_grad_(True)
