"""MTLSign: a watermark as a second, secret task of the network.

A secret head c_WM reads the network's stages and answers N secret label bits on N secret inputs; the network is trained
so that its features carry the answer. Published: the network. Secret until a dispute: key and head.

    k = #{i : argmax c_WM(stages(map(pi_i))) = l_i},   p = P[Binomial(N, 1/2) >= k],   paper's rule: k >= gamma N

    N          ``n``: triggers                   pi   N distinct integers below 2^m, m = 3 ceil(log2 N)
    lambda1    covertness, lambda2 robustness    l    N uniform bits, not balanced
    gamma      the paper's threshold             map  integer -> input: QR codes for images (the workload's)

Source: Li, Yang, Wang, Liew, "Leveraging Multi-task Learning for Unambiguous and Flexible Deep Neural Network
Watermarking" (SafeAI at AAAI 2022): key generation, equations (5)-(7), algorithm 1.

Differs from the paper:
- ``alpha``: the printed loss has no primary term although the text minimises both; alpha = 1 adds it, 0 is as printed.
- Scale: every sum over N is divided by N, so lambda1 acts as lambda1/N and is nearly inert in the paper's grid;
  ``reg_scale`` multiplies it.
- R_DA is first order (``wmarena.schemes.mtlsign.shift``): perturbations by tuning and pruning are cached and constant.
- Standardised features (``wmarena.schemes.mtlsign.mark``) instead of the stages' raw outputs: the mark then also
  survives fine-tuning at ten times the last rate.
- Defaults: the head learns at a thirtieth of the network's rate. A faster one memorises the labels by itself, and then
  passes on the clean model too. Training continues well past the first perfect mark, because an early stop leaves no
  margin against fine-tuning; the best snapshot is kept, since the mark's accuracy oscillates.
- m is at most 30 bits: beyond N = 1024 two keys share elements slightly more often, on average far less than one.
- p is exact with q = 1/2; the paper's bound uses a measured band instead.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from wmarena.schemes.base import Access, Owner, Recipe, Scheme, Suspect, Verdict, Workload, evaluating
from wmarena.schemes.keys import Key
from wmarena.schemes.mtlsign.loop import EmbedFields, MarkTraining
from wmarena.schemes.mtlsign.mark import Head, Mark, pooled_features, random_head, trigger_data
from wmarena.schemes.params import Json, param
from wmarena.schemes.prf import Prf

_NULL_RATE = 0.5
"""Probability that an unmarked network answers one label bit."""

_FORGE_STEPS, _FORGE_LR = 400, 1e-2
"""Full-batch Adam steps of a forger's own head, and their rate."""


@dataclass(frozen=True, kw_only=True)
class _MTLSign(EmbedFields, Scheme, ABC):
    """Base of the two variants, which differ in the origin of the head."""

    access: ClassVar[Access] = "white"
    paper: ClassVar[str] = "Li, Yang, Wang, Liew, Leveraging Multi-task Learning for DNN Watermarking, SafeAI 2022"
    threat_model: ClassVar[str] = "adversary holds the weights and some data, knows the algorithm, not key and head"

    n: int = param(600, doc="N: triggers, one bit of evidence each", stage="key", low=2, high=10_000)
    hidden: int = param(256, doc="width of the head", stage="key", low=1)
    gamma: float = param(0.7, doc="the paper's threshold on the mark accuracy", stage="verify", low=0.5, high=1)

    def randomise_key(self, key: Key, prf: Prf) -> Key:
        """Draw other triggers and labels; a trained head stays the owner's."""
        return replace(key, seed=prf.stream("seed", 32))

    @abstractmethod
    def new_head(self, key: Key, d: int) -> Head:
        """Draw c_WM for ``d`` features from the key alone, on the CPU."""

    @property
    def trained_head_rate(self) -> float | None:
        """Learning rate of the head; None: the head is not trained."""
        return None

    def twin_recipe(self, task: Workload, n_train: int) -> Recipe | None:
        if self.alpha == 0:
            return None
        return Recipe(optimiser="adam", lr=self.lr, batch_size=self.batch_size, steps=self.steps)

    def for_epochs(self, epochs: int, n_train: int) -> Self:
        return replace(self, steps=epochs * math.ceil(n_train / self.batch_size))

    def keygen(self, task: Workload, prf: Prf) -> Key:
        """Draw the seed, from which triggers, labels and the initial head follow."""
        public: dict[str, Json] = {"config": self.config(until="key"), "workload": task.name}
        return Key(scheme=self.name, seed=prf.stream("seed", 32), public=public)

    def embed(self, model: nn.Module, owner: Owner, key: Key) -> tuple[nn.Module, Key]:
        """Train the mark into ``model``, from W0 on; the key gets information string, architecture and trained head.

        Raises:
            ValueError: the network has no stages to read.
            FloatingPointError: a loss became NaN or infinite.
        """
        task = owner.task
        if not task.stage_names(model):
            raise ValueError(f"expected a network with at least one stage, got none from {task.name}; name its taps")
        mark = self._mark(task, model, replace(key, secret={}))
        if self.trained_head:
            mark = mark.with_trainable_head()
        MarkTraining(self, model, owner, mark, self.trained_head_rate).run()
        if self.alpha > 0:
            task.recalibrate(model, owner.train)
        model.eval()
        public: dict[str, Json] = {
            "information": self._information(task.stage_names(model), mark),
            "architecture": task.architecture(model),
        }
        head = {f"head.{n}": t for n, t in mark.head.items()} if self.trained_head else {}
        return model, key.with_parts(public=public, secret=head)

    def verify(self, suspect: Suspect, key: Key) -> Verdict:
        """Run algorithm 1 with an exact p-value: only a marked network depends on the uniform label bits."""
        mark = self._mark(suspect.task, suspect.model, key)
        n = len(mark.labels)
        features = mark.features(suspect.model)
        if features.shape[1] != mark.n_features:
            found = f"stages give {features.shape[1]} features, the key's head reads {mark.n_features}"
            return Verdict.structure(n, _NULL_RATE, access=self.access, found=found)
        k = int((mark.logits(features).argmax(dim=1) == mark.labels).sum())
        return Verdict.binomial(
            k,
            n,
            _NULL_RATE,
            access=self.access,
            paper=k / n >= self.gamma,
            details={"gamma": self.gamma},
            caveats=("needs_prior_commitment",) if self.trained_head else (),
        )

    def incompatible(self, suspect: Suspect, key: Key) -> str | None:
        """Compare all tensors but the output layer's, which may be replaced: the mark is read below it."""
        architecture = key.public.get("architecture")
        if not isinstance(architecture, dict):
            return None
        output = {id(t) for t in suspect.task.head(suspect.model).state_dict(keep_vars=True).values()}
        own = suspect.model.state_dict(keep_vars=True)
        replaceable = {name for name, tensor in own.items() if id(tensor) in output}
        return suspect.mismatch({n: shape for n, shape in architecture.items() if n not in replaceable})

    def trials(self, key: Key) -> tuple[int, float]:
        return self._drawn(key).n, _NULL_RATE

    def mark_loss(self, model: nn.Module, task: Workload, key: Key, labels: Tensor | None = None) -> Tensor:
        """Return the mean cross-entropy over all triggers (scalar), batch norm in eval mode."""
        mark = self._mark(task, model, key)
        return mark.loss(model) if labels is None else replace(mark, labels=labels).loss(model)

    def _information(self, stages: tuple[str, ...], mark: Mark) -> str:
        """Describe how to attach the head, for the public part of the key."""
        return (
            f"stages {', '.join(stages)}, averaged over space, concatenated in this order, standardised over all "
            f"triggers; head {mark.n_features}-{mark.n_hidden}-2, rectified"
        )

    def _drawn(self, key: Key) -> Self:
        """Return the scheme with the key's own fields. Raises ValueError: the key is another scheme's."""
        config = key.public.get("config")
        if key.scheme != self.name or not isinstance(config, dict):
            raise ValueError(f"expected a key of {self.name}, got one of {key.scheme}; draw it with keygen")
        return self.from_config(config)

    def _mark(self, task: Workload, model: nn.Module, key: Key) -> Mark:
        """Return the key's data and head; a key that was never embedded has the head that its seed gives."""
        drawn = self._drawn(key)
        inputs, labels = trigger_data(task, key, drawn.n)
        stored = {n.removeprefix("head."): t for n, t in key.secret.items()} if self.trained_head else {}
        with torch.no_grad(), evaluating(model):
            head = stored or drawn.new_head(key, pooled_features(task, model, inputs[:1]).shape[1])
        head = {n: t.to(task.device) for n, t in head.items()}
        return Mark(task=task, inputs=inputs, labels=labels, head=head)


@dataclass(frozen=True, kw_only=True)
class MTLSign(_MTLSign):
    """Secret binary task on the network's stages, its head trained along (Li et al. 2022).

    A head trained after the network was published fits any labels: the mark is evidence only if key and head were
    committed to before (caveat ``needs_prior_commitment``).
    """

    name: ClassVar[str] = "mtlsign"
    trained_head: ClassVar[bool] = True

    head_lr: float = param(
        1e-5, doc="Adam rate of the head; from lr / 10 on it memorises the labels", stage="embed", low=0, low_open=True
    )

    @property
    def trained_head_rate(self) -> float | None:
        return self.head_lr

    def new_head(self, key: Key, d: int) -> Head:
        return random_head(key, d, self.hidden, 1.0)

    def forge(self, model: nn.Module, forger: Owner, key: Key) -> Key:
        """Train a head on a frozen ``model``: N bits are separable in as many dimensions (Cover 1965).

        The model does not change, so only a commitment that is older than the model proves the owner.
        """
        mark = self._mark(forger.task, model, key).with_trainable_head()
        with torch.no_grad():
            features = mark.features(model)
        optimiser = torch.optim.Adam(mark.head.values(), lr=_FORGE_LR)
        for _ in range(_FORGE_STEPS):
            optimiser.zero_grad()
            loss = functional.cross_entropy(mark.logits(features), mark.labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        public: dict[str, Json] = {"architecture": forger.task.architecture(model)}
        return key.with_parts(public=public, secret={f"head.{n}": t for n, t in mark.head.items()})


@dataclass(frozen=True, kw_only=True)
class MTLSignFixed(_MTLSign):
    """MTLSign with a fixed head that is drawn from the key: only the network learns, and p needs no commitment.

    A forger can only choose the seed.
    """

    name: ClassVar[str] = "mtlsign_fixed"

    head_scale: float = param(1.0, doc="standard deviation of the head's logits", stage="key", low=0, low_open=True)

    def new_head(self, key: Key, d: int) -> Head:
        return random_head(key, d, self.hidden, self.head_scale)
