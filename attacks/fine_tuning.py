"""Fine-tuning for attacks: a recipe that does not depend on the number of epochs, and pruned weights that stay zero."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from wmarena.attacks.base import Attack, AttackView, Family
from wmarena.attacks.knowledge import Knowledge
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
    """Return SGD, momentum 0.9, constant rate [Adi et al. 2018]: epoch e does not depend on ``epochs``."""
    recipe = Recipe(optimiser="sgd", lr=lr, batch_size=batch_size, epochs=epochs, momentum=0.9, schedule="constant")
    return replace(recipe, weight_decay=weight_decay, bn_mode=bn_mode)


Variant = Literal["ftll", "ftal", "rtll", "rtal"]
"""ft: keep the head, rt: renew it; ll: train the last layer, al: all layers [Adi et al. 2018, section 5.4]."""


@dataclass(frozen=True, kw_only=True)
class TuningAttack(Attack):
    """An attack that trains all layers, or a head alone, by ``sgd``."""

    family: ClassVar[Family] = "tune"
    knows: ClassVar[frozenset[Knowledge]] = frozenset({"weights"})
    paper: ClassVar[str] = "Adi et al. 2018, Turning Your Weakness Into a Strength"
    incremental: ClassVar[bool] = True

    variant: Variant = param(
        "ftal", doc="ft: keep the head, rt: a new one; ll: train the last layer, al: all layers", stage="attack"
    )
    epochs: int = param(20, doc="passes over the samples", stage="attack", low=1, strength=True)
    lr: float = param(1e-3, doc="learning rate, constant", stage="attack", low=0, low_open=True)
    batch_size: int = param(100, doc="samples a step", stage="attack", low=1)
    weight_decay: float = param(5e-4, doc="L2 penalty", stage="attack", low=0)
    bn_mode: Literal["train", "eval"] = param(
        "train", doc="train: batch-norm statistics move; eval: they stay", stage="attack"
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
        fit(model, view, recipe, self.name, samples=samples, keep_at=(self.epochs,))


def fit(
    model: nn.Module,
    view: AttackView,
    recipe: Recipe,
    purpose: str,
    *,
    samples: Samples | None = None,
    checkpoints: Checkpoints | None = None,
    keep_at: Iterable[int] = (),
) -> None:
    """Train ``model`` in place with the view's seed and log, by default on its data; ``purpose`` names the seed."""
    data, store = view.data if samples is None else samples, checkpoints or view.checkpoints
    seed = subseed(view.seed, purpose)
    view.task.fit(model, data, recipe, seed=seed, log=view.log, checkpoints=store, keep_at=keep_at)


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
        fit(model, view, recipe, "recover", checkpoints=checkpoints)


def recovery_epochs() -> Any:
    """Return the field ``epochs`` of a ``RecoveringAttack``."""
    return param(0, doc="epochs of fine-tuning afterwards; 0 = none", stage="attack", low=0)


def recovery_lr() -> Any:
    """Return the field ``lr`` of a ``RecoveringAttack``."""
    return param(1e-3, doc="learning rate of that fine-tuning", stage="attack", low=0, low_open=True)


class RecoveringAttack(Attack):
    """An attack that changes weights, then may fine-tune all layers.

    Subclasses declare the fields ``epochs`` and ``lr`` last, since labels and tables list fields in order of
    declaration; hence this class is no dataclass, which would put them first.
    """

    knows: ClassVar[frozenset[Knowledge]] = frozenset({"weights"})

    epochs: int
    lr: float

    def labelled(self, *parts: str) -> str:
        """Join the attack's name, the non-empty ``parts`` and the epochs of fine-tuning."""
        return "-".join(p for p in (self.name, *parts, f"ft{self.epochs}" if self.epochs else "") if p)

    def recover(self, model: nn.Module, view: AttackView, silenced: Sequence[Silenced] = ()) -> None:
        """Fine-tune ``model`` in place; what is ``silenced`` stays zero."""
        tune_all(model, view, sgd(epochs=self.epochs, lr=self.lr), silenced=silenced)


@contextmanager
def kept_zero(silenced: Sequence[Silenced]) -> Iterator[None]:
    """Zero the gradients of silenced scalars inside.

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
    """Re-initialise ``head`` from ``seed`` alone. Raises ValueError: no layer of it can be re-initialised."""
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
    """Let only the parameters of ``head`` require gradients: the backward pass ends there."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in head.parameters():
        parameter.requires_grad_(True)
