"""What schemes and attacks may ask of the workload that they protect or attack, as protocols.

``wmarena.experiments.workloads`` implements them; neither side imports an orchestrator, so plugins run in a notebook.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from wmarena.schemes.params import Json

SplitAt = Literal["dense", "head"]
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
