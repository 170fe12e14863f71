"""Chains: attacks in order, each on the suspect that the previous one left.

Every part gets its own randomness (its index enters the seeds) and only the knowledge that it declares, so a chain
knows no more than its parts.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from wmarena.attacks.base import LUKAS_2022, Attack, AttackOutcome, AttackView, Claim, Family, Finding, Piracy
from wmarena.attacks.knowledge import Knowledge
from wmarena.attacks.phases import PART_SPAN, Phase
from wmarena.schemes.base import Scheme, TaskInfo
from wmarena.schemes.params import Configurable, Json, param
from wmarena.schemes.prf import subseed


@dataclass(frozen=True, kw_only=True)
class Chain(Attack):
    """Several attacks in order; the last one's claim, if it makes one, is the chain's."""

    name: ClassVar[str] = "chain"
    family: ClassVar[Family] = "chain"
    knows: ClassVar[frozenset[Knowledge]] = frozenset({"weights"})
    paper: ClassVar[str] = LUKAS_2022

    attacks: tuple[Attack, ...] = param(doc="the parts, in order", stage="attack")

    def problems(self) -> Iterable[tuple[str, str]]:
        if len(self.attacks) < 2:
            yield "attacks", f"expected two attacks or more, got {len(self.attacks)}; name a single attack by itself"
        for attack in self.attacks:
            if isinstance(attack, Chain):
                yield "attacks", "expected attacks, got a chain inside a chain; list its parts in their order"
        for attack in self.attacks[:-1]:
            if "model" not in attack.makes:
                yield (
                    "attacks",
                    f"expected {attack.name} in the last place, got it earlier: it leaves no model to attack",
                )

    @property
    def label(self) -> str:
        return "+".join(attack.name for attack in self.attacks)

    @property
    def strength(self) -> float | None:
        """The strength of the last part that has one."""
        return next((a.strength for a in reversed(self.attacks) if a.strength is not None), None)

    @property
    def replaces_head(self) -> bool:
        return any(attack.replaces_head for attack in self.attacks)

    @property
    def makes(self) -> frozenset[Literal["model", "claim"]]:
        # All parts but the last change the model, so a claim at the end is one on a new suspect.
        return self.attacks[-1].makes | {"model"}

    def resolved(self, victim: Scheme) -> "Chain":
        return dataclasses.replace(self, attacks=tuple(a.resolved(victim) for a in self.attacks))

    def applicable(self, victim: Scheme, info: TaskInfo) -> str | None:
        reasons = ((a.name, a.applicable(victim, info)) for a in self.attacks)
        return next((f"{name}: {why}" for name, why in reasons if why is not None), None)

    def within(self, epochs: int, n_samples: int) -> "Chain":
        """Shorten every part by itself."""
        return dataclasses.replace(self, attacks=tuple(a.within(epochs, n_samples) for a in self.attacks))

    def data_sets(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for a in self.attacks for name in a.data_sets()))

    @property
    def rewrites(self) -> bool:  # type: ignore[override]
        return any(attack.rewrites for attack in self.attacks)

    def needs(self) -> frozenset[Knowledge]:
        return self.knows.union(*(attack.needs() for attack in self.attacks))

    def plugins(self) -> list[Configurable]:
        return [plugin for attack in self.attacks for plugin in (attack, *attack.plugins())]

    def run(self, model: nn.Module, view: AttackView) -> AttackOutcome:
        claim: Claim | None = None
        facts: dict[str, Json] = {}
        for index, attack in enumerate(self.attacks):
            outcome = attack(model, self._view(view, index))
            claim = None
            if isinstance(outcome, Claim):
                claim = outcome
            elif isinstance(outcome, Piracy):
                model, claim = outcome.model, outcome.claim
            elif isinstance(outcome, Finding):
                model, facts = outcome.model, facts | {f"{index}.{k}": v for k, v in outcome.details.items()}
            else:
                model = outcome
        if claim is not None:
            return Piracy(model, claim)
        return Finding(model, facts) if facts else model

    def _view(self, view: AttackView, index: int) -> AttackView:
        """Build the view of part ``index``."""
        needs = self.attacks[index].needs()
        return AttackView(
            task=view.task,
            scheme=view.scheme if "algorithm" in needs else None,
            data=view.granted,
            val=view.val,
            budget=view.budget,
            seed=subseed(view.seed, "chain", index),
            prf=view.prf.child(f"chain/{index}"),
            log=view.log,
            checkpoints=Phase(view.checkpoints, index, PART_SPAN),
            key=view.key if "key" in needs else None,
            auxiliary_data=view.auxiliary_data if self.attacks[index].data_sets() else None,
        )
