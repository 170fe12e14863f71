"""Base class of all attacks, and the view that limits what an attack can read.

An attack implements ``run``. The final ``__call__`` copies the victim, isolates randomness and checks the outcome. The
view holds the adversary's data share, a budget, the algorithm, and the owner's key only if ``knows`` declares it.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NoReturn, final

import torch
from torch import nn

from wmarena.attacks.knowledge import (
    AuxiliaryData,
    Budget,
    Knowledge,
    Meter,
    Metered,
    NotGranted,
    SealedModel,
    uncounted,
)
from wmarena.schemes.base import Checkpoints, Log, Owner, Samples, Scheme, TaskInfo, Workload
from wmarena.schemes.keys import Key
from wmarena.schemes.params import Configurable, Json, Stage
from wmarena.schemes.prf import Prf, subseed
from wmarena.schemes.training_state import seeded

Family = Literal[
    "none",
    "tune",
    "prune",
    "compress",
    "overwrite",
    "known_key",
    "ambiguity",
    "equivalence",
    "adaptive",
    "extraction",
    "chain",
]

LUKAS_2022 = "Lukas et al. 2022, SoK: How Robust is Image Classification Deep Neural Network Watermarking?"
"""The paper of several attacks."""


@dataclass(frozen=True)
class Claim:
    """A key that the adversary claims the model with, and the number of keys tried to find it."""

    key: Key
    n_tried: int = 1
    details: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class Piracy:
    """A suspect together with the adversary's own claim on it (overwriting)."""

    model: nn.Module
    claim: Claim


@dataclass(frozen=True)
class Finding:
    """A suspect together with facts that the attack measured (accuracy on another task, queries used)."""

    model: nn.Module
    details: dict[str, Json] = field(default_factory=dict)


AttackOutcome = nn.Module | Claim | Piracy | Finding


class AttackView:
    """The data and services of an attack: no test data, no data of the owner, the key only if granted.

    Attributes:
        task: the workload (network, losses, training; no data).
        scheme: the algorithm with its public hyper-parameters, if ``knows`` includes "algorithm".
        data: the adversary's training samples; ``val``: a tenth of the share, held out for model selection.
        budget: the granted budget; its epochs count the samples of ``data`` and ``val`` that training reads.
        auxiliary_data: name of a workload -> its (training, validation) samples, normalised in its own way, and its
            task, for the data sets that the attack declares; else raises NotGranted.
        seed: fixes batch order; ``prf``: the adversary's own key seed, unrelated to the owner's.
    """

    def __init__(
        self,
        *,
        task: Workload,
        scheme: Scheme | None,
        data: Samples,
        val: Samples,
        budget: Budget,
        seed: int,
        prf: Prf,
        log: Log,
        checkpoints: Checkpoints,
        key: Key | None = None,
        auxiliary_data: AuxiliaryData | None = None,
    ) -> None:
        self.task = task
        self._train, self._val = uncounted(data), uncounted(val)
        self._meter = None if budget.max_epochs is None else Meter(budget.max_epochs, len(data))
        self.data = self._train if self._meter is None else Metered(self._train, self._meter)
        self.val = self._val if self._meter is None else Metered(self._val, self._meter)
        self.budget = budget
        self.seed = seed
        self.prf = prf
        self.log = log
        self.checkpoints = checkpoints
        self._scheme = scheme
        self._key = key
        self.auxiliary_data = AuxiliaryData({}) if auxiliary_data is None else auxiliary_data.counted(budget.max_epochs)

    @property
    def device(self) -> torch.device:
        """The device to compute on."""
        return self.task.device

    @property
    def scheme(self) -> Scheme:
        """The victim's algorithm. Raises NotGranted if the attack does not declare it."""
        if self._scheme is None:
            raise NotGranted("expected an attack that knows the algorithm; declare 'algorithm' in its `knows`")
        return self._scheme

    @property
    def key(self) -> Key:
        """The owner's key. Raises NotGranted unless the attack's declared knowledge includes it."""
        if self._key is None:
            raise NotGranted("expected an attack that was granted the key; declare 'key' in its `knows`")
        return self._key

    @property
    def test(self) -> NoReturn:
        """Test data, granted to no attack: raises NotGranted."""
        raise NotGranted("expected an attack that reads its own data, got one that reads test data; use data or val")

    @property
    def train(self) -> NoReturn:
        """The owner's data: raises NotGranted."""
        raise NotGranted("expected an attack that reads its own data, got one that reads the owner's; use data")

    @property
    def granted(self) -> Samples:
        """The share for another view (a chain's next part), which starts its own count of epochs."""
        return self.data

    def spend(self, n_samples: int) -> None:
        """Count training on samples that were read before. Raises NotGranted: the budget's epochs are used up."""
        if self._meter is not None:
            self._meter.charge(n_samples)

    def naming(self, data_sets: Iterable[str]) -> "AttackView":
        """Return this view with only the auxiliary ``data_sets``; the counts are shared."""
        narrowed = copy.copy(self)
        narrowed.auxiliary_data = self.auxiliary_data.only(data_sets)
        return narrowed

    def as_owner(self, purpose: str) -> Owner:
        """Return the adversary in the owner's role (overwriting, forging), with own data and seeds.

        The scheme's own number of epochs applies, not the budget's. Raises NotGranted unless the attack knows the
        algorithm.
        """
        if self._scheme is None:
            raise NotGranted("expected an attack that knows the algorithm; declare 'algorithm' in its `knows`")
        return Owner(
            task=self.task,
            train=self._train,
            val=self._val,
            seed=subseed(self.seed, purpose),
            log=self.log,
            checkpoints=self.checkpoints,
        )


@dataclass(frozen=True, kw_only=True)
class Attack(Configurable, ABC):
    """Base of all attacks. One field at most is marked as the monotone ``strength``."""

    family: ClassVar[Family]
    knows: ClassVar[frozenset[Knowledge]]
    paper: ClassVar[str]
    incremental: ClassVar[bool] = False
    """True if a greater strength continues the smaller one's trajectory: the two share checkpoints."""
    direction: ClassVar[Literal[1, -1]] = 1
    """1 if larger values of the strength are stronger attacks, -1 if smaller ones are (bits of a quantiser)."""
    rewrites: ClassVar[bool] = False
    """True if weights are rearranged with the function unchanged: white-box marks are also judged after realigning."""

    @classmethod
    def strength_field(cls) -> str | None:
        """Return the name of the strength field, or None."""
        return next((n for n, p in cls.parameters().items() if p.strength), None)

    @property
    def strength(self) -> float | None:
        """Value of the strength field as a number, or None."""
        name = self.strength_field()
        value = getattr(self, name) if name else None
        return None if value is None else float(value)

    @property
    def label(self) -> str:
        """Short name for tables and runs: the attack and its variant, without the strength."""
        return self.name

    @property
    def replaces_head(self) -> bool:
        """True if the output layer is re-initialised: black-box marks are then judged with both heads."""
        return False

    @property
    def makes(self) -> frozenset[Literal["model", "claim"]]:
        """The outcome of ``run``: a suspect model, a claim, or both."""
        return frozenset({"model"})

    def resolved(self, victim: Scheme) -> "Attack":
        """Return this attack with victim-dependent defaults filled in (called once, when a plan is made)."""
        return self

    def within(self, epochs: int, n_samples: int) -> "Attack":
        """Return this attack with at most ``epochs`` passes over ``n_samples`` (called once, when a plan is made).

        The field ``epochs`` is lowered if there is one; attacks that count otherwise override this.
        """
        if "epochs" not in self.parameters():
            return self
        own = self.config()["epochs"]
        if isinstance(own, int) and own <= epochs:
            return self
        changes: Any = {"epochs": epochs}  # a field of the subclass, unknown to static types
        return replace(self, **changes)

    def applicable(self, victim: Scheme, info: TaskInfo) -> str | None:
        """Return why this attack does not apply to ``victim`` on such a task, or None."""
        return None

    def data_sets(self) -> tuple[str, ...]:
        """Return the workloads whose data this attack trains on besides the adversary's share."""
        return ()

    def needs(self) -> frozenset[Knowledge]:
        """Return the knowledge that this attack must be granted (for a chain the union of its parts)."""
        return self.knows

    def plugins(self) -> list[Configurable]:
        """Return the plugins inside this configuration; their code is part of the task's identity."""
        return []

    def trajectory(self) -> dict[str, Json]:
        """Return the configuration without the strength: attacks that share it share checkpoints."""
        config = self.config(until=_ATTACK)
        if self.incremental:
            config.pop(str(self.strength_field()))
        return config

    @abstractmethod
    def run(self, model: nn.Module, view: AttackView) -> AttackOutcome:
        """Attack ``model``: a private copy on the device, in eval mode, all gradients enabled; free to be changed.

        An attack that does not declare "weights" gets a ``SealedModel``.
        """

    @final
    def __call__(self, victim: nn.Module, view: AttackView) -> AttackOutcome:
        """Attack a copy of ``victim``. Raises FloatingPointError: the suspect has NaN or infinite weights."""
        private = copy.deepcopy(victim).eval()
        for parameter in private.parameters():
            parameter.requires_grad_(True)
        given = self._sealed(private, view.budget)
        with seeded(subseed(view.seed, "global"), view.task.device):
            outcome = self.run(given, view.naming(self.data_sets()))
        if outcome is given:
            outcome = private
        suspect = outcome.model if isinstance(outcome, Piracy | Finding) else outcome
        if isinstance(suspect, nn.Module):
            finish(suspect)
        return outcome

    def _sealed(self, model: nn.Module, budget: Budget) -> nn.Module:
        """Return ``model`` as this attack may see it."""
        needs = self.needs()
        if "weights" in needs:
            return model
        return SealedModel(model, budget.max_queries if "queries" in needs else 0)


_ATTACK: Stage = "attack"


def finish(suspect: nn.Module) -> None:
    """Set eval mode and enable gradients; raises FloatingPointError naming the first non-finite tensor."""
    for name, tensor in suspect.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise FloatingPointError(f"expected finite weights after the attack, got NaN or infinity in {name}")
    for parameter in suspect.parameters():
        parameter.requires_grad_(True)
    suspect.eval()
