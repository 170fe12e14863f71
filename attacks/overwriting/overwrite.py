"""Overwriting: embed the adversary's mark into the stolen model, with the victim's or another scheme.

The adversary plays the owner's role on the stolen model, with a fresh key and the adversary's data share:

    M', key' = embed(M_WM, D_adv, keygen(fresh seed))

Removal: the owner's key fails on M'. Piracy: key' passes on M' too, and only the order of publication decides. The loss
of the owner's mark depends on the learning rate far more than on the number of epochs, so the rate is the strength.
Without ``epochs`` the scheme's own number is used, limited by the adversary's budget.

Differs from the papers: a scheme that marks from scratch runs its pretrained form, since training from scratch would
not use the stolen model. If a scheme trains a head at a rate of its own, the ratio of the two rates is kept.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from torch import nn

from wmarena.attacks.base import Attack, AttackView, Claim, Family, Piracy
from wmarena.attacks.knowledge import Knowledge
from wmarena.schemes.base import Scheme, TaskInfo, Workload
from wmarena.schemes.params import ConfigError, Configurable, param


@dataclass(frozen=True, kw_only=True)
class EmbeddingAttack(Attack):
    """An attack that embeds a mark of the adversary's own and claims the model with it."""

    family: ClassVar[Family] = "overwrite"
    knows: ClassVar[frozenset[Knowledge]] = frozenset({"weights", "algorithm"})

    # param() is dataclasses.field(), which RUF009 knows only by its own name.
    scheme: Scheme | None = param(None, doc="what to embed; none = the victim's own scheme", stage="attack")

    @property
    def makes(self) -> frozenset[Literal["model", "claim"]]:
        return frozenset({"model", "claim"})

    def resolved(self, victim: Scheme) -> Self:
        return self if self.scheme is not None else dataclasses.replace(self, scheme=victim)

    def plugins(self) -> list[Configurable]:
        return [] if self.scheme is None else [self.scheme]

    def applicable(self, victim: Scheme, info: TaskInfo) -> str | None:
        scheme = self.scheme or victim
        why = scheme.as_overwriter().applicable(info)
        return None if why is None else f"{scheme.name} cannot be embedded here: {why}"


@dataclass(frozen=True, kw_only=True)
class Overwrite(EmbeddingAttack):
    """Embed the adversary's own key into the stolen model and claim it."""

    name: ClassVar[str] = "overwrite"
    paper: ClassVar[str] = "Li et al. 2022, Leveraging Multi-task Learning for Watermarking (Table 3)"

    lr: float | None = param(
        None, doc="rate of the embedding; none = the scheme's own", stage="attack", low=0, low_open=True, strength=True
    )
    epochs: int | None = param(
        None, doc="passes over the adversary's data; none = the scheme's own", stage="attack", low=1
    )

    def within(self, epochs: int, n_samples: int) -> "Overwrite":
        """Reduce ``epochs``; the scheme's own number is limited when it is known (``held_to``)."""
        return self if self.epochs is None else dataclasses.replace(self, epochs=min(self.epochs, epochs))

    def applicable(self, victim: Scheme, info: TaskInfo) -> str | None:
        scheme, why = self.scheme or victim, super().applicable(victim, info)
        if why is not None:
            return why
        if self.lr is not None and not _has(scheme, "lr"):
            return f"{scheme.name} has no learning rate to set; leave lr out"
        if self.epochs is not None and type(scheme).for_epochs is Scheme.for_epochs:
            return f"{scheme.name} has no epochs to set; leave epochs out"
        return None

    def run(self, model: nn.Module, view: AttackView) -> Piracy:
        scheme = self.embedding(view.scheme, len(view.data))
        scheme = held_to(view.budget.max_epochs, scheme, view.task, len(view.data))
        key = scheme.keygen(view.task, view.prf.child("overwrite"))
        pirated, key = scheme.embed(model, view.as_owner("overwrite"), key)
        return Piracy(pirated, Claim(key))

    def embedding(self, victim: Scheme, n_train: int) -> Scheme:
        """Return the scheme that continues from the stolen model, with this attack's rate and epochs."""
        scheme = (self.scheme or victim).as_overwriter()
        if self.lr is not None:
            scheme = self._at_rate(scheme, self.lr)
        return scheme if self.epochs is None else scheme.for_epochs(self.epochs, n_train)

    @staticmethod
    def _at_rate(scheme: Scheme, lr: float) -> Scheme:
        if not _has(scheme, "lr"):
            raise ConfigError([("lr", f"expected a scheme with a learning rate, got {scheme.name}; leave lr out")])
        values = scheme.config()
        changes = {"lr": lr}
        own, head = values["lr"], values.get("head_lr")
        if isinstance(own, float) and isinstance(head, float):
            # A head that learns too fast memorises the labels by itself.
            changes["head_lr"] = head * lr / own
        return _with(scheme, **changes)


def held_to(limit: int | None, scheme: Scheme, task: Workload, n_train: int) -> Scheme:
    """Limit the embedding of ``scheme`` to ``limit`` passes over ``n_train`` samples; None for any number."""
    own = _own_epochs(scheme, task, n_train)
    return scheme if limit is None or own is None or own <= limit else scheme.for_epochs(limit, n_train)


def _own_epochs(scheme: Scheme, task: Workload, n_train: int) -> int | None:
    """Return the passes over ``n_train`` samples that the scheme's embedding begins, or None if unknown."""
    recipe = scheme.twin_recipe(task, n_train)
    if recipe is None:
        named = scheme.config().get("epochs")
        return named if isinstance(named, int) else None
    if recipe.steps is None:
        return recipe.epochs
    return math.ceil(recipe.steps / math.ceil(n_train / recipe.batch_size))


def _has(scheme: Scheme, field: str) -> bool:
    return field in type(scheme).parameters()


def _with(scheme: Scheme, **changes: str | float) -> Scheme:
    # The field names are the scheme's, unknown to static types.
    return dataclasses.replace(scheme, **changes)
