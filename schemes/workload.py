"""The workload as schemes and attacks see it: protocols of task, data, training and checkpoints.

``wmarena.experiments.workloads`` implements them; neither side imports an orchestrator, so plugins run in a notebook.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from wmarena.schemes.params import Json

SplitAt = Literal["dense", "head"]
Batch = tuple[Tensor, Tensor]
"""(inputs, targets) on the workload's device, inputs normalised as the network expects them."""


@dataclass(frozen=True, kw_only=True)
class TaskInfo:
    """The kind and the shapes of a workload's task.

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
    """A training recipe: optimiser, rate, length, schedule.

    Attributes:
        optimiser: "sgd" (Nesterov off) or "adam".
        lr: peak learning rate.
        epochs: whole passes over the data; ignored by training if ``steps`` is given.
        steps: number of optimiser steps, which may end within a pass; None: ``epochs`` whole passes.
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

    def continued(self, *, lr: float | None, sgd_lr: float, batch_size: int, steps: int, n_train: int) -> "Recipe":
        """Return Adam on one cycle of ``steps``, for a network that this recipe has trained.

        Args:
            lr: peak rate; None: half of this recipe's if it is Adam's, else ``sgd_lr``.
        """
        return Recipe(
            optimiser="adam",
            lr=lr or (self.lr / 2 if self.optimiser == "adam" else sgd_lr),
            batch_size=batch_size,
            epochs=math.ceil(steps / math.ceil(n_train / batch_size)),
            steps=steps,
            schedule="one_cycle",
            augment=self.augment,
        )


class Cancelled(Exception):
    """The run is being stopped; raised inside a task, whose last checkpoint is kept."""


class Checkpoints(Protocol):
    """A long computation's checkpoints; a resumed computation is bit-equal to an undisturbed one."""

    def latest(self, at_most: int | None = None) -> tuple[int, dict[str, Tensor]] | None:
        """Return the newest (step, state) with step <= ``at_most``, or None."""
        ...

    def offer(self, step: int, state: Callable[[], dict[str, Tensor]], *, keep: bool = False) -> None:
        """Save if one is due (always when ``keep``); raises Cancelled when the run is stopping."""
        ...


class Log(Protocol):
    """A receiver of training curves, never of keys."""

    def __call__(self, step: int, **metrics: float) -> None: ...


class Samples(Protocol):
    """A share of a workload's data, resident on the device. Holds no other split."""

    def __len__(self) -> int: ...

    def batches(self, batch_size: int, *, seed: int, epoch: int, augment: bool = True) -> Iterator[Batch]:
        """Yield one shuffled epoch (a last partial batch is kept); depends on (seed, epoch) only."""
        ...

    def in_order(self, batch_size: int = 1000) -> Iterator[Batch]:
        """Yield all samples once, unshuffled, unaugmented."""
        ...

    def raw(self) -> Batch:
        """Return all (raw inputs (n, *input_shape), targets), in order, as ``Workload.to_inputs`` takes them."""
        ...

    def share(self, fraction: float, *, domain: str, seed: int) -> "Samples":
        """Return a class-stratified random share, copied; shares of different domains overlap by chance only."""
        ...

    def split(self, fraction: float, *, domain: str, seed: int) -> tuple["Samples", "Samples"]:
        """Return (rest, part): a class-stratified part of about ``fraction``, and everything else."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """A model on one split.

    Attributes:
        score: primary metric in [0, 1].
        predicted, targets: (n,) int16 class labels in sample order, None if the task has no single label.
    """

    score: float
    predicted: Tensor | None = None
    targets: Tensor | None = None


class Workload(Protocol):
    """A task, a network and its training, on one device; holds no data."""

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
        """Build a freshly initialised network on the device, in train mode."""
        ...

    def architecture(self, model: nn.Module) -> dict[str, Json]:
        """Return tensor name -> shape, which a white-box verifier must find in a suspect."""
        ...

    def to_inputs(self, raw: Tensor) -> Tensor:
        """Convert raw inputs (n, *input_shape), uint8 for images, to normalised float inputs on the device."""
        ...

    def encode_integers(self, values: Sequence[int]) -> Tensor:
        """Encode integers below 2^30 as distinct raw inputs (n, *input_shape): QR codes for images."""
        ...

    def stages(self, model: nn.Module, inputs: Tensor, state: Mapping[str, Tensor] | None = None) -> tuple[Tensor, ...]:
        """Return outputs of the network's named taps, in order, each (n, channels[, h, w]).

        ``state`` (parameter and buffer name -> tensor) replaces the model's own tensors for this call, differentiably.
        """
        ...

    def stage_names(self, model: nn.Module) -> tuple[str, ...]:
        """Return names of the taps, for the information string."""
        ...

    def head(self, model: nn.Module) -> nn.Module:
        """Return the output layer, which *LL attacks train and RT* attacks re-initialise."""
        ...

    def split(self, model: nn.Module, at: SplitAt) -> tuple[nn.Module, nn.Module]:
        """Return (extractor, predictor), sharing the model's parameters: ``model(x) == predictor(extractor(x))``.

        Args:
            at: "dense": the extractor ends where the convolutions do (a network without hidden dense layers is split
                at its head); "head": the predictor is the output layer.
        """
        ...

    def loss(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean primary loss of a batch (scalar)."""
        ...

    def predict(self, model: nn.Module, raw: Tensor) -> Tensor:
        """Return (n,) int64 top-1 labels of raw inputs, in eval mode and full precision, in fixed-size batches."""
        ...

    def score(self, model: nn.Module, samples: Samples) -> float:
        """Return the primary metric in [0, 1] (top-1 accuracy for classification), in eval mode."""
        ...

    def evaluate(self, model: nn.Module, samples: Samples) -> Evaluation:
        """Return ``score`` together with the answers it was computed from."""
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
