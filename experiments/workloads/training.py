"""The training loop: one forward, one backward, one optimiser step per batch; resumable at every epoch.

The only state carried between steps is weights, batch-norm statistics and optimiser moments: the learning rate is a
function of the step; order, augmentation and dropout masks are functions of the epoch. Hence checkpoints are small and
a resumed training is bit-equal to an uninterrupted one.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from wmarena.schemes.base import Batch, Checkpoints, Log, Recipe, Samples
from wmarena.schemes.prf import subseed
from wmarena.schemes.training_state import pack, seeded, unpack

_WARM_UP = 0.3
_START_DIVISOR = 25.0
_END_DIVISOR = 1e4

LossFunction = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(model, inputs, targets) -> mean loss of the batch, a scalar."""


def learning_rate(recipe: Recipe, step: int, *, steps_per_epoch: int, n_steps: int) -> float:
    """Compute the learning rate of one step, counted from 0.

    ``one_cycle`` is the cosine cycle of [smith2019] as torch's OneCycleLR computes it: up from lr / 25 in the first
    30 % of the steps, then down to lr / 25e4; momentum is not cycled.
    """
    if recipe.schedule == "constant":
        return recipe.lr
    if recipe.schedule == "step":
        passed = sum(step // steps_per_epoch >= m for m in recipe.milestones)
        return recipe.lr * 0.1**passed
    # torch's OneCycleLR counts from the last warm-up step, hence the -1 on both ends.
    peak, last = _WARM_UP * n_steps - 1, n_steps - 1
    start = recipe.lr / _START_DIVISOR
    if step <= peak:
        return _cosine(start, recipe.lr, step / peak if peak > 0 else 1.0)
    return _cosine(recipe.lr, start / _END_DIVISOR, (step - peak) / (last - peak))


def _cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * part))


def optimiser_for(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Create the recipe's optimiser over the parameters that require gradients; fused, one kernel for all tensors.

    Raises:
        ValueError: every parameter is frozen.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError("expected a model with parameters that require gradients, got one with all of them frozen")
    if recipe.optimiser == "adam":
        return torch.optim.Adam(trainable, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    return torch.optim.SGD(
        trainable, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=True
    )


@dataclass(frozen=True, kw_only=True)
class Training:
    """Configuration of one training; ``run`` executes it.

    Attributes:
        model: trained in place; its training flags are restored.
        loss: the workload's primary loss.
        device: device of model and batches.
        seed: fixes batch order, augmentation and dropout.
        extra: global step -> batch appended to that step's batch, seen by batch norm, never augmented.
        penalty: scalar added to each step's loss.
    """

    model: nn.Module
    samples: Samples
    recipe: Recipe
    loss: LossFunction
    device: torch.device
    seed: int
    extra: Callable[[int], Batch] | None = None
    penalty: Callable[[nn.Module], Tensor] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass over the data."""
        return math.ceil(len(self.samples) / self.recipe.batch_size)

    @property
    def n_steps(self) -> int:
        """Optimiser steps in all."""
        steps = self.recipe.steps
        return self.recipe.epochs * self.steps_per_epoch if steps is None else steps

    @property
    def n_epochs(self) -> int:
        """Passes, the last one perhaps truncated by ``Recipe.steps``."""
        return math.ceil(self.n_steps / self.steps_per_epoch)

    def run(
        self, *, log: Log | None = None, checkpoints: Checkpoints | None = None, keep_at: Iterable[int] = ()
    ) -> None:
        """Train, from the latest checkpoint if one exists.

        Raises:
            FloatingPointError: an epoch's mean loss is NaN or infinite.
            Cancelled: the run is being stopped.
        """
        kept = frozenset(keep_at)
        optimiser = optimiser_for(self.model, self.recipe)
        done = 0
        found = checkpoints.latest(at_most=self.n_epochs) if checkpoints is not None else None
        if found is not None:
            done, state = found
            unpack(state, self.model, optimiser)
        with _training_mode(self.model, self.recipe.bn_mode):
            for epoch in range(done, self.n_epochs):
                with seeded(subseed(self.seed, "dropout", epoch), self.device):
                    mean_loss = self._epoch(epoch, optimiser)
                if log is not None:
                    log(epoch + 1, loss=mean_loss, lr=optimiser.param_groups[0]["lr"])
                # A longer training could not continue from a truncated pass.
                whole = (epoch + 1) * self.steps_per_epoch <= self.n_steps
                if checkpoints is not None and whole:
                    checkpoints.offer(epoch + 1, lambda: pack(self.model, optimiser), keep=epoch + 1 in kept)

    def _epoch(self, epoch: int, optimiser: torch.optim.Optimizer) -> float:
        """Train for one pass (counted from 0); return its mean loss."""
        recipe = self.recipe
        first = epoch * self.steps_per_epoch
        n_steps = min(self.steps_per_epoch, self.n_steps - first)
        # Summed on the device and read once: reading every step would block the CPU on the GPU.
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        batches = self.samples.batches(recipe.batch_size, seed=self.seed, epoch=epoch, augment=recipe.augment)
        for step, batch in zip(range(first, first + n_steps), batches, strict=False):
            lr = learning_rate(recipe, step, steps_per_epoch=self.steps_per_epoch, n_steps=self.n_steps)
            for group in optimiser.param_groups:
                group["lr"] = lr
            total += self._step(step, batch, optimiser)
        mean_loss = float(total) / n_steps
        if not math.isfinite(mean_loss):
            raise FloatingPointError(
                f"expected a finite loss, got {mean_loss} in epoch {epoch + 1} of {self.n_epochs} "
                f"(peak lr {recipe.lr:g}); lower the learning rate or the weight of the added loss terms"
            )
        return mean_loss

    def _step(self, step: int, batch: Batch, optimiser: torch.optim.Optimizer) -> Tensor:
        inputs, targets = batch
        if self.extra is not None:
            more, labels = self.extra(step)
            inputs, targets = torch.cat([inputs, more]), torch.cat([targets, labels])
        loss = self.loss(self.model, inputs, targets)
        if self.penalty is not None:
            loss = loss + self.penalty(self.model)
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimiser.step()
        return loss.detach()


def recalibrate(model: nn.Module, samples: Samples, *, batch_size: int = 1000) -> None:
    """Replace batch-norm statistics by their cumulative average over ``samples``; no-op without batch norm.

    Batches are shuffled (a batch of one class would understate the variance), of nearly equal size (all have the same
    weight in the average) and not augmented. Nothing else in the model changes.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    n_batches = math.ceil(len(samples) / batch_size)
    with _modes_kept(model), torch.no_grad():
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        for inputs, _ in samples.batches(math.ceil(len(samples) / n_batches), seed=0, epoch=0, augment=False):
            model(inputs)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@contextmanager
def _training_mode(model: nn.Module, bn_mode: str) -> Iterator[None]:
    with _modes_kept(model):
        model.train()
        if bn_mode == "eval":
            for module in model.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        yield


@contextmanager
def _modes_kept(model: nn.Module) -> Iterator[None]:
    flags = {m: m.training for m in model.modules()}
    try:
        yield
    finally:
        for module, training in flags.items():
            module.training = training
