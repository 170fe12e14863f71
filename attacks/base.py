"""What every attack is, and the little of the world that it may see.

An attack writes one verb, ``run``. The final ``__call__`` copies the victim, isolates randomness, checks the outcome
and leaves the victim untouched. The view holds the adversary's data share, a budget, the algorithm, and the owner's
key only where ``knows`` says so.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, Literal, final

import torch
from torch import nn

from schemes.base import Checkpoints, Log, Owner, Samples, Scheme, Workload
from schemes.keys import Key
from schemes.params import Configurable, Json, Stage, param
from schemes.prf import Prf, subseed

Knowledge = Literal["weights", "algorithm", "key", "queries"]
Family = Literal["none", "tune", "prune", "compress", "overwrite", "known_key", "ambiguity", "chain"]


class NotGranted(PermissionError):
    """An attack reached for something outside its declared knowledge or budget."""


@dataclass(frozen=True, kw_only=True)
class Budget(Configurable):
    """What the adversary is granted."""

    name: ClassVar[str] = "adversary"

    data_fraction: float = param(
        0.1, doc="share of the training set, class-stratified", stage="attack", low=0, high=1, low_open=True
    )
    disjoint: bool = param(False, doc="draw the share from data that the owner never trained on", stage="attack")
    max_drop: float = param(
        0.05, doc="largest accuracy drop at which a removal counts, absolute", stage="verify", low=0, high=1
    )


@dataclass(frozen=True)
class Claim:
    """A forgery: a key that the adversary presents as theirs, and how many were tried to find it."""

    key: Key
    n_tried: int = 1
    details: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class Piracy:
    """A suspect together with the adversary's own claim on it (overwriting)."""

    model: nn.Module
    claim: Claim


Outcome = nn.Module | Claim | Piracy


class AttackView:
    """All that an attack sees: never test data, never the owner's split, the key only if granted.

    Attributes:
        task: the workload (network, losses, training; no data).
        scheme: the algorithm with its public hyper-parameters, or None where ``knows`` lacks "algorithm".
        data: the adversary's training samples; ``val``: a tenth of the share, held out for model selection.
        budget: what was granted.
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
    ) -> None:
        self.task = task
        self.data = data
        self.val = val
        self.budget = budget
        self.seed = seed
        self.prf = prf
        self.log = log
        self.checkpoints = checkpoints
        self._scheme = scheme
        self._key = key

    @property
    def device(self) -> torch.device:
        """Where to compute."""
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

    def as_owner(self, purpose: str) -> Owner:
        """The adversary in the owner's role (overwriting, forging): same verbs, own data and seeds."""
        return Owner(
            task=self.task,
            train=self.data,
            val=self.val,
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
    """True if a longer strength continues the shorter one's trajectory: the two share checkpoints."""

    @classmethod
    def strength_field(cls) -> str | None:
        """Name of the strength field, or None."""
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
        """What ``run`` returns: a suspect model, a claim, or both."""
        return frozenset({"model"})

    def resolved(self, victim: Scheme) -> "Attack":
        """This attack with defaults that depend on the victim filled in (called once, when a plan is made)."""
        return self

    def applicable(self, victim: Scheme, task_kind: str) -> str | None:
        """Why this attack means nothing against ``victim``, or None."""
        return None

    def needs(self) -> frozenset[Knowledge]:
        """The knowledge this configured attack must be granted (a chain needs the union of its parts)."""
        return self.knows

    def plugins(self) -> list[Configurable]:
        """Plugins named inside this configuration; their code is part of the task's identity."""
        return []

    def trajectory(self) -> dict[str, Json]:
        """Configuration without the strength: attacks that share it share checkpoints."""
        config = self.config(until=_ATTACK)
        if self.incremental:
            config.pop(str(self.strength_field()))
        return config

    @abstractmethod
    def run(self, model: nn.Module, view: AttackView) -> Outcome:
        """Attack ``model``: a private copy on the device, in eval mode, all gradients enabled; free to be changed."""

    @final
    def __call__(self, victim: nn.Module, view: AttackView) -> Outcome:
        """Attack a copy of ``victim``.

        Raises:
            FloatingPointError: the suspect has NaN or infinite weights.
        """
        model = copy.deepcopy(victim).eval()
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        with isolated_rng(subseed(view.seed, "global")):
            outcome = self.run(model, view)
        suspect = outcome.model if isinstance(outcome, Piracy) else outcome
        if isinstance(suspect, nn.Module):
            finish(suspect)
        return outcome


_ATTACK: Stage = "attack"


def finish(suspect: nn.Module) -> None:
    """Eval mode, gradients enabled; raises FloatingPointError naming the first non-finite tensor."""
    for name, tensor in suspect.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise FloatingPointError(f"expected finite weights after the attack, got NaN or infinity in {name}")
    for parameter in suspect.parameters():
        parameter.requires_grad_(True)
    suspect.eval()


@contextmanager
def isolated_rng(seed: int) -> Iterator[None]:
    """Global torch generators seeded inside, restored afterwards."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
