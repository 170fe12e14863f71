"""Ownership piracy: plant a second set of triggers in the stolen model, tune it, and claim it with the new set.

    plant   M', TS-New = embed(M_WM, D_adv, keygen(fresh seed))      in the scheme's pretrained form
    tune    M'' = variant(M', D_adv) for ``epochs`` passes

    variant   none     no tuning                rtll   new output layer, trained alone
              ftal     all layers               rtal   new output layer, all layers trained

The pirate succeeds if TS-New is found in M'' and the owner's TS-Orig is not. The paper expects tuning to cost the
planted set more than the original, so that tuning would distinguish owner from pirate. On small networks planting
already costs part of TS-Orig.

Planting takes as many epochs as the original did: ``plant_epochs``, else the scheme's own number (the workload's for a
scheme that marks from scratch), limited by the adversary's budget. With a new output layer the claim also carries the
verdict of TS-New with the planted layer put back (``old_head_statistic``, ``old_head_verdict``): the pirate keeps that
layer as the owner keeps theirs.

Source: Adi et al. 2018, section 5.4 (ownership piracy; the text names RTLL with RTAL once and FTAL with RTAL once:
all are here). Differs from the paper: the pirate has the adversary's share of the data, not the owner's whole set.
"""

import copy
import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from wmarena.attacks.base import AttackView, Claim, Piracy
from wmarena.attacks.fine_tuning import fit, freeze_all_but, reinitialise, sgd
from wmarena.attacks.overwriting.overwrite import EmbeddingAttack, held_to
from wmarena.attacks.phases import Phase
from wmarena.schemes.base import Scheme, Suspect, TaskInfo, Workload
from wmarena.schemes.keys import Key
from wmarena.schemes.params import Json, param
from wmarena.schemes.prf import subseed


@dataclass(frozen=True, kw_only=True)
class PlantTriggers(EmbeddingAttack):
    """Plant the adversary's own triggers, tune the model, and claim it."""

    name: ClassVar[str] = "piracy"
    paper: ClassVar[str] = "Adi et al. 2018, Turning Your Weakness Into a Strength"

    plant_epochs: int | None = param(
        None, doc="passes that plant the triggers; none = as many as the original took", stage="attack", low=1
    )
    variant: Literal["none", "ftal", "rtll", "rtal"] = param(
        "rtal", doc="tuning after planting; rt: new head, ll: last layer, al: all layers", stage="attack"
    )
    epochs: int = param(20, doc="passes of that tuning", stage="attack", low=1, strength=True)
    lr: float = param(1e-3, doc="learning rate of that tuning, constant", stage="attack", low=0, low_open=True)

    @property
    def label(self) -> str:
        return f"{self.name}-{self.variant}"

    @property
    def replaces_head(self) -> bool:
        return self.variant.startswith("rt")

    def within(self, epochs: int, n_samples: int) -> "PlantTriggers":
        """Reduce each phase by itself; the scheme's own number of epochs is limited when it is known (``held_to``)."""
        planting = None if self.plant_epochs is None else min(self.plant_epochs, epochs)
        return dataclasses.replace(self, plant_epochs=planting, epochs=min(self.epochs, epochs))

    def applicable(self, victim: Scheme, info: TaskInfo) -> str | None:
        scheme = self.scheme or victim
        if type(scheme).triggers is Scheme.triggers:
            return f"{scheme.name} has no triggers to plant"
        why = super().applicable(victim, info)
        if why is None and self.plant_epochs is not None and type(scheme).for_epochs is Scheme.for_epochs:
            return f"{scheme.name} has no epochs to set; leave plant_epochs out"
        return why

    def run(self, model: nn.Module, view: AttackView) -> Piracy:
        scheme = self.planting(view.scheme, view.task, len(view.data), view.budget.max_epochs)
        key = scheme.keygen(view.task, view.prf.child("piracy"))
        owner = dataclasses.replace(view.as_owner("piracy"), checkpoints=Phase(view.checkpoints, 0))
        planted, key = scheme.embed(model, owner, key)
        old_head = copy.deepcopy(view.task.head(planted).state_dict())
        if self.variant != "none":
            self._tune(planted, view)
        details = with_head(planted, old_head, scheme, key, view.task) if self.replaces_head else {}
        return Piracy(planted, Claim(key, details=details))

    def planting(self, victim: Scheme, task: Workload, n_train: int, limit: int | None) -> Scheme:
        """Return the scheme that continues from the stolen model, for as many epochs as the original and granted.

        Args:
            victim: the owner's scheme.
            n_train: samples of the pirate.
            limit: passes over them that were granted, None for any number.
        """
        original = self.scheme or victim
        scheme = original.as_overwriter()
        epochs = self.plant_epochs
        if epochs is None and original.from_scratch and original.config().get("epochs") is None:
            epochs = task.recipe.epochs
        if epochs is not None:
            scheme = scheme.for_epochs(epochs, n_train)
        return held_to(limit, scheme, task, n_train)

    def _tune(self, model: nn.Module, view: AttackView) -> None:
        """Train ``model`` in place for ``epochs`` passes over the adversary's data."""
        head = view.task.head(model)
        if self.replaces_head:
            reinitialise(head, subseed(view.seed, "head"))
        if self.variant.endswith("ll"):
            freeze_all_but(model, head)
        recipe = sgd(epochs=self.epochs, lr=self.lr)
        fit(model, view, recipe, "piracy/tune", checkpoints=Phase(view.checkpoints, 1))


def with_head(model: nn.Module, head: dict[str, Tensor], scheme: Scheme, key: Key, task: Workload) -> dict[str, Json]:
    """Judge a copy of ``model`` with another output layer."""
    other = copy.deepcopy(model)
    task.head(other).load_state_dict(head)
    verdict = scheme.judge(Suspect(other, task), key)
    return {"old_head_statistic": verdict.statistic, "old_head_verdict": verdict.verdict}
