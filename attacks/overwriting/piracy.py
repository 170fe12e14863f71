"""Ownership piracy: plant a second set of triggers in the stolen model, tune it, and claim it with the new set.

    plant   M', TS-New = embed(M_WM, D_adv, keygen(fresh seed))      the scheme's form that continues from a network
    tune    M'' = variant(M', D_adv) for ``epochs`` passes

    variant   none     no tuning                rtll   new output layer, trained alone
              ftal     all layers               rtal   new output layer, all layers trained

The pirate succeeds if TS-New is found in M'' and the owner's TS-Orig is not. The paper expects tuning to cost the
planted set more than the original: then whoever demands that a mark survives tuning can tell owner from pirate. On
small networks the planting itself already costs part of TS-Orig.

Planting takes as many epochs as the original did: ``plant_epochs``, else the scheme's own number, which is the
workload's for a scheme that marks from scratch; never more than the adversary may train for. With a new output layer
the claim also carries what TS-New says with the planted layer plugged back (``old_head_statistic``,
``old_head_verdict``): the pirate keeps that layer as the owner keeps theirs.

Source: Adi et al. 2018, section 5.4 (ownership piracy; the text names RTLL with RTAL once and FTAL with RTAL once:
all are here). Differs from the paper: the pirate has the adversary's share of the data, not the owner's whole set.
"""

import copy
import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from wmarena.attacks.base import Attack, AttackView, Claim, Family, Piracy
from wmarena.attacks.fine_tuning import freeze_all_but, reinitialise, sgd
from wmarena.attacks.knowledge import Knowledge
from wmarena.attacks.overwriting.overwrite import held_to
from wmarena.attacks.phases import Phase
from wmarena.schemes.base import Scheme, Suspect, TaskInfo, Workload
from wmarena.schemes.keys import Key
from wmarena.schemes.params import Configurable, Json, param
from wmarena.schemes.prf import subseed


@dataclass(frozen=True, kw_only=True)
class PlantTriggers(Attack):
    """Plant the adversary's own triggers, tune the model, and claim it."""

    name: ClassVar[str] = "piracy"
    family: ClassVar[Family] = "overwrite"
    knows: ClassVar[frozenset[Knowledge]] = frozenset({"weights", "algorithm"})
    paper: ClassVar[str] = "Adi et al. 2018, Turning Your Weakness Into a Strength"

    # param() is dataclasses.field(), which RUF009 knows only by its own name.
    scheme: Scheme | None = param(None, doc="what to plant; none = the victim's own scheme", stage="attack")
    plant_epochs: int | None = param(
        None, doc="passes that plant the triggers; none = as many as the original took", stage="attack", low=1
    )
    variant: Literal["none", "ftal", "rtll", "rtal"] = param(
        "rtal",
        doc="tuning after planting; rt: new head, ll: last layer, al: all layers",
        stage="attack",
        choices=("none", "ftal", "rtll", "rtal"),
    )
    epochs: int = param(20, doc="passes of that tuning", stage="attack", low=1, strength=True)
    lr: float = param(1e-3, doc="learning rate of that tuning, constant", stage="attack", low=0, low_open=True)

    @property
    def label(self) -> str:
        return f"{self.name}-{self.variant}"

    @property
    def makes(self) -> frozenset[Literal["model", "claim"]]:
        return frozenset({"model", "claim"})

    @property
    def replaces_head(self) -> bool:
        return self.variant.startswith("rt")

    def resolved(self, victim: Scheme) -> "PlantTriggers":
        return self if self.scheme is not None else dataclasses.replace(self, scheme=victim)

    def plugins(self) -> list[Configurable]:
        return [] if self.scheme is None else [self.scheme]

    def within(self, epochs: int, n_samples: int) -> "PlantTriggers":
        """Each of the two phases by itself; a number of the scheme's own is held to the budget when it is known."""
        planting = None if self.plant_epochs is None else min(self.plant_epochs, epochs)
        return dataclasses.replace(self, plant_epochs=planting, epochs=min(self.epochs, epochs))

    def applicable(self, victim: Scheme, info: TaskInfo) -> str | None:
        scheme = self.scheme or victim
        if type(scheme).triggers is Scheme.triggers:
            return f"{scheme.name} has no triggers to plant"
        why = scheme.as_overwriter().applicable(info)
        if why is not None:
            return f"{scheme.name} cannot be embedded here: {why}"
        if self.plant_epochs is not None and type(scheme).for_epochs is Scheme.for_epochs:
            return f"{scheme.name} has no epochs to set; leave plant_epochs out"
        return None

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
        """The scheme as the pirate runs it: from the stolen model, for as many epochs as the original and granted.

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
        """``epochs`` passes over the adversary's data, on ``model`` in place."""
        head = view.task.head(model)
        if self.replaces_head:
            reinitialise(head, subseed(view.seed, "head"))
        if self.variant.endswith("ll"):
            freeze_all_but(model, head)
        view.task.fit(
            model,
            view.data,
            sgd(epochs=self.epochs, lr=self.lr),
            seed=subseed(view.seed, "piracy/tune"),
            log=view.log,
            checkpoints=Phase(view.checkpoints, 1),
        )


def with_head(model: nn.Module, head: dict[str, Tensor], scheme: Scheme, key: Key, task: Workload) -> dict[str, Json]:
    """What ``key``'s test says of ``model`` with another output layer; the model stays as it is."""
    other = copy.deepcopy(model)
    task.head(other).load_state_dict(head)
    verdict = scheme.judge(Suspect(other, task), key)
    return {"old_head_statistic": verdict.statistic, "old_head_verdict": verdict.verdict}
