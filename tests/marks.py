"""Marks for tests of schemes: networks for scikit-learn's digits, clean and marked, made once and shared."""

import copy
import functools
import importlib
import json
import multiprocessing
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn

from tests.kept import described, kept_mark, kept_network
from tests.victims import NewestOnly, no_log
from wmarena.experiments.workloads.images.digits import DigitsCnn, DigitsMlp
from wmarena.experiments.workloads.images.task import ImageTask
from wmarena.orchestrator.worker.workload import BoundWorkload
from wmarena.schemes.base import Checkpoints, Owner, Scheme, Suspect, Verdict
from wmarena.schemes.keys import Key
from wmarena.schemes.prf import Prf

WORKLOADS = {"digits_cnn": DigitsCnn(), "digits_mlp": DigitsMlp()}
OWNER_SECRET = b"the owner's secret, for tests only"


@dataclass(frozen=True)
class Embedded:
    """A marked network with its owner's key. Cached: never change it."""

    arena: BoundWorkload
    scheme: Scheme
    key: Key
    model: nn.Module

    def judge(self, model: nn.Module | None = None, key: Key | None = None) -> Verdict:
        """Evidence on the marked network for the owner's key, unless others are given."""
        return self.scheme.judge(Suspect(model or self.model, self.arena.task), key or self.key)


class SmallBatches(ImageTask):
    """The same task, evaluated seven inputs at a time."""

    @classmethod
    def of(cls, task: ImageTask) -> "SmallBatches":
        """``task`` with another evaluation batch."""
        return cls(**{f.name: getattr(task, f.name) for f in fields(task)})

    def predict(self, model: nn.Module, raw: Tensor) -> Tensor:
        """(n,) labels."""
        return torch.cat([super(SmallBatches, self).predict(model, part) for part in torch.split(raw, 7)])

    def stages(self, model: nn.Module, inputs: Tensor, state: Mapping[str, Tensor] | None = None) -> tuple[Tensor, ...]:
        """Outputs of the taps."""
        parts = [super(SmallBatches, self).stages(model, part, state) for part in torch.split(inputs, 7)]
        return tuple(torch.cat(tap) for tap in zip(*parts, strict=True))


@functools.cache
def arena(workload: str = "digits_cnn") -> BoundWorkload:
    """A small workload on the CPU."""
    return WORKLOADS[workload].bind(torch.device("cpu"), None)


@functools.cache
def clean_model(seed: int = 0, epochs: int = 8) -> nn.Module:
    """An unmarked network; copy it before changing it."""
    place = arena()

    def trained() -> nn.Module:
        model = place.task.network(seed)
        place.task.fit(model, place.train, replace(place.task.recipe, epochs=epochs), seed=seed)
        return model

    return kept_network(f"marks {seed} {epochs}", lambda: place.task.network(seed), trained)


def embed(scheme: Scheme, key: Key, checkpoints: Checkpoints, seed: int = 0) -> tuple[nn.Module, Key]:
    """Embed ``key`` as an owner does: into a new network, or into a copy of the clean one."""
    place = arena()
    model = place.task.network(seed) if scheme.from_scratch else copy.deepcopy(clean_model())
    owner = Owner(task=place.task, train=place.train, val=place.val, seed=seed, log=no_log, checkpoints=checkpoints)
    marked, completed = scheme.embed(model, owner, key)
    marked.zero_grad(set_to_none=True)
    return marked.eval(), completed


@functools.cache
def embedded(scheme: Scheme) -> Embedded:
    """The clean network with ``scheme``'s mark."""
    task = arena().task
    model, key = kept_mark(
        f"marks {described(scheme)}",
        lambda: task.network(0),
        lambda: embed(scheme, scheme.keygen(task, Prf(OWNER_SECRET)), NewestOnly()),
    )
    return Embedded(arena(), scheme, key, model)


@functools.cache
def strangers(scheme: Scheme, n: int) -> tuple[tuple[Verdict, ...], tuple[Verdict, ...]]:
    """Verdicts of ``n`` keys that nobody embedded: half on the marked network, half on the clean one."""
    mark, prf = embedded(scheme), Prf(b"strangers to the owner, for tests")
    keys = [scheme.randomise_key(mark.key, prf.child(str(i))) for i in range(n)]
    on_marked = tuple(mark.judge(key=key) for key in keys[: n // 2])
    return on_marked, tuple(mark.judge(clean_model(), key) for key in keys[n // 2 :])


def altered_keys(key: Key) -> list[Key]:
    """``key`` with one bit flipped in its seed or in one of its tensors, and with another public part."""
    altered = [
        replace(key, seed=bytes([key.seed[0] ^ 1]) + key.seed[1:]),
        replace(key, public={**key.public, "workload": "another"}),
    ]
    for name, tensor in key.secret.items():
        flipped = tensor.clone()
        flipped.view(-1).view(torch.uint8)[0] ^= 1
        altered.append(replace(key, secret={**key.secret, name: flipped}))
    return altered


def describe_key(module: str, name: str, config: str, search: Sequence[str] = ()) -> str:
    """Commitment of the key that a scheme, named as text, draws from the owner's secret."""
    sys.path += [folder for folder in search if folder not in sys.path]
    scheme: Scheme = getattr(importlib.import_module(module), name).from_config(json.loads(config))
    return scheme.keygen(arena().task, Prf(OWNER_SECRET)).commitment


@functools.cache
def another_process() -> ProcessPoolExecutor:
    """A process that was started afresh, not forked: it shares no state, hash seed or cache with this one."""
    return ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn"))
