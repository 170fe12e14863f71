"""Training a network that works on stamped inputs only: Deep Serial Number's student and its adversary.

    L_distill = T^2 KL(softmax(f_T(x) / T) || softmax(G_y(G_e(x (+) k)) / T))     valid inputs; mode `labels`: CE with y
    L_SNE     = CE(G_d(R(G_e(x~))), y)                                            invalid inputs x~
    R         identity forwards, -lambda(p) grad backwards: G_d descends L_SNE, G_e ascends it (Eqs 3-6)
    lambda(p) = lambda, or with `ramp` lambda (2 / (1 + e^(-10 p)) - 1), p: share of the steps done

    G_e  all but the output layer; with ``lock_at: dense`` the convolutions only, as in the paper
    G_y  the rest, shipped       G_d  of G_y's shape, initialised anew, never shipped
    f_T  teacher on the unstamped x       x~  raw x; with `raw+wrong`, `raw+near` half of them carry a wrong number

Loss `grl` is the paper's. It has no bound and diverges before an output layer alone. `confusion` is bounded: G_d learns
on detached features, and G_e minimises lambda(p) [KL(U || G_d(G_e(x~))) + KL(U || G_y(G_e(x~)))], U uniform, the
second term together with G_y.

Two things decide whether a lock forms. A feature can depend on the number only if its receptive field reaches the
stamp. Most outputs of the two 3x3 convolutions of the paper's network for MNIST do not reach it: the adversary removes
their information, which stamped inputs then lack too (A1 of 0.9 instead of 0.97). The hidden dense layer reads the
whole image, so G_e includes it. And the usual ramp fails on easy tasks: while lambda is small, raw inputs are learnt
like stamped ones, and a confident adversary has hardly a gradient to reverse.

Stamped and invalid inputs go through G_e in one pass, so that batch norm, where a network has it, sees one mixture in
training and in use. Order, wrong numbers and rates follow from (seed, epoch, step): a resumed run is bit-equal.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from wmarena.schemes.base import Batch, Owner, Samples, untouched
from wmarena.schemes.dsn.licence import SerialNumber
from wmarena.schemes.params import Configurable, param
from wmarena.schemes.prf import subseed
from wmarena.schemes.serial.numbers import Ink
from wmarena.schemes.training_state import epochs_left, seeded

_MONITORED = 500
"""Validation images that the training curves are computed on."""


@dataclass(frozen=True, kw_only=True)
class LockFields(Configurable):
    """The fields of the embedding loop."""

    mode: Literal["distil", "labels"] = param(
        "distil", doc="train a new network on the clean one's answers, or the given one with labels", stage="embed"
    )
    neg_mode: Literal["raw", "raw+wrong", "raw+near"] = param(
        "raw+near", doc="invalid inputs: raw (the paper), half of them with any wrong or a near number", stage="embed"
    )
    loss: Literal["grl", "confusion"] = param(
        "confusion", doc="on invalid inputs: gradient reversal (paper), or distance from uniform answers", stage="embed"
    )
    lock_at: Literal["dense", "head"] = param(
        "head", doc="the adversary's features: before the output layer, or the first dense one (paper)", stage="embed"
    )
    grl_lambda: float = param(3.0, doc="final weight of what the adversary adds to the loss", stage="embed", low=0)
    schedule: Literal["constant", "ramp"] = param(
        "constant", doc="of grl_lambda: at once, or along a sigmoid (raw inputs are then learnt first)", stage="embed"
    )
    temperature: float = param(1.0, doc="T of the distillation", stage="embed", low=0, low_open=True)
    epochs: int = param(10, doc="passes over the training data", stage="embed", low=1)
    batch_size: int = param(100, doc="images a step, each stamped once and invalid once", stage="embed", low=2)
    lr: float = param(1e-3, doc="Adam learning rate, falling to zero", stage="embed", low=0, low_open=True)


class _Reversed(torch.autograd.Function):
    """The gradient reversal R of the module's docstring."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * gradients[0], None


class LockTraining:
    """State of one embedding. ``run`` trains ``student`` in place.

    Args:
        fields: the scheme.
        student: the network that will be shipped, on the device.
        teacher: answers raw inputs, frozen; None: train with labels.
        number: the serial number that will unlock the student.
    """

    def __init__(
        self, fields: LockFields, student: nn.Module, teacher: nn.Module | None, owner: Owner, number: SerialNumber
    ) -> None:
        self.fields, self.owner = fields, owner
        self.student, self.teacher = student, teacher
        self.ink = Ink(owner.task)
        self.pattern = number.pattern.to(owner.task.device)
        self.position = number.position[None].to(owner.task.device)
        self.extractor, self.predictor = owner.task.split(student, fields.lock_at)
        self.adversary = fresh_copy(self.predictor, subseed(owner.seed, "dsn/adversary"))
        self.networks = nn.ModuleDict({"student": student, "adversary": self.adversary})
        self.optimiser = torch.optim.Adam(self.networks.parameters(), lr=fields.lr, fused=True)
        self.steps_per_epoch = math.ceil(len(owner.train) / fields.batch_size)

    @property
    def n_steps(self) -> int:
        """Optimiser steps in all."""
        return self.fields.epochs * self.steps_per_epoch

    def run(self) -> None:
        """Train from the latest checkpoint, if any. Raises FloatingPointError: a mean loss is NaN or infinite."""
        owner = self.owner
        monitored = _part(owner.val, _MONITORED, owner.seed)
        for epoch in epochs_left(owner.checkpoints, self.fields.epochs, self.networks, self.optimiser):
            with seeded(subseed(owner.seed, "dsn/dropout", epoch), owner.task.device):
                losses = self._epoch(epoch)
            owner.log(epoch + 1, **losses, **self._accuracies(monitored))
        self.student.eval()

    def _epoch(self, epoch: int) -> dict[str, float]:
        """Train one epoch; return the mean losses."""
        self.networks.train()
        total = torch.zeros(2, dtype=torch.float64, device=self.owner.task.device)
        seed = subseed(self.owner.seed, "dsn/batches")
        batches = self.owner.train.batches(self.fields.batch_size, seed=seed, epoch=epoch)
        for step, batch in enumerate(batches, start=epoch * self.steps_per_epoch):
            total += self._step(step, batch)
        valid, invalid = (total / self.steps_per_epoch).tolist()
        if not math.isfinite(valid + invalid):
            raise FloatingPointError(
                f"expected finite losses, got {valid} on valid and {invalid} on invalid inputs in epoch {epoch + 1}; "
                f"lower lr={self.fields.lr} or grl_lambda={self.fields.grl_lambda}"
            )
        return {"loss_valid": valid, "loss_invalid": invalid}

    def _step(self, step: int, batch: Batch) -> Tensor:
        """Make one optimiser step; return (2,) losses on valid and on invalid inputs."""
        inputs, labels = batch
        for group in self.optimiser.param_groups:
            group["lr"] = self.fields.lr * (1 + math.cos(math.pi * step / self.n_steps)) / 2
        stamped = self.ink(inputs, self.pattern[None], self.position)
        features = self.extractor(torch.cat([stamped, self._invalid(inputs, step)]))
        kept, hidden = features[: len(inputs)], features[len(inputs) :]
        valid = self._valid_loss(self.predictor(kept), inputs, labels)
        invalid = self._invalid_loss(hidden, labels, self._weight(step))
        self.optimiser.zero_grad()
        torch.autograd.backward(valid + invalid)
        self.optimiser.step()
        return torch.stack([valid.detach(), invalid.detach()])

    def _weight(self, step: int) -> float:
        """Return lambda(p)."""
        if self.fields.schedule == "constant":
            return self.fields.grl_lambda
        return self.fields.grl_lambda * (2 / (1 + math.exp(-10 * step / self.n_steps)) - 1)

    def _valid_loss(self, logits: Tensor, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return L_distill, or without a teacher the cross-entropy with the labels."""
        if self.teacher is None:
            return F.cross_entropy(logits, labels)
        temperature = self.fields.temperature
        with torch.no_grad():
            target = F.log_softmax(self.teacher(inputs) / temperature, dim=1)
        student = F.log_softmax(logits / temperature, dim=1)
        return temperature**2 * F.kl_div(student, target, log_target=True, reduction="batchmean")

    def _invalid_loss(self, features: Tensor, labels: Tensor, weight: float) -> Tensor:
        """Return the part of the loss on invalid inputs."""
        if self.fields.loss == "grl":
            reverse: Any = _Reversed.apply  # untyped in torch
            return F.cross_entropy(self.adversary(reverse(features, weight)), labels)
        guess = F.cross_entropy(self.adversary(features.detach()), labels)
        # The adversary's parameters are constants here: it must not learn to confuse itself.
        frozen = {name: tensor.detach() for name, tensor in self.adversary.named_parameters()}
        confused = from_uniform(functional_call(self.adversary, frozen, (features,)))
        return guess + weight * (confused + from_uniform(self.predictor(features)))

    def _invalid(self, inputs: Tensor, step: int) -> Tensor:
        """Return x~ (n, c, h, w)."""
        if self.fields.neg_mode == "raw":
            return inputs
        draw = near_patterns if self.fields.neg_mode == "raw+near" else wrong_patterns
        wrong = draw(self.pattern, len(inputs), subseed(self.owner.seed, "dsn/wrong", step))
        odd = torch.arange(len(inputs), device=inputs.device) % 2 == 1
        return torch.where(odd[:, None, None, None], self.ink(inputs, wrong, self.position), inputs)

    def _accuracies(self, monitored: Samples) -> dict[str, float]:
        """Return validation accuracies: stamped, raw, with wrong numbers, and of the adversary on raw inputs."""
        counts = torch.zeros(4, dtype=torch.float64)
        with untouched(self.networks), torch.no_grad():
            for index, (inputs, labels) in enumerate(monitored.in_order()):
                wrong = wrong_patterns(self.pattern, len(inputs), subseed(self.owner.seed, "dsn/watched", index))
                variants = (
                    self.ink(inputs, self.pattern[None], self.position),
                    inputs,
                    self.ink(inputs, wrong, self.position),
                )
                answers = [self.student(v) for v in variants] + [self.adversary(self.extractor(inputs))]
                counts += torch.stack([(a.argmax(dim=1) == labels).sum() for a in answers]).cpu()
        names = ("accuracy_stamped", "accuracy_raw", "accuracy_wrong", "accuracy_adversary")
        return dict(zip(names, (counts / len(monitored)).tolist(), strict=True))


def from_uniform(logits: Tensor) -> Tensor:
    """Return the mean KL(U || softmax(logits)) over a batch (n, C)."""
    return -F.log_softmax(logits, dim=1).mean() - math.log(logits.shape[1])


def wrong_patterns(pattern: Tensor, n: int, seed: int) -> Tensor:
    """Draw (n, side, side) uint8: independent, uniform over all numbers but ``pattern``."""
    generator = torch.Generator().manual_seed(seed)
    change = torch.randint(2, (n, *pattern.shape), generator=generator, dtype=torch.uint8)
    bit = torch.randint(pattern.numel(), (n,), generator=generator)
    same = change.flatten(1).sum(dim=1) == 0
    change.view(n, -1)[same, bit[same]] = 1
    return pattern.to(torch.uint8) ^ change.to(pattern.device)


def near_patterns(pattern: Tensor, n: int, seed: int) -> Tensor:
    """Draw (n, side, side) uint8 wrong numbers, half of them with one wrong bit, a quarter with two, and so on.

    Few uniform numbers are nearly right: 9 of 511 differ in one of nine bits, hardly any in one of 64. A network that
    detects one wrong bit also detects many.
    """
    generator = torch.Generator().manual_seed(seed)
    n_bits = pattern.numel()
    n_wrong = torch.empty(n, 1).geometric_(0.5, generator=generator).clamp(max=n_bits)
    rank = torch.rand(n, n_bits, generator=generator).argsort(dim=1).argsort(dim=1)
    change = (rank < n_wrong).to(torch.uint8).view(n, *pattern.shape)
    return pattern.to(torch.uint8) ^ change.to(pattern.device)


def fresh_copy(module: nn.Module, seed: int) -> nn.Module:
    """Copy a module and re-initialise it, on the CPU so that parameters are equal on every device."""
    device = next(module.parameters()).device
    with seeded(seed, torch.device("cpu")):
        fresh = copy.deepcopy(module).cpu()
        for layer in fresh.modules():
            reset = getattr(layer, "reset_parameters", None)
            if reset is not None:
                reset()
    return fresh.to(device)


def _part(samples: Samples, n: int, seed: int) -> Samples:
    return samples if len(samples) <= n else samples.share(n / len(samples), domain="dsn/watched", seed=seed)
