"""Tartaglione's embedding loop: training around locked scalars so that the loss is steep in their directions.

    Gamma_0 = (w_f, w_w)                 w_f free, w_w locked: written after every step, never moved
    Gamma_r = (w_f, w_w + dW_r)          R replicas, dW_r ~ N(0, sigma^2) anew in each step, sigma = sigma_rel sd(layer)
    l_r     = min(L(Gamma_r), ln C)      on the same batch; a replica at chance level adds no gradient

    naive   g = g_0,        g_0 = grad L(Gamma_0)
    paper   g = g_0 - c h,  h = mean_r grad l_r,                       c = min(lambda, |g_0| / (2 |h|))
    gap     g = g_0 - c h,  h = mean_r grad l_r - grad L(Gamma_0),     c = min(lambda, 2 |g_0| / |h|)

Gradients are with respect to w_f; g goes to the optimiser of the recipe. The gap's mean over dW is, to second order,
sigma^2 / 2 times the trace of the Hessian over w_w, which is the steepness. The rule "paper" is mostly
(1 - lambda) g_0: a smaller learning rate.

Source: Tartaglione et al. 2020, update rule; cap and clipping bound its ascent.
Differs from the paper: replicas run with batch-norm statistics frozen and without dropout, and so does the
L(Gamma_0) that the gap subtracts, or the two terms would differ in more than dW; weight decay is added by the
optimiser, after clipping.

The replicas run one after another: stacked by ``torch.func.vmap`` their convolutions become grouped ones, which take
170 ms instead of 80 ms on a CPU (LeNet-5, R = 4, 100 images, one thread).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from wmarena.schemes.base import Batch, Owner, Recipe, Samples, Workload, untouched
from wmarena.schemes.prf import subseed
from wmarena.schemes.tartaglione.payload import Payload
from wmarena.schemes.training_state import epochs_left, seeded

Objective = Literal["naive", "paper", "gap"]

_CLIP = {"gap": 2.0, "paper": 0.5}
"""Largest |c h| / |g_0|."""

_LOGGED_IMAGES = 500
"""Validation samples that the logged steepness is measured on."""


@dataclass(frozen=True, kw_only=True)
class ValleySettings:
    """Settings of the replicas.

    Attributes:
        objective: naive, paper or gap, as above.
        lambda1: lambda.
        replicas: R.
        sigma_rel: sigma over the standard deviation of a layer's initial weights.
        warm_up: first epochs, without replicas.
    """

    objective: Objective
    lambda1: float
    replicas: int
    sigma_rel: float
    warm_up: int

    def active(self, epoch: int) -> bool:
        """Tell whether an epoch, counted from 0, has replicas."""
        return self.objective != "naive" and self.lambda1 > 0 and epoch >= self.warm_up


class _Loss(nn.Module):
    """A module whose forward pass is a batch's loss, for ``functional_call``."""

    def __init__(self, model: nn.Module, task: Workload) -> None:
        super().__init__()
        self.model = model
        self._task = task

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the batch's loss (scalar)."""
        return self._task.loss(self.model, inputs, targets)


@dataclass(frozen=True)
class Replicas:
    """Copies of a network that differ only in their locked scalars.

    Args:
        payload: on the model's device.
    """

    model: nn.Module
    task: Workload
    payload: Payload
    sigma_rel: float

    def losses(self, batch: Batch, n: int, seed: int) -> Tensor:
        """Return (1 + n,) L(Gamma_0), L(Gamma_1), ... in the model's present mode, differentiable."""
        loss = _Loss(self.model, self.task)
        noise = torch.randn(n, len(self.payload.signal), generator=torch.Generator().manual_seed(seed))
        shifted: list[Tensor] = [self.task.loss(self.model, *batch)]
        for row in noise.to(batch[0].device):
            moved: Tensor = functional_call(loss, self._moved(row), batch)
            shifted.append(moved)
        return torch.stack(shifted)

    def _moved(self, noise: Tensor) -> dict[str, Tensor]:
        """Return the tensors that hold locked scalars, with dW added; ``noise`` (L,) is standard normal."""
        moved = {}
        for part in self.payload.parts:
            deviation = self.sigma_rel * part.amplitude / 2
            own = self.model.get_parameter(part.name)
            # Locked values are constants here; all other entries stay differentiable.
            values = own.detach()[part.index] + deviation * noise[part.places]
            moved[f"model.{part.name}"] = own.index_put(part.index, values)
        return moved


def mean_rise(
    replicas: Replicas,
    samples: Samples,
    n_replicas: int,
    seed: int,
    *,
    batch_size: int = 500,
    n_batches: int | None = None,
) -> float:
    """Measure the steepness mean_r L(Gamma_r) - L(Gamma_0) over ``samples`` (or ``n_batches``), in eval mode."""
    total, n = 0.0, 0
    with untouched(replicas.model), torch.no_grad():
        for number, batch in enumerate(samples.in_order(batch_size)):
            if number == n_batches:
                break
            losses = replicas.losses(batch, n_replicas, subseed(seed, "tartaglione/steepness", number)).double()
            total += float(losses[1:].mean() - losses[0]) * len(batch[1])
            n += len(batch[1])
    return total / n


def learning_rate(recipe: Recipe, step: int, *, steps_per_epoch: int, n_steps: int) -> float:
    """Return the learning rate of one step, counted from 0, by the recipe's schedule (``Recipe``)."""
    if recipe.schedule == "constant":
        return recipe.lr
    if recipe.schedule == "step":
        return recipe.lr * 0.1 ** sum(step // steps_per_epoch >= m for m in recipe.milestones)
    # One cosine cycle: up from lr / 25 in 30 % of the steps, then down to lr / 25e4.
    peak, last, start = 0.3 * n_steps - 1, n_steps - 1, recipe.lr / 25
    if step <= peak:
        return _cosine(start, recipe.lr, step / peak if peak > 0 else 1.0)
    return _cosine(recipe.lr, start / 1e4, (step - peak) / (last - peak))


def _cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * part))


def direction(g_0: list[Tensor], h: list[Tensor], lambda1: float, clip: float) -> list[Tensor]:
    """Return g_0 - c h, c = min(lambda, clip |g_0| / |h|), tensor by tensor, without reading from the device."""
    # The ascent has no bound of its own, so it is limited relative to g_0.
    c = (clip * _norm(g_0) / (_norm(h) + 1e-12)).clamp(max=lambda1)
    return [g - c * push for g, push in zip(g_0, h, strict=True)]


def _norm(tensors: list[Tensor]) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t) for t in tensors]))
    return norm


class LockedTraining:
    """State of one embedding; ``run`` trains ``model`` in place.

    Args:
        recipe: optimiser, rate, schedule and length.
        payload: what is locked; it is written before the first step.
    """

    def __init__(
        self, model: nn.Module, owner: Owner, payload: Payload, recipe: Recipe, valley: ValleySettings
    ) -> None:
        self.model = model
        self.owner = owner
        self.recipe = recipe
        self.valley = valley
        self.payload = payload.to(owner.task.device)
        self.replicas = Replicas(model, owner.task, self.payload, valley.sigma_rel)
        self.free = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.locked = {part.name: part.index for part in self.payload.parts}
        self.optimiser = _optimiser(list(self.free.values()), recipe)
        self.steps_per_epoch = math.ceil(len(owner.train) / recipe.batch_size)
        self.n_steps = recipe.epochs * self.steps_per_epoch if recipe.steps is None else recipe.steps

    def run(self) -> None:
        """Train, from the latest checkpoint if there is one.

        Raises:
            FloatingPointError: an epoch's mean loss is NaN or infinite.
            RuntimeError: a locked scalar has moved.
        """
        n_epochs = math.ceil(self.n_steps / self.steps_per_epoch)
        self.payload.write(self.model)
        for epoch in epochs_left(self.owner.checkpoints, n_epochs, self.model, self.optimiser):
            with seeded(subseed(self.owner.seed, "tartaglione/dropout", epoch), self.owner.task.device):
                loss = self._epoch(epoch)
            self._report(epoch + 1, loss)
        self.model.eval()

    def _epoch(self, epoch: int) -> float:
        """Train one epoch, counted from 0; return the mean L(Gamma_0)."""
        recipe, first = self.recipe, epoch * self.steps_per_epoch
        n_steps = min(self.steps_per_epoch, self.n_steps - first)
        total = torch.zeros((), dtype=torch.float64, device=self.owner.task.device)
        batches = self.owner.train.batches(recipe.batch_size, seed=self.owner.seed, epoch=epoch, augment=recipe.augment)
        for step, batch in zip(range(first, first + n_steps), batches, strict=False):
            lr = learning_rate(recipe, step, steps_per_epoch=self.steps_per_epoch, n_steps=self.n_steps)
            for group in self.optimiser.param_groups:
                group["lr"] = lr
            total += self._step(step, batch, self.valley.active(epoch))
        return float(total) / n_steps

    def _step(self, step: int, batch: Batch, steepen: bool) -> Tensor:
        """Make one optimiser step; return L(Gamma_0)."""
        self.model.train()
        loss = self.owner.task.loss(self.model, *batch)
        gradients = self._free(loss)
        if steepen:
            # Frozen batch norm and no dropout, so that the replicas differ from Gamma_0 in dW alone.
            self.model.eval()
            valley = self.valley
            gradients = direction(
                gradients, self._free(self._push(batch, step)), valley.lambda1, _CLIP[valley.objective]
            )
        for parameter, gradient in zip(self.free.values(), gradients, strict=True):
            parameter.grad = gradient
        self.optimiser.step()
        # Weight decay moves scalars that have no gradient, so the locked ones are written again.
        self.payload.write(self.model)
        return loss.detach()

    def _push(self, batch: Batch, step: int) -> Tensor:
        """Return the scalar that h is the gradient of."""
        chance = math.log(self.owner.task.info.num_classes)
        losses = self.replicas.losses(
            batch, self.valley.replicas, subseed(self.owner.seed, "tartaglione/replicas", step)
        )
        # Beyond chance level the loss has no bound: the clamp stops its gradient there.
        pushed = losses[1:].clamp(max=chance).mean()
        return pushed - losses[0] if self.valley.objective == "gap" else pushed

    def _free(self, loss: Tensor) -> list[Tensor]:
        """Return gradients, zero at the locked scalars."""
        gradients = list(torch.autograd.grad(loss, list(self.free.values())))
        for name, gradient in zip(self.free, gradients, strict=True):
            if name in self.locked:
                gradient[self.locked[name]] = 0.0
        return gradients

    def _report(self, epoch: int, loss: float) -> None:
        """Log one epoch; raise if the loss or a locked scalar is wrong."""
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"expected a finite loss, got {loss} in epoch {epoch}; lower lr={self.recipe.lr:g} or lambda1"
            )
        if not self.payload.intact(self.model):
            raise RuntimeError("expected locked scalars to keep their values, got others after an optimiser step")
        rise = mean_rise(
            self.replicas, self.owner.val, self.valley.replicas, self.owner.seed, batch_size=_LOGGED_IMAGES, n_batches=1
        )
        self.owner.log(epoch, loss=loss, lr=self.optimiser.param_groups[0]["lr"], steepness=rise)


def _optimiser(parameters: Sequence[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """Build the recipe's optimiser, fused as in the workload's own training."""
    if recipe.optimiser == "adam":
        return torch.optim.Adam(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    return torch.optim.SGD(
        parameters, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=True
    )
