"""Model extraction: a new network learns the stolen model's answers; the weights are never seen.

    p = victim(x), q = softmax(z / T), z the student's logits, x the adversary's inputs, y their labels

    soft   L = alpha T^2 KL(p_T || q) + (1 - alpha) CE(softmax(z), y),   p_T = p^(1/T) / sum p^(1/T)
    hard   L = alpha CE(softmax(z), argmax p) + (1 - alpha) CE(softmax(z), y)

    p    (n, C) probabilities, one query for each of n distinct inputs, unaugmented
    p_T  equals softmax(v / T) of the victim's logits v: from probabilities alone nothing is lost

Every answer counts against the adversary's queries. If fewer are granted than there are inputs, that many inputs are
drawn from the seed and used. ``agreement`` is the share of the adversary's validation inputs on which student and
victim give the same class; it costs queries too and is only measured if enough are left.

The student cannot contain a mark in the weights: that verdict 0 is a legitimate removal. It may learn marks in the
function.

Source: Hinton, Vinyals, Dean 2015 (loss); Lukas et al. 2022 (as an attack, and its default schedule: 60 epochs, SGD
0.1 with Nesterov's momentum 0.9, weight decay 5e-4, a fifth of the rate after epochs 20, 35 and 50, T = 3, alpha = 1).
Differs from the paper: workloads that train with Adam are extracted with Adam at a constant 1e-3, since their networks
have no batch norm, which a rate of 0.1 needs. Under both, epoch e does not depend on the number of epochs. The student
has the victim's architecture; inputs are not augmented, since the answers belong to the queried inputs. A resumed run
repeats the queries and gets the same answers; they are counted once.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wmarena.attacks.base import LUKAS_2022, Attack, AttackView, Family, Finding
from wmarena.attacks.knowledge import Knowledge
from wmarena.schemes.base import Scheme, TaskInfo, Workload, untouched
from wmarena.schemes.params import Json, param
from wmarena.schemes.prf import subseed
from wmarena.schemes.training_state import epochs_left, seeded

_MILESTONES = (20, 35, 50)
"""Epochs after which SGD's rate falls to a fifth."""

_QUERY_BATCH = 1000


@dataclass(frozen=True, kw_only=True)
class Distill(Attack):
    """Train a new network on the stolen model's answers, without its weights."""

    name: ClassVar[str] = "distill"
    family: ClassVar[Family] = "extraction"
    knows: ClassVar[frozenset[Knowledge]] = frozenset({"queries"})
    paper: ClassVar[str] = LUKAS_2022
    incremental: ClassVar[bool] = True

    labels: Literal["soft", "hard"] = param(
        "soft", doc="soft: learn probabilities; hard: learn the class alone", stage="attack"
    )
    temperature: float = param(3.0, doc="T, softens both distributions (soft)", stage="attack", low=0, low_open=True)
    alpha: float = param(1.0, doc="weight of the victim's answers against true labels", stage="attack", low=0, high=1)
    epochs: int = param(60, doc="passes over the queried inputs", stage="attack", low=1, strength=True)
    optimiser: Literal["sgd", "adam"] | None = param(
        None, doc="of the student; none = the workload's own kind", stage="attack"
    )
    lr: float | None = param(
        None, doc="its rate at the start; none = 0.1 for sgd, 1e-3 for adam", stage="attack", low=0, low_open=True
    )
    weight_decay: float = param(5e-4, doc="L2 penalty", stage="attack", low=0)
    batch_size: int = param(100, doc="inputs a step", stage="attack", low=1)

    @property
    def label(self) -> str:
        return f"{self.name}-{self.labels}"

    def applicable(self, victim: Scheme, info: TaskInfo) -> str | None:
        if info.kind == "detection":
            return "the answers of a detector are no class probabilities"
        return None

    def run(self, model: nn.Module, view: AttackView) -> Finding:
        answered = ask(model, view)
        student = view.task.network(subseed(view.seed, "student"))
        self._teach(student, answered, view)
        checked = _affords(view, len(answered) + len(view.val))
        details: dict[str, Json] = {
            "queries": len(answered) + (len(view.val) if checked else 0),
            "agreement": agreement(student, model, view) if checked else None,
        }
        return Finding(student, details)

    def _teach(self, student: nn.Module, answered: "QueriedAnswers", view: AttackView) -> None:
        """Train ``student`` in place for ``epochs`` passes over the answers."""
        optimiser = self._optimiser(student, view.task)
        peak = optimiser.param_groups[0]["lr"]
        student.train()
        for epoch in epochs_left(view.checkpoints, self.epochs, student, optimiser, keep_last=True):
            falls = sum(epoch >= m for m in _MILESTONES) if isinstance(optimiser, torch.optim.SGD) else 0
            for group in optimiser.param_groups:
                group["lr"] = peak * 0.2**falls
            view.spend(len(answered))
            with seeded(subseed(view.seed, "dropout", epoch), view.task.device):
                loss = self._epoch(student, answered, optimiser, subseed(view.seed, "order", epoch))
            view.log(epoch + 1, loss=loss, lr=peak * 0.2**falls)

    def _optimiser(self, student: nn.Module, task: Workload) -> torch.optim.Optimizer:
        parameters = student.parameters()
        if (self.optimiser or task.recipe.optimiser) == "adam":
            return torch.optim.Adam(parameters, lr=self.lr or 1e-3, weight_decay=self.weight_decay)
        return torch.optim.SGD(
            parameters, lr=self.lr or 0.1, momentum=0.9, nesterov=True, weight_decay=self.weight_decay
        )

    def _epoch(
        self, student: nn.Module, answered: "QueriedAnswers", optimiser: torch.optim.Optimizer, seed: int
    ) -> float:
        """Train one shuffled pass; return the mean loss."""
        total = torch.zeros((), dtype=torch.float64, device=answered.probabilities.device)
        for inputs, labels, probabilities in answered.batches(self.batch_size, seed):
            loss = self.loss(student(inputs).float(), labels, probabilities)
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimiser.step()
            total += loss.detach() * len(labels)
        mean = float(total) / len(answered)
        if not math.isfinite(mean):
            raise FloatingPointError(f"expected a finite loss of the student, got {mean}; lower the learning rate")
        return mean

    def loss(self, logits: Tensor, labels: Tensor, probabilities: Tensor) -> Tensor:
        """Return L (scalar) of student logits (n, C), true labels (n,) and the victim's probabilities (n, C)."""
        if self.labels == "hard":
            copied = F.cross_entropy(logits, probabilities.argmax(dim=1))
        else:
            log_q = F.log_softmax(logits / self.temperature, dim=1)
            p = softened(probabilities, self.temperature)
            # T^2 keeps the gradient's size independent of T.
            copied = self.temperature**2 * F.kl_div(log_q, p, reduction="batchmean")
        if self.alpha == 1:
            return copied
        return self.alpha * copied + (1 - self.alpha) * F.cross_entropy(logits, labels)


@dataclass(frozen=True)
class QueriedAnswers:
    """Queries and their answers: raw inputs (n, ...), labels (n,), probabilities (n, C)."""

    task: Workload
    raw: Tensor
    labels: Tensor
    probabilities: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield (inputs, labels, probabilities) of one pass in an order drawn from ``seed``."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)).to(self.labels.device)
        for index in torch.split(order, batch_size):
            yield self.task.to_inputs(self.raw[index]), self.labels[index], self.probabilities[index]


def ask(victim: nn.Module, view: AttackView) -> QueriedAnswers:
    """Query the victim for each input, or as many as granted. Raises FloatingPointError: an answer is not finite."""
    with torch.no_grad():
        raw, labels = view.data.raw()
    granted = view.budget.max_queries
    if granted is not None and granted < len(labels):
        generator = torch.Generator().manual_seed(subseed(view.seed, "queries"))
        index = torch.randperm(len(labels), generator=generator)[:granted].to(labels.device)
        raw, labels = raw[index], labels[index]
    answers = torch.cat([victim(view.task.to_inputs(part)) for part in torch.split(raw, _QUERY_BATCH)])
    if not bool(torch.isfinite(answers).all()):
        raise FloatingPointError("expected finite probabilities from the victim, got NaN or infinity")
    return QueriedAnswers(view.task, raw, labels, answers)


def softened(probabilities: Tensor, temperature: float) -> Tensor:
    """Return softmax(v / T) of the logits v behind ``probabilities`` (n, C) = softmax(v)."""
    powers = probabilities.pow(1 / temperature)
    return powers / powers.sum(dim=1, keepdim=True)


def agreement(student: nn.Module, victim: nn.Module, view: AttackView) -> float:
    """Return the share of the adversary's validation inputs, each a query, on which both give the same class."""
    with untouched(student), torch.no_grad():
        same = [(student(x).argmax(dim=1) == victim(x).argmax(dim=1)).sum() for x, _ in view.val.in_order()]
    return int(sum(same)) / len(view.val)


def _affords(view: AttackView, n_queries: int) -> bool:
    return view.budget.max_queries is None or n_queries <= view.budget.max_queries
