"""REFIT: fine-tuning with a large, decaying learning rate, optionally with EWC and unlabelled images (AU).

    L   = L_task(theta; B_t + U_t) + (lambda / 2) sum_i min(F_i, 1 / (lr_t lambda)) (theta_i - theta0_i)^2
    lr_t = lr decay^floor(epoch / decay_every)                      SGD, momentum 0.9, weight decay 5e-4, batch 100
    F_i  = mean over x of (d log p(y~ | x) / d theta_i)^2,  y~ drawn from the victim's own p(. | x); divided by max F

    basic   a large rate makes the network forget what the task does not need
    EWC     elastic weight consolidation: weights that matter to the victim's predictions move less, so that the rate
            can be larger; a re-initialised head is not penalised; the cap keeps the penalty's own step below 1
    AU      U_t: ``unlabelled_batch`` images of another data set join every batch, with the frozen victim's answers

    theta0  the victim          B_t  a batch of the adversary's share          F  one value a parameter, in [0, 1]

    authors' settings   lr     decay                ewc   unlabelled
    basic               0.05   0.9  each epoch      -     -
    EWC                 0.15   0.9  each epoch      10    -
    AU                  0.1    0.1  each 15 epochs  -     ImageNet-32, 50 a batch

Rates are functions of the epoch alone, not of the number of epochs. A search for the rate may read validation accuracy
only.

Source: Chen, Wang, Bender, Ding, Jia, Li, Song, "REFIT: A Unified Watermark Removal Framework for Deep Learning
Systems with Limited Data", AsiaCCS 2021; cap, scaling of F and settings as in the authors' code. Differs from that
code: F takes every sample at most once (a small share is not repeated with new draws of y~), and unlabelled images are
not augmented. F is a pass over the adversary's data: if only one is granted, the attack trains without EWC and reports
that.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wmarena.attacks.base import Attack, AttackView, Family, Finding
from wmarena.attacks.fine_tuning import reinitialise
from wmarena.attacks.knowledge import Knowledge
from wmarena.attacks.tuning.descent import Descent
from wmarena.schemes.base import Batch, Samples, Scheme, TaskInfo, Workload
from wmarena.schemes.params import ConfigError, param
from wmarena.schemes.prf import subseed

_TOO_SHORT = "left out: estimating F takes a pass over the data, and the only one granted is used for training"


@dataclass(frozen=True, kw_only=True)
class Refit(Attack):
    """Fine-tune all layers at a large, decaying learning rate, optionally with elastic weights or unlabelled images."""

    name: ClassVar[str] = "refit"
    family: ClassVar[Family] = "adaptive"
    knows: ClassVar[frozenset[Knowledge]] = frozenset({"weights"})
    paper: ClassVar[str] = "Chen et al. 2021, REFIT: A Unified Watermark Removal Framework"

    lr: float = param(0.05, doc="learning rate of the first epoch", stage="attack", low=0, low_open=True, strength=True)
    decay: float = param(0.9, doc="factor on the rate", stage="attack", low=0, high=1, low_open=True)
    decay_every: int = param(1, doc="epochs between two decays", stage="attack", low=1)
    epochs: int = param(60, doc="passes over the adversary's data", stage="attack", low=1)
    batch_size: int = param(100, doc="samples a step", stage="attack", low=1)
    weight_decay: float = param(5e-4, doc="L2 penalty", stage="attack", low=0)
    variant: Literal["ftal", "rtal"] = param("ftal", doc="ftal: keep the head; rtal: re-initialise it", stage="attack")
    ewc: float = param(
        0.0, doc="lambda, weight of elastic consolidation; 0 = none, the authors' is 10", stage="attack", low=0
    )
    fisher_samples: int = param(10_000, doc="samples that F is estimated on, at most", stage="attack", low=1)
    unlabelled: str | None = param(
        None, doc="workload whose images join the batches with the victim's answers; none = no others", stage="attack"
    )
    unlabelled_batch: int = param(50, doc="unlabelled images a step", stage="attack", low=1)

    @property
    def label(self) -> str:
        parts = [self.name, "rtal" if self.replaces_head else "", "ewc" if self.ewc else ""]
        return "-".join(p for p in [*parts, "au" if self.unlabelled else ""] if p)

    @property
    def replaces_head(self) -> bool:
        return self.variant == "rtal"

    def within(self, epochs: int, n_samples: int) -> "Refit":
        """Reduce ``epochs``; estimating F is a pass over the data too, and is left out if only one is granted."""
        return replace(self, epochs=min(self.epochs, max(1, epochs - 1 if self.ewc else epochs)))

    def applicable(self, victim: Scheme, info: TaskInfo) -> str | None:
        if self.ewc and info.kind == "detection":
            return "elastic weights need class scores, a detector has many a sample; set ewc: 0"
        if self.unlabelled is not None and len(info.input_shape) != 3:
            return f"unlabelled data are images, the task's inputs have shape {info.input_shape}; leave unlabelled out"
        return None

    def data_sets(self) -> tuple[str, ...]:
        return () if self.unlabelled is None else (self.unlabelled,)

    def run(self, model: nn.Module, view: AttackView) -> nn.Module | Finding:
        head = view.task.head(model)
        # Both read the victim's weights, so they come before training or restoring a checkpoint.
        elastic = self._elastic(model, head, view)
        unlabelled = self._answered(model, view)
        if self.replaces_head:
            reinitialise(head, subseed(view.seed, "head"))

        def loss(batch: Batch, step: int, rate: float) -> Tensor:
            if unlabelled is not None:
                batch = _joined(batch, unlabelled(step))
            value = view.task.loss(model, *batch)
            return value if elastic is None else value + elastic.penalty(rate)

        Descent(
            model=model,
            view=view,
            loss=loss,
            purpose="refit",
            rate=lambda epoch: self.lr * self.decay ** (epoch // self.decay_every),
            epochs=self.epochs,
            batch_size=self.batch_size,
            weight_decay=self.weight_decay,
        ).run()
        return Finding(model, {"ewc": _TOO_SHORT}) if self.ewc and elastic is None else model

    def _elastic(self, model: nn.Module, head: nn.Module, view: AttackView) -> "ElasticPenalty | None":
        if not self.ewc or view.budget.max_epochs == 1:
            return None
        information = fisher(model, view.data, self.fisher_samples, subseed(view.seed, "refit/fisher"))
        free = {id(p) for p in head.parameters()} if self.replaces_head else set()
        pairs = zip(model.parameters(), information, strict=True)
        anchored = [(p, p.detach().clone(), f) for p, f in pairs if id(p) not in free]
        return ElasticPenalty(self.ewc, anchored)

    def _answered(self, victim: nn.Module, view: AttackView) -> "UnlabelledImages | None":
        if self.unlabelled is None:
            return None
        task = view.task
        if self.unlabelled == task.name:
            raise ConfigError([("unlabelled", f"expected another workload than the victim's, got {task.name}")])
        samples, _, info = view.auxiliary_data(self.unlabelled)
        if info.input_shape != task.info.input_shape:
            why = (
                f"expected images of shape {task.info.input_shape} for {task.name}, got {info.input_shape} from "
                f"{self.unlabelled}; choose a workload with images of that shape"
            )
            raise ConfigError([("unlabelled", why)])
        return UnlabelledImages(samples, victim, task, self.unlabelled_batch, subseed(view.seed, "refit/unlabelled"))


@dataclass(frozen=True)
class ElasticPenalty:
    """The quadratic penalty around the victim's weights.

    Attributes:
        weight: lambda.
        anchored: (parameter, its value in the victim, F), three tensors of one shape.
    """

    weight: float
    anchored: Sequence[tuple[nn.Parameter, Tensor, Tensor]]

    def penalty(self, rate: float) -> Tensor:
        """Return (lambda / 2) sum min(F, 1 / (rate lambda)) (theta - theta0)^2, a scalar."""
        # A larger F would overshoot theta0 in one step of this rate.
        cap = 1 / (rate * self.weight)
        terms = [(f.clamp(max=cap) * (p - start).square()).sum() for p, start, f in self.anchored]
        return self.weight / 2 * torch.stack(terms).sum()


def fisher(model: nn.Module, samples: Samples, n: int, seed: int) -> list[Tensor]:
    """Estimate the diagonal Fisher information of ``model``'s own predictions, one tensor a parameter, largest value 1.

    Args:
        model: gives class scores (n, C); in eval mode, gradients enabled.
        samples: one pass over (at most ``n`` of) them, shuffled by ``seed``; their labels are not read.

    Raises:
        FloatingPointError: the model's scores are NaN or infinite.
    """
    parameters = list(model.parameters())
    sums = [torch.zeros_like(p) for p in parameters]
    generator = torch.Generator().manual_seed(subseed(seed, "labels"))
    n_left = n
    for inputs, _ in samples.batches(min(n, 100), seed=seed, epoch=0, augment=False):
        inputs = inputs[:n_left]
        labels = _own_labels(model, inputs, generator)
        for one, label in zip(torch.split(inputs, 1), torch.split(labels, 1), strict=True):
            loss = F.cross_entropy(model(one), label)
            # The mean of squares is not the square of a mean: every sample needs a backward pass of its own.
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
            for total, gradient in zip(sums, gradients, strict=True):
                total.addcmul_(gradient, gradient)
        n_left -= len(inputs)
        if n_left == 0:
            break
    largest = torch.stack([total.max() for total in sums]).max()
    return [total / largest.clamp_min(torch.finfo(largest.dtype).tiny) for total in sums]


@torch.no_grad()
def _own_labels(model: nn.Module, inputs: Tensor, generator: torch.Generator) -> Tensor:
    """Draw (n,) labels from the model's predictive distribution, on its device."""
    probabilities = model(inputs).softmax(dim=1).cpu()
    if not bool(torch.isfinite(probabilities).all()):
        raise FloatingPointError("expected finite class scores of the victim, got NaN or infinity")
    return torch.multinomial(probabilities, 1, generator=generator).flatten().to(inputs.device)


class UnlabelledImages:
    """Images of another data set with the victim's answers, in batches.

    Args:
        samples: the images, (m, *input_shape) raw, as the victim's task takes them; their labels are not read.
        victim: answers every image once.
        size: images a batch, at most m.
        seed: fixes the order: a step's batch depends on (seed, step) alone.
    """

    def __init__(self, samples: Samples, victim: nn.Module, task: Workload, size: int, seed: int) -> None:
        self._samples, self._task, self._seed = samples, task, seed
        self._size = min(size, len(samples))
        with torch.no_grad():
            self._raw, _ = samples.raw()
        self._labels = task.predict(victim, self._raw).to(task.device)
        self._pass = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def __call__(self, step: int) -> Batch:
        """Return (inputs, labels) of one step; each pass has a new order and drops its incomplete end."""
        number, index = divmod(step, len(self._samples) // self._size)
        if number != self._pass:
            self._begin(number)
        chosen = self._order[index * self._size : (index + 1) * self._size]
        return self._task.to_inputs(self._raw[chosen.to(self._raw.device)]), self._labels[
            chosen.to(self._labels.device)
        ]

    def _begin(self, number: int) -> None:
        """Shuffle for pass ``number``, and read the images again, so that the budget counts the pass."""
        self._raw, _ = self._samples.raw()
        generator = torch.Generator().manual_seed(subseed(self._seed, number))
        self._pass, self._order = number, torch.randperm(len(self._samples), generator=generator)


def _joined(first: Batch, second: Batch) -> Batch:
    return torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]])
