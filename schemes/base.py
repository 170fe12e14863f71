"""What every scheme is, and what it may ask of the workload it protects.

A scheme writes ``keygen``, ``embed``, ``verify`` (and hooks that make spoil, overwrite and ambiguity generic). The
workload implements the protocols below; neither side knows an orchestrator, so a scheme runs in a notebook.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol, final

import torch
from torch import Tensor, nn

from wmarena.schemes.keys import Key
from wmarena.schemes.params import Configurable, Json
from wmarena.schemes.prf import Prf
from wmarena.schemes.statistics import (
    LEVEL,
    binomial_threshold,
    correlation_threshold,
    log10_adjusted,
    log10_binomial_tail,
    log10_correlation_tail,
    margin,
)

Access = Literal["black", "white"]
SplitAt = Literal["dense", "head"]
PMethod = Literal["binomial", "key_randomisation", "gauss", "hash"]
Batch = tuple[Tensor, Tensor]
"""(inputs, targets) on the workload's device, inputs normalised as the network wants them."""


@dataclass(frozen=True, kw_only=True)
class TaskInfo:
    """What kind of task a workload is.

    Attributes:
        kind: "classification", "sentiment", "detection".
        num_classes: C.
        input_shape: shape of one raw input; for images (channels, height, width) of uint8 pixels.
        metric: name of the primary metric, a number in [0, 1].
    """

    kind: str
    num_classes: int
    input_shape: tuple[int, ...]
    metric: str = "accuracy"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained.

    Attributes:
        optimiser: "sgd" (Nesterov off) or "adam".
        lr: peak learning rate.
        epochs: passes over the data; with ``steps`` only an upper bound is dropped: ``steps`` decides.
        steps: exact number of optimiser steps, or None for ``epochs`` whole passes.
        schedule: "constant" (horizon-free), "one_cycle" or "step" (x0.1 at ``milestones``, in epochs).
        bn_mode: "train" updates batch-norm statistics, "eval" leaves them.
    """

    optimiser: Literal["sgd", "adam"]
    lr: float
    batch_size: int
    epochs: int = 1
    steps: int | None = None
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Literal["constant", "one_cycle", "step"] = "constant"
    milestones: tuple[int, ...] = ()
    augment: bool = True
    bn_mode: Literal["train", "eval"] = "train"


class Cancelled(Exception):
    """Raised inside a task when the run is being stopped; the last checkpoint is kept."""


class Checkpoints(Protocol):
    """Where a long computation leaves its state; a resumed one is bit-equal to an undisturbed one."""

    def latest(self, at_most: int | None = None) -> tuple[int, dict[str, Tensor]] | None:
        """The newest (step, state) with step <= ``at_most``, or None."""
        ...

    def offer(self, step: int, state: Callable[[], dict[str, Tensor]], *, keep: bool = False) -> None:
        """Save if one is due (always when ``keep``); raises Cancelled when the run is stopping."""
        ...


class Log(Protocol):
    """Receives training curves. Never receives keys."""

    def __call__(self, step: int, **metrics: float) -> None: ...


class Samples(Protocol):
    """A share of a workload's data, resident on the device. Holds no other split."""

    def __len__(self) -> int: ...

    def batches(self, batch_size: int, *, seed: int, epoch: int, augment: bool = True) -> Iterator[Batch]:
        """One shuffled epoch of full batches (a last partial batch is kept); depends on (seed, epoch) only."""
        ...

    def in_order(self, batch_size: int = 1000) -> Iterator[Batch]:
        """All samples once, unshuffled, unaugmented."""
        ...

    def raw(self) -> Batch:
        """All (raw inputs (n, *input_shape), targets), in order, as ``Workload.to_inputs`` takes them."""
        ...

    def share(self, fraction: float, *, domain: str, seed: int) -> "Samples":
        """A class-stratified random share, copied; shares of different domains overlap by chance only."""
        ...

    def split(self, fraction: float, *, domain: str, seed: int) -> tuple["Samples", "Samples"]:
        """(rest, part): a class-stratified part of about ``fraction``, and everything else."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """A model on one split.

    Attributes:
        score: primary metric in [0, 1].
        predicted, targets: (n,) int16 class labels in sample order, None where the task has no single label.
    """

    score: float
    predicted: Tensor | None = None
    targets: Tensor | None = None


class Workload(Protocol):
    """What is protected: a task, a network, a way to train it. Bound to one device; holds no data."""

    @property
    def name(self) -> str: ...
    @property
    def info(self) -> TaskInfo: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def recipe(self) -> Recipe:
        """The workload's own training recipe."""
        ...

    def network(self, seed: int) -> nn.Module:
        """A freshly initialised network on the device, in train mode."""
        ...

    def architecture(self, model: nn.Module) -> dict[str, Json]:
        """Tensor name -> shape: what a white-box verifier must find in a suspect."""
        ...

    def to_inputs(self, raw: Tensor) -> Tensor:
        """Raw inputs (n, *input_shape), uint8 for images -> normalised float inputs on the device."""
        ...

    def encode_integers(self, values: Sequence[int]) -> Tensor:
        """Integers below 2^30 -> distinct raw inputs (n, *input_shape): QR codes for images."""
        ...

    def stages(self, model: nn.Module, inputs: Tensor, state: Mapping[str, Tensor] | None = None) -> tuple[Tensor, ...]:
        """Outputs of the network's named taps, in order, each (n, channels[, h, w]).

        ``state`` (parameter and buffer name -> tensor) replaces the model's own tensors for this call, differentiably.
        """
        ...

    def stage_names(self, model: nn.Module) -> tuple[str, ...]:
        """Names of the taps, for the information string."""
        ...

    def head(self, model: nn.Module) -> nn.Module:
        """The output layer: what *LL attacks train and RT* attacks re-initialise."""
        ...

    def split(self, model: nn.Module, at: SplitAt) -> tuple[nn.Module, nn.Module]:
        """(extractor, predictor), sharing the model's parameters: ``model(x) == predictor(extractor(x))``.

        Args:
            at: "dense": the extractor ends where the convolutions do (a network without hidden dense layers is split
                at its head); "head": the predictor is the output layer.
        """
        ...

    def loss(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean primary loss of a batch (scalar)."""
        ...

    def predict(self, model: nn.Module, raw: Tensor) -> Tensor:
        """(n,) int64 top-1 labels of raw inputs, in eval mode and full precision, in fixed-size batches."""
        ...

    def score(self, model: nn.Module, samples: Samples) -> float:
        """Primary metric in [0, 1] (top-1 accuracy for classification), in eval mode."""
        ...

    def evaluate(self, model: nn.Module, samples: Samples) -> Evaluation:
        """``score`` together with the answers it was computed from."""
        ...

    def fit(
        self,
        model: nn.Module,
        samples: Samples,
        recipe: Recipe,
        *,
        seed: int,
        extra: Callable[[int], Batch] | None = None,
        penalty: Callable[[nn.Module], Tensor] | None = None,
        log: Log | None = None,
        checkpoints: Checkpoints | None = None,
        keep_at: Iterable[int] = (),
    ) -> None:
        """Train ``model`` in place; only parameters that require gradients move.

        Args:
            seed: fixes batch order and augmentation; epoch e depends on (seed, e) only.
            extra: global step -> (inputs, targets) appended to that step's batch, not augmented (triggers).
            penalty: scalar added to each step's loss (a weight regulariser).
            log: receives ``loss`` once per epoch.
            checkpoints: state is offered after each epoch; training continues from the latest one.
            keep_at: epochs whose checkpoint is always kept.

        Raises:
            FloatingPointError: the loss became NaN or infinite.
        """
        ...

    def recalibrate(self, model: nn.Module, samples: Samples) -> None:
        """Recompute batch-norm statistics on ``samples`` (no-op without batch norm)."""
        ...


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A claim with its statistics, never a bare True (specs 0.2-0.4, 5.2).

    Attributes:
        statistic: k / n for exact binomial tests; else the scheme's own statistic (a correlation may be negative).
        threshold: smallest passing statistic at ``level``; above 1 where nothing passes.
        log10_p: log10 of the p-value under ``p_method``'s null model.
        log10_p_adj: the same if 2^64 keys (or the number really tried) may have been ground through.
        verdict: log10_p <= log10(level).
        verdict_paper: the paper's own rule, None where it has none.
        reason: "structure" when the suspect does not fit the key, else None.
    """

    statistic: float
    n: int
    k: int | None
    null_q: float | None
    threshold: float
    level: float
    log10_p: float
    log10_p_adj: float
    p_method: PMethod
    verdict: bool
    verdict_paper: bool | None
    margin: float
    access: Access
    queries: int = 0
    reason: str | None = None
    details: Mapping[str, Json] = field(default_factory=dict)
    caveats: tuple[str, ...] = ()

    @classmethod
    def binomial(
        cls,
        k: int,
        n: int,
        q: float,
        *,
        access: Access,
        paper: bool | None,
        queries: int = 0,
        level: float = LEVEL,
        details: Mapping[str, Json] | None = None,
        caveats: Sequence[str] = (),
    ) -> "Verdict":
        """k of n independent matches, each with probability q under the null (exact)."""
        log10_p = log10_binomial_tail(k, n, q)
        k_pass = binomial_threshold(n, q, level)
        return cls(
            statistic=k / n,
            n=n,
            k=k,
            null_q=q,
            threshold=k_pass / n,
            level=level,
            log10_p=log10_p,
            log10_p_adj=log10_adjusted(log10_p),
            p_method="binomial",
            verdict=k >= k_pass,
            verdict_paper=paper,
            margin=margin(k / n, k_pass / n),
            access=access,
            queries=queries,
            details=dict(details or {}),
            caveats=tuple(caveats),
        )

    @classmethod
    def gauss(
        cls,
        r: float,
        n: int,
        *,
        access: Access,
        paper: bool | None,
        level: float = LEVEL,
        details: Mapping[str, Json] | None = None,
        caveats: Sequence[str] = (),
    ) -> "Verdict":
        """Pearson correlation ``r`` of n values: atanh(r) sqrt(n - 3) is standard normal under the null (Fisher)."""
        log10_p, threshold = log10_correlation_tail(r, n), correlation_threshold(n, level)
        return cls(
            statistic=r,
            n=n,
            k=None,
            null_q=None,
            threshold=threshold,
            level=level,
            log10_p=log10_p,
            log10_p_adj=log10_adjusted(log10_p),
            p_method="gauss",
            verdict=log10_p <= math.log10(level),
            verdict_paper=paper,
            margin=margin(r, threshold),
            access=access,
            details=dict(details or {}),
            caveats=tuple(caveats),
        )

    @classmethod
    def randomised(
        cls,
        k: int,
        n: int,
        random_counts: Sequence[int],
        n_keys: int,
        *,
        access: Access,
        paper: bool,
        paper_threshold: float,
        queries: int = 0,
        details: Mapping[str, Json] | None = None,
        caveats: Sequence[str] = (),
    ) -> "Verdict":
        """k of n matches against the counts of random keys on the same suspect; ties count against the claimant.

        p = (1 + #{r: T_r >= T}) / (R + 1); the level is the smallest attainable p, and the paper's rule must hold
        too (specs 0.2, A.7). A search that was stopped early (Besag and Clifford 1991) passes fewer counts than keys:
        p is then exceedances / draws.

        Args:
            random_counts: matches of the random keys that were drawn, at most ``n_keys``.
            n_keys: R, the random keys that would have been drawn.
            paper_threshold: smallest statistic that the paper's rule lets pass.
        """
        exceeding = sum(count >= k for count in random_counts)
        stopped = len(random_counts) < n_keys
        p = exceeding / len(random_counts) if stopped else (1 + exceeding) / (n_keys + 1)
        level = 1 / (n_keys + 1)
        beyond = (max(random_counts, default=-1) + 1) / n
        log10_p = math.log10(p)
        threshold = max(beyond, paper_threshold)
        return cls(
            statistic=k / n,
            n=n,
            k=k,
            null_q=None,
            threshold=threshold,
            level=level,
            log10_p=log10_p,
            log10_p_adj=log10_adjusted(log10_p),
            p_method="key_randomisation",
            verdict=exceeding == 0 and paper,
            verdict_paper=paper,
            margin=margin(k / n, threshold),
            access=access,
            queries=queries,
            details={**(details or {}), "random_keys": len(random_counts)},
            caveats=tuple(caveats),
        )

    @classmethod
    def structure(
        cls, n: int, q: float | None, *, access: Access, found: str, p_method: PMethod = "binomial"
    ) -> "Verdict":
        """The suspect does not have the parts that the key speaks of: not found, p = 1."""
        details: dict[str, Json] = {"found": found}
        if p_method == "binomial" and q is not None:
            base = cls.binomial(0, n, q, access=access, paper=False, details=details)
        elif p_method == "gauss":
            base = cls.gauss(0.0, n, access=access, paper=False, details=details)
        else:
            base = cls.randomised(0, n, [0], 1, access=access, paper=False, paper_threshold=1.0, details=details)
        return cls(**{**base.__dict__, "reason": "structure", "log10_p": 0.0, "log10_p_adj": 0.0})


class Suspect:
    """A model to be judged. Counts queries; offers weights and taps to white-box schemes."""

    def __init__(self, model: nn.Module, task: Workload) -> None:
        self.model = model
        self.task = task
        self.queries = 0

    def labels(self, raw: Tensor) -> Tensor:
        """(n,) top-1 labels for raw inputs (n, *input_shape)."""
        self.queries += len(raw)
        return self.task.predict(self.model, raw)

    def mismatch(self, architecture: Mapping[str, Json]) -> str | None:
        """Why the suspect's tensors differ from ``architecture`` (name -> shape), or None."""
        own = self.task.architecture(self.model)
        absent = [n for n in architecture if n not in own]
        if absent:
            return f"no tensor {absent[0]!r}" + (f" and {len(absent) - 1} more" if len(absent) > 1 else "")
        for name, shape in architecture.items():
            if own[name] != shape:
                return f"{name} has shape {own[name]}, the key expects {shape}"
        return None


@dataclass(frozen=True, kw_only=True)
class Owner:
    """What the owner (or an adversary playing owner) embeds with. Holds no test data.

    Attributes:
        task: the workload.
        train, val: the owner's data; hyper-parameters and stopping read ``val`` only.
        seed: fixes batch order and everything random that is not key material.
    """

    task: Workload
    train: Samples
    val: Samples
    seed: int
    log: Log
    checkpoints: Checkpoints


@dataclass(frozen=True)
class Carrier:
    """Scalars that carry a weight-type mark: all of parameter ``name``, or those under ``mask``."""

    name: str
    mask: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Scheme(Configurable, ABC):
    """Base of all schemes. Fields carry the paper's symbols; ``stage`` says when each acts."""

    access: ClassVar[Access]
    p_method: ClassVar[PMethod] = "binomial"
    paper: ClassVar[str]
    threat_model: ClassVar[str]
    trained_head: ClassVar[bool] = False
    """True if verification uses a network trained with the mark: evidence needs a prior commitment."""

    @property
    def from_scratch(self) -> bool:
        """True if ``embed`` trains a new network instead of continuing from the clean one."""
        return False

    def applicable(self, info: TaskInfo) -> str | None:
        """Why this scheme cannot protect such a task, or None."""
        return None

    def twin_recipe(self, task: Workload, n_train: int) -> Recipe | None:
        """The training that ``embed`` adds to the clean model, without the mark: the compute-matched clean twin.

        None for schemes that train from scratch: their twin is the clean model.
        """
        return None

    def as_overwriter(self) -> "Scheme":
        """This scheme as somebody runs it on a stolen model: from that model, not from scratch."""
        return self

    def licensed_task(self, task: Workload, key: Key) -> Workload | None:
        """The task as those see it who may use the model (DSN: with the serial number in each input).

        None where everybody may. What the marked model is worth is then measured on this task.
        """
        return None

    def for_epochs(self, epochs: int, n_train: int) -> "Scheme":
        """This scheme with an embedding of ``epochs`` passes over ``n_train`` samples (for overwriting)."""
        raise NotImplementedError(f"{self.name} has no epochs to set")

    @abstractmethod
    def keygen(self, task: Workload, prf: Prf) -> Key:
        """Draw a key. ``prf`` is the only source of randomness."""

    @abstractmethod
    def embed(self, model: nn.Module, owner: Owner, key: Key) -> tuple[nn.Module, Key]:
        """Mark ``model`` in place (a private copy; freshly initialised if ``from_scratch``) and complete the key.

        Returns:
            (marked model as it is published, completed key).
        """

    @abstractmethod
    def verify(self, suspect: Suspect, key: Key) -> Verdict:
        """Evidence on a suspect that fits the key; called through ``judge``, in eval mode, without gradients."""

    @abstractmethod
    def randomise_key(self, key: Key, prf: Prf) -> Key:
        """A key that its holder did not embed, with the same public structure: the stranger's key."""

    @abstractmethod
    def incompatible(self, suspect: Suspect, key: Key) -> str | None:
        """Why the suspect's structure does not fit the key, or None."""

    @abstractmethod
    def trials(self, key: Key) -> tuple[int, float | None]:
        """(n, q) of the key's test, for evidence on suspects that do not fit; q is None where p is not binomial."""

    @final
    def judge(self, suspect: Suspect, key: Key) -> Verdict:
        """``verify`` without side effects on weights, flags or random state; an incompatible suspect is no error."""
        why = self.incompatible(suspect, key)
        if why is not None:
            n, q = self.trials(key)
            return Verdict.structure(n, q, access=self.access, found=why, p_method=self.p_method)
        with untouched(suspect.model), torch.no_grad(), torch.autocast(suspect.task.device.type, enabled=False):
            verdict = self.verify(suspect, key)
        return Verdict(**{**verdict.__dict__, "queries": suspect.queries if self.access == "black" else 0})

    # Hooks: what makes spoil, overwrite and ambiguity generic. None means: this scheme has no such thing.

    def triggers(self, key: Key) -> tuple[Tensor, Tensor] | None:
        """(raw inputs (n, *input_shape), labels (n,)) of a black-box scheme."""
        return None

    def mark_loss(self, model: nn.Module, task: Workload, key: Key, labels: Tensor | None = None) -> Tensor | None:
        """Differentiable loss of the mark (scalar), over the key's own labels/bits or over ``labels`` (n,)."""
        return None

    def carriers(self, model: nn.Module, key: Key) -> list[Carrier]:
        """The scalars that carry a weight-type mark."""
        return []

    def with_holder_data(self, holder: Owner, key: Key) -> Key:
        """``key``, fresh from ``keygen``, with the data of its holder that evidence rests on; no model is read.

        What ``embed`` starts from, and what an adversary presents who embeds nothing. Keys that need no data, or whose
        holder has none that fit, stay as they are.
        """
        return key

    def forge(self, model: nn.Module, forger: Owner, key: Key) -> Key | None:
        """Level-2 ambiguity: complete a random ``key`` so that the frozen ``model`` passes with it; None if unknown."""
        return None


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; training flags and the global random state are as before afterwards."""
    flags = {m: m.training for m in model.modules()}
    state = torch.get_rng_state()
    model.eval()
    try:
        yield
    finally:
        for module, training in flags.items():
            module.training = training
        torch.set_rng_state(state)


def lists(value: Any) -> Any:
    """Nested tuples and torch sizes as nested lists: JSON's own shape."""
    return [lists(v) for v in value] if isinstance(value, list | tuple | torch.Size) else value
