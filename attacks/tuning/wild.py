"""WILD: fine-tuning on randomly erased images, with a penalty that keeps features close to the whole image's.

    L = CE(M(x'), y) + [CE(M(x), y)] + beta d(softmax(phi(x) / T), softmax(phi(x') / T))

    x    clean images of the adversary's share, normalised           phi  (n, d) the output layer's input
    x'   x with a rectangle replaced by uniformly random pixels, with probability ``p_erase``
    d    ce   cross-entropy -sum p log q; p, of the whole image, is a constant; its least value is p's entropy
         js   Jensen-Shannon divergence KL(p || m) / 2 + KL(q || m) / 2, m = (p + q) / 2, in [0, ln 2]
         none no second view: random erasing alone, and with ``p_erase: 0`` plain fine-tuning
    []   only with ``clean_loss``

A local trigger that is often erased no longer decides the label, and features that only a trigger causes are penalised;
the adversary need not know the kind of trigger.

The rectangle's share of the image is uniform on [area_low, area_high], its height over its width log-uniform on
[aspect, 1 / aspect], its position uniform; a shape that does not fit is drawn again [Zhong et al. 2020, algorithm 1].
Black borders that a workload adds are not part of the image. SGD, momentum 0.9, constant rate: epoch e does not depend
on the number of epochs, so one trajectory gives the mark's retention after every epoch.

Source: Liu, Li, Wen, Li, "Removing Backdoor-Based Watermarks in Neural Networks with Limited Data", ICPR 2020.
Differs from the paper: its constants are only partly published, so beta, T, rate and areas are choices, and so is
``p_erase: 1`` (at equal accuracy it removes about twice as much of a backdoor as one half); a shape is drawn at most
ten times, then cut to the image; the two views are separate batches, also for batch norm.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wmarena.attacks.base import Attack, AttackView, Family
from wmarena.attacks.knowledge import Knowledge
from wmarena.attacks.tuning.descent import Descent
from wmarena.schemes.base import Batch, Scheme, TaskInfo
from wmarena.schemes.params import param
from wmarena.schemes.prf import subseed

_TRIES = 10
"""Draws of a rectangle's shape; with the default ranges one in forty does not fit, so all ten once in 10^16."""


@dataclass(frozen=True, kw_only=True)
class Wild(Attack):
    """Fine-tune on randomly erased images with features held to those of the whole images."""

    name: ClassVar[str] = "wild"
    family: ClassVar[Family] = "adaptive"
    knows: ClassVar[frozenset[Knowledge]] = frozenset({"weights"})
    paper: ClassVar[str] = "Liu et al. 2020, Removing Backdoor-Based Watermarks in Neural Networks with Limited Data"
    incremental: ClassVar[bool] = True

    penalty: Literal["none", "ce", "js"] = param(
        "ce", doc="distance of the two views' features: cross-entropy, Jensen-Shannon, or none", stage="attack"
    )
    beta: float = param(1.0, doc="weight of that distance", stage="attack", low=0)
    temperature: float = param(1.0, doc="T, divides features before the softmax", stage="attack", low=0, low_open=True)
    clean_loss: bool = param(False, doc="train on the whole images too", stage="attack")
    p_erase: float = param(1.0, doc="probability that an image is erased", stage="attack", low=0, high=1)
    area_low: float = param(0.02, doc="least share of the image erased", stage="attack", low=0, high=1)
    area_high: float = param(0.4, doc="largest share of the image erased", stage="attack", low=0, high=1)
    aspect: float = param(
        0.3, doc="least height over width, and least width over height", stage="attack", low=0, high=1, low_open=True
    )
    epochs: int = param(20, doc="passes over the adversary's data", stage="attack", low=1, strength=True)
    lr: float = param(1e-2, doc="learning rate, constant", stage="attack", low=0, low_open=True)
    batch_size: int = param(100, doc="samples a step", stage="attack", low=1)
    weight_decay: float = param(5e-4, doc="L2 penalty", stage="attack", low=0)

    def problems(self) -> Iterable[tuple[str, str]]:
        if self.area_low > self.area_high:
            yield "area_low", f"expected at most area_high = {self.area_high:g}, got {self.area_low:g}"

    @property
    def label(self) -> str:
        return f"{self.name}-{self.penalty}"

    def applicable(self, victim: Scheme, info: TaskInfo) -> str | None:
        if info.kind != "classification" or len(info.input_shape) != 3:
            return f"erasing needs images with class labels, the task is {info.kind} on inputs {info.input_shape}"
        return None

    def run(self, model: nn.Module, view: AttackView) -> nn.Module:
        with _entering(view.task.head(model)) as entered:
            Descent(
                model=model,
                view=view,
                loss=lambda batch, step, _: self._loss(model, view, entered, batch, step),
                purpose="wild",
                rate=lambda _: self.lr,
                epochs=self.epochs,
                batch_size=self.batch_size,
                weight_decay=self.weight_decay,
                keep_last=True,
            ).run()
        return model

    def _loss(self, model: nn.Module, view: AttackView, entered: list[Tensor], batch: Batch, step: int) -> Tensor:
        """Return L of one batch (scalar). ``entered``: the output layer's input in the latest forward pass."""
        inputs, targets = batch
        loss = view.task.loss(model, self.erased(inputs, view, step), targets)
        (features,) = entered
        penalised = self.penalty != "none" and self.beta > 0
        if not penalised and not self.clean_loss:
            return loss
        # Cross-entropy takes the whole image's features as constants.
        with torch.set_grad_enabled(self.clean_loss or self.penalty == "js"):
            clean = view.task.loss(model, inputs, targets)
        (clean_features,) = entered
        if self.clean_loss:
            loss = loss + clean
        if not penalised:
            return loss
        distance = cross_entropy if self.penalty == "ce" else jensen_shannon
        scale = 1 / self.temperature
        return loss + self.beta * distance(scale * clean_features.float(), scale * features.float())

    def erased(self, inputs: Tensor, view: AttackView, step: int) -> Tensor:
        """Return x' (n, c, H, W) for normalised ``inputs`` of the same shape; random by (seed, step) alone."""
        if self.p_erase == 0:
            return inputs
        generator = torch.Generator().manual_seed(subseed(view.seed, "wild/erasing", step))
        _, height, width = view.task.info.input_shape
        boxes = rectangles(
            len(inputs), height, width, (self.area_low, self.area_high), self.aspect, generator=generator
        )
        boxes[torch.rand(len(inputs), generator=generator) >= self.p_erase] = 0
        covered = _even_border(inside(boxes, height, width), inputs.shape[-2:]).to(inputs.device)
        pixels = torch.randint(
            0, 256, (len(inputs), *view.task.info.input_shape), dtype=torch.uint8, generator=generator
        )
        return torch.where(covered, view.task.to_inputs(pixels), inputs)


def cross_entropy(clean: Tensor, erased: Tensor) -> Tensor:
    """Return the mean of -sum p log q, p = softmax(clean), a constant, q = softmax(erased), both (n, d)."""
    p = clean.detach().flatten(1).softmax(dim=1)
    return -(p * erased.flatten(1).log_softmax(dim=1)).sum(dim=1).mean()


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean Jensen-Shannon divergence in nats of softmax(first) and softmax(second), both (n, d)."""
    log_p, log_q = (x.flatten(1).log_softmax(dim=1) for x in (first, second))
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    halves = [F.kl_div(log_m, x, reduction="none", log_target=True).sum(dim=1) for x in (log_p, log_q)]
    return (halves[0] + halves[1]).mean() / 2


def rectangles(
    n: int, height: int, width: int, area: tuple[float, float], aspect: float, *, generator: torch.Generator
) -> Tensor:
    """Draw (n, 4) int64 on the CPU: top, left, height and width of rectangles in a height x width image.

    Args:
        area: least and largest share of the image, uniform.
        aspect: least height over width; log-uniform up to its inverse.
    """
    drawn = torch.rand(n, _TRIES, 2, generator=generator)
    size = (area[0] + (area[1] - area[0]) * drawn[..., 0]) * height * width
    ratio = torch.exp((2 * drawn[..., 1] - 1) * math.log(aspect))
    heights, widths = (size * ratio).sqrt().round(), (size / ratio).sqrt().round()
    # argmax returns the first of equal values: the first shape that fits.
    chosen = ((heights <= height) & (widths <= width)).int().argmax(dim=1, keepdim=True)
    h = heights.gather(1, chosen).flatten().clamp(1, height)
    w = widths.gather(1, chosen).flatten().clamp(1, width)
    place = torch.rand(2, n, generator=generator)
    top, left = (place[0] * (height - h + 1)).floor(), (place[1] * (width - w + 1)).floor()
    return torch.stack([top, left, h, w], dim=1).long()


def inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return (n, 1, height, width) bool: the pixels of each of the rectangles (n, 4)."""
    top, left, h, w = (column.view(-1, 1, 1, 1) for column in boxes.unbind(dim=1))
    rows, columns = torch.arange(height).view(1, 1, -1, 1), torch.arange(width).view(1, 1, 1, -1)
    return (rows >= top) & (rows < top + h) & (columns >= left) & (columns < left + w)


def _even_border(mask: Tensor, size: torch.Size) -> Tensor:
    """Pad the raw image's ``mask`` with False to (n, 1, *size), as a workload pads evenly around it."""
    vertical, horizontal = size[0] - mask.shape[-2], size[1] - mask.shape[-1]
    sides = (horizontal // 2, horizontal - horizontal // 2, vertical // 2, vertical - vertical // 2)
    return F.pad(mask, sides)


@contextmanager
def _entering(head: nn.Module) -> Iterator[list[Tensor]]:
    """Yield a list that holds the input of ``head`` in the latest forward pass, (n, d)."""
    entered: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        entered[:] = inputs[:1]

    handle = head.register_forward_pre_hook(keep)
    try:
        yield entered
    finally:
        handle.remove()
