"""Small marked models to attack, trained once per test run, and checkpoints as a crash leaves them."""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from tests.kept import described, kept_mark, kept_network
from wmarena.experiments.workloads.images.digits import DigitsCnn, DigitsMlp
from wmarena.experiments.workloads.networks.base import Network
from wmarena.experiments.workloads.networks.dsn import DsnMnist
from wmarena.orchestrator.worker.workload import BoundWorkload
from wmarena.schemes.base import Cancelled, Owner, Scheme, Suspect, Verdict
from wmarena.schemes.keys import Key
from wmarena.schemes.prf import Prf


@dataclass(frozen=True, kw_only=True)
class DigitsDsn(DigitsCnn):
    """The digits with convolutions and two dense layers, without batch norm."""

    name: ClassVar[str] = "digits_dsn"

    def build(self) -> Network:
        network = DsnMnist()
        network.fc1 = nn.Linear(32 * 6 * 6, network.head.in_features)
        return network


WORKLOADS = {
    "digits_mlp": DigitsMlp(epochs=4),
    "digits_cnn": DigitsCnn(epochs=4),
    "digits_dsn": DigitsDsn(epochs=6, lr=2e-3),
}


@dataclass
class NewestOnly:
    """Checkpoints as a crash leaves them: the newest and the kept ones. The ``stop_at``-th offer stops the run."""

    stop_at: int | None = None
    n_offers: int = 0
    states: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    kept: set[int] = field(default_factory=set)

    def latest(self, at_most: int | None = None) -> tuple[int, dict[str, Tensor]] | None:
        """The newest state that is not beyond ``at_most``."""
        steps = [s for s in self.states if at_most is None or s <= at_most]
        return (max(steps), self.states[max(steps)]) if steps else None

    def offer(self, step: int, state: Callable[[], dict[str, Tensor]], *, keep: bool = False) -> None:
        """Keep this state, and of the older ones those that were to be kept."""
        self.states = {s: old for s, old in self.states.items() if s in self.kept} | {step: state()}
        self.kept |= {step} if keep else set()
        self.n_offers += 1
        if self.n_offers == self.stop_at:
            raise Cancelled


@dataclass(frozen=True)
class Victim:
    """A marked model with what is needed to attack and to judge it. Cached: never change it."""

    arena: BoundWorkload
    scheme: Scheme
    key: Key
    model: nn.Module

    def judge(self, suspect: nn.Module, key: Key | None = None) -> Verdict:
        """Evidence on ``suspect``, for the owner's key unless another is given."""
        return self.scheme.judge(Suspect(suspect, self.arena.task), key or self.key)

    def accuracy(self, suspect: nn.Module) -> float:
        """Test accuracy."""
        return self.arena.task.score(suspect, self.arena.test)


def no_log(step: int, **metrics: float) -> None:
    """A training log for those who do not read it."""


@functools.cache
def arena(workload: str) -> BoundWorkload:
    """A small workload on the CPU."""
    return WORKLOADS[workload].bind(torch.device("cpu"), None)


@functools.cache
def clean_model(workload: str, seed: int = 0) -> nn.Module:
    """An unmarked model of ``workload``; copy it before changing it."""
    place = arena(workload)

    def trained() -> nn.Module:
        model = place.task.network(seed)
        place.task.fit(model, place.train, place.task.recipe, seed=seed)
        return model

    return kept_network(f"victims {WORKLOADS[workload]!r} {seed}", lambda: place.task.network(seed), trained)


@functools.cache
def marked(workload: str, scheme: Scheme) -> Victim:
    """A model of ``workload`` that carries ``scheme``'s mark."""
    place = arena(workload)

    def embedded() -> tuple[nn.Module, Key]:
        owner = Owner(task=place.task, train=place.train, val=place.val, seed=0, log=no_log, checkpoints=NewestOnly())
        key = scheme.keygen(place.task, Prf(b"the owner's secret, for tests only"))
        return scheme.embed(copy.deepcopy(clean_model(workload)), owner, key)

    name = f"victims {WORKLOADS[workload]!r} {described(scheme)}"
    model, key = kept_mark(name, lambda: place.task.network(0), embedded)
    return Victim(place, scheme, key, model)
