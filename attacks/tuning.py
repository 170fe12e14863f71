"""Fine-tuning as attacks use it: a horizon-free recipe, and pruned weights that stay pruned."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from attacks.base import AttackView
from schemes.base import Checkpoints, Recipe
from schemes.prf import subseed

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
