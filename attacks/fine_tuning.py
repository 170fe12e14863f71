"""Fine-tuning as attacks use it: a horizon-free recipe, and pruned weights that stay pruned."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from wmarena.attacks.base import Attack, AttackView
from wmarena.schemes.base import Checkpoints, Recipe, Samples
from wmarena.schemes.params import param
from wmarena.schemes.prf import subseed
from wmarena.schemes.training_state import seeded

Silenced = tuple[nn.Parameter, Tensor]
"""A parameter and the boolean mask (same shape) of its scalars that were set to zero."""


def sgd(
    *,
    epochs: int,
    lr: float,
    batch_size: int = 100,
    weight_decay: float = 5e-4,
    bn_mode: Literal["train", "eval"] = "train",
) -> Recipe:
    """SGD, momentum 0.9, constant rate [Adi et al. 2018]: epoch e is the same whatever the number of epochs."""
    return Recipe(
        optimiser="sgd",
        lr=lr,
        batch_size=batch_size,
        epochs=epochs,
        momentum=0.9,
        weight_decay=weight_decay,
        schedule="constant",
        bn_mode=bn_mode,
    )


Variant = Literal["ftll", "ftal", "rtll", "rtal"]
"""ft keeps the head, rt renews it; ll trains the last layer, al all of them [Adi et al. 2018, section 5.4]."""


@dataclass(frozen=True, kw_only=True)
class TuningAttack(Attack):
    """An attack that is one training by ``sgd``: of all layers, or of a head alone."""

    variant: Variant = param(
        "ftal",
        doc="ft: keep the head, rt: a new one; ll: train the last layer, al: all layers",
        stage="attack",
        choices=("ftll", "ftal", "rtll", "rtal"),
    )
    epochs: int = param(20, doc="passes over the samples", stage="attack", low=1, strength=True)
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
    def renews_head(self) -> bool:
        return self.variant.startswith("rt")

    def tune(self, model: nn.Module, head: nn.Module, samples: Samples, view: AttackView) -> None:
        """Train all of ``model``, or its ``head`` alone, in place."""
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
            samples,
            recipe,
            seed=subseed(view.seed, self.name),
            log=view.log,
            checkpoints=view.checkpoints,
            keep_at=(self.epochs,),
        )


def tune_all(
    model: nn.Module,
    view: AttackView,
    recipe: Recipe,
    *,
    checkpoints: Checkpoints | None = None,
    silenced: Sequence[Silenced] = (),
) -> None:
    """Fine-tune all layers of ``model`` in place on the adversary's data; what is ``silenced`` stays zero."""
    if recipe.epochs == 0:
        return
    with kept_zero(silenced):
        view.task.fit(
            model,
            view.data,
            recipe,
            seed=subseed(view.seed, "recover"),
            log=view.log,
            checkpoints=checkpoints or view.checkpoints,
        )


@contextmanager
def kept_zero(silenced: Sequence[Silenced]) -> Iterator[None]:
    """Gradients of silenced scalars are zero inside.

    A scalar that is zero, has no gradient and no momentum stays exactly zero under SGD and Adam, weight decay
    included (it is proportional to the scalar).
    """
    handles = [
        p.register_hook(lambda grad, mask=mask: grad.masked_fill(mask, 0.0))  # type: ignore[no-untyped-call]
        for p, mask in silenced
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def silence(parameter: nn.Parameter, mask: Tensor) -> Silenced:
    """Set the masked scalars of ``parameter`` to zero in place."""
    with torch.no_grad():
        parameter.masked_fill_(mask, 0.0)
    return parameter, mask


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
    device = next(head.parameters()).device
    with seeded(seed, device), torch.no_grad():
        for reset in filter(None, resets):
            reset()


def freeze_all_but(model: nn.Module, head: nn.Module) -> None:
    """Only the parameters of ``head`` require gradients: the backward pass ends there."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in head.parameters():
        parameter.requires_grad_(True)
