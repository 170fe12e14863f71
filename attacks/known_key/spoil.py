"""Spoiling: remove a mark whose key is known, e.g. because the owner had to reveal it in a dispute.

    joint        min_W  L_task(W; D_adv) + w S(W)        for ``steps`` steps; w grows while the mark is found
    sequential   min_W  S(W)  until the owner's test fails, then ``recovery`` epochs of fine-tuning on D_adv

S is what the scheme's hooks offer:

    triggers     task loss of the triggers with wrong labels
    mark_loss    the mark's own loss over random labels; its head and matrices stay as they are
    carriers     no loss: the scalars that carry the mark are replaced by draws from N(mean, sd) of their own tensor
                 (sequential spoiling prefers this over ``mark_loss``)

    labels       triggers get                                   a mark's loss gets
    runner_up    the network's own second choice: the least     labels drawn at random
                 change that makes them wrong
    random       any wrong class                                labels drawn at random
    flip         the next class                                 its own labels, raised to four times its value at chance
                                                                (no hook reveals the labels)

A two-sided test detects a flipped mark as well as an intact one.

Every ``check_every`` steps the owner's own test is run. Joint spoiling uses its whole budget and returns the most
accurate of the checkpoints that fail the test (validation accuracy; ties, frequent with the adversary's few samples,
go to the lower validation loss); sequential spoiling stops at the first such checkpoint and returns the model after
recovery, in which the mark often returns. Batch norm and dropout stay in eval mode while spoiling.

Source: Li et al. 2022 (appendix B: sequential, random labels). Differs from the paper: the joint form, which is
stronger; its weight grows because marks differ by orders of magnitude in resistance, which the adversary can measure.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from wmarena.attacks.base import Attack, AttackView, Family
from wmarena.attacks.fine_tuning import sgd, tune_all
from wmarena.attacks.knowledge import Knowledge
from wmarena.attacks.phases import Phase
from wmarena.schemes.base import Batch, Samples, Scheme, Suspect, TaskInfo, Workload
from wmarena.schemes.params import param
from wmarena.schemes.prf import subseed
from wmarena.schemes.training_state import batches_from, pack, unpack

SpoilLoss = Callable[[nn.Module], Tensor]
"""S(W): a scalar that is small where the mark is spoilt."""

_FLIP_CAP = 4.0
"""Flipping raises the mark's loss to this many times ln(1/q), its value at chance."""


@dataclass(frozen=True, kw_only=True)
class Spoil(Attack):
    """Train the mark away with the owner's key in hand."""

    name: ClassVar[str] = "spoil"
    family: ClassVar[Family] = "known_key"
    knows: ClassVar[frozenset[Knowledge]] = frozenset({"weights", "algorithm", "key"})
    paper: ClassVar[str] = "Li et al. 2022, Leveraging Multi-task Learning for Watermarking (spoil attack)"

    mode: Literal["joint", "sequential"] = param(
        "joint", doc="joint: task and spoiling together; sequential: spoil, then recover", stage="attack"
    )
    labels: Literal["runner_up", "random", "flip"] = param(
        "runner_up", doc="labels to teach: triggers' second choice (else random), random, or opposite", stage="attack"
    )
    w: float = param(0.3, doc="weight of the spoiling loss at the start (joint)", stage="attack", low=0, low_open=True)
    w_growth: float = param(
        2.0, doc="factor on w at each owner's test, until one fails; 1 = constant (joint)", stage="attack", low=1
    )
    steps: int = param(200, doc="optimiser steps, at most", stage="attack", low=1, strength=True)
    lr: float = param(1e-3, doc="Adam learning rate", stage="attack", low=0, low_open=True)
    recovery: int = param(10, doc="epochs of fine-tuning after spoiling (sequential)", stage="attack", low=0)
    recovery_lr: float = param(1e-3, doc="learning rate of that fine-tuning", stage="attack", low=0, low_open=True)
    batch_size: int = param(100, doc="task samples a step", stage="attack", low=1)
    check_every: int = param(10, doc="steps between two runs of the owner's test", stage="attack", low=1)

    @property
    def label(self) -> str:
        return f"{self.name}-{self.mode}"

    def within(self, epochs: int, n_samples: int) -> "Spoil":
        """Reduce the steps; sequential spoiling keeps half of the passes for recovery."""
        spoiling = epochs if self.mode == "joint" else max(1, epochs // 2)
        steps = spoiling * math.ceil(n_samples / self.batch_size)
        return replace(self, steps=min(self.steps, steps), recovery=min(self.recovery, epochs - spoiling))

    def applicable(self, victim: Scheme, info: TaskInfo) -> str | None:
        hooks = ("triggers", "mark_loss", "carriers")
        if not any(_offers(victim, hook) for hook in hooks):
            return f"{victim.name} offers none of the hooks {', '.join(hooks)}"
        return None

    def run(self, model: nn.Module, view: AttackView) -> nn.Module:
        loss = self._spoil_loss(model, view)
        if loss is None:
            redraw_carriers(model, view)
        best = BestRemoval(view)
        self._descend(model, view, loss, best)
        best.restore(model)
        if self.mode == "sequential":
            tune_all(
                model, view, sgd(epochs=self.recovery, lr=self.recovery_lr), checkpoints=Phase(view.checkpoints, 1)
            )
        return model

    def _spoil_loss(self, model: nn.Module, view: AttackView) -> SpoilLoss | None:
        """Return S, or None if the carriers are to be replaced instead."""
        scheme, key, task = view.scheme, view.key, view.task
        triggers = scheme.triggers(key)
        if triggers is not None:
            raw, right = triggers
            inputs = task.to_inputs(raw)
            wrong = self._wrong(model, inputs, right.to(task.device), view)
            return lambda m: task.loss(m, inputs, wrong)
        redraw = self.mode == "sequential" and bool(scheme.carriers(model, key))
        if redraw or not _offers(scheme, "mark_loss"):
            return None
        n, chance = scheme.trials(key)
        q = 0.5 if chance is None else chance
        if self.labels == "flip":
            cap = _FLIP_CAP * float(-torch.log(torch.tensor(q)))
            return lambda m: torch.relu(cap - mark_loss(m, view, None))
        drawn = torch.randint(round(1 / q), (n,), generator=self._generator(view)).to(task.device)
        return lambda m: mark_loss(m, view, drawn)

    def _wrong(self, model: nn.Module, inputs: Tensor, right: Tensor, view: AttackView) -> Tensor:
        """Return (n,) labels for the triggers ``inputs``, none of which is ``right`` (n,)."""
        num_classes = view.task.info.num_classes
        if self.labels == "flip":
            return (right + 1) % num_classes
        if self.labels == "random":
            shift = 1 + torch.randint(num_classes - 1, right.shape, generator=self._generator(view))
            return (right + shift.to(right.device)) % num_classes
        with torch.no_grad():
            scores = model(inputs)
        if scores.shape != (len(right), num_classes):
            raise ValueError(
                f"expected a classifier with scores of shape {(len(right), num_classes)}, got {tuple(scores.shape)}; "
                "use labels: random"
            )
        return torch.as_tensor(scores.scatter(1, right[:, None], -torch.inf).argmax(dim=1))

    @staticmethod
    def _generator(view: AttackView) -> torch.Generator:
        return torch.Generator().manual_seed(subseed(view.seed, "spoil/labels"))

    def _descend(self, model: nn.Module, view: AttackView, spoil: SpoilLoss | None, best: "BestRemoval") -> None:
        """Make up to ``steps`` Adam steps on ``model`` in place; pass candidates to ``best``."""
        checkpoints = Phase(view.checkpoints, 0)
        optimiser = torch.optim.Adam(model.parameters(), lr=self.lr)
        start, found, w = 0, checkpoints.latest(self.steps), self.w
        if found is None:
            best.consider(model)
        else:
            start, state = found
            extra = unpack(state, model, optimiser)
            best.load(extra)
            w = float(extra["w"])
        batches = batches_from(start, view.data, self.batch_size, subseed(view.seed, "spoil"))
        for step in range(start, self.steps):
            if self.mode == "sequential" and (best.found or spoil is None):
                return
            optimiser.zero_grad()
            self._loss(model, view, spoil, batches, w).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            if (step + 1) % self.check_every == 0 or step + 1 == self.steps:
                best.consider(model)
                # The smallest sufficient weight costs the least accuracy.
                w *= 1.0 if best.found else self.w_growth
                extra = best.state() | {"w": torch.tensor(w, dtype=torch.float64)}
                checkpoints.offer(step + 1, partial(pack, model, optimiser, extra))

    def _loss(
        self, model: nn.Module, view: AttackView, spoil: SpoilLoss | None, batches: Iterator[Batch], w: float
    ) -> Tensor:
        """Return the loss of one step (scalar); a batch is read only if the task's loss counts."""
        if spoil is not None and self.mode == "sequential":
            return spoil(model)
        loss = view.task.loss(model, *next(batches))
        return loss if spoil is None else loss + w * spoil(model)


class BestRemoval:
    """The most accurate checkpoint that the owner's test no longer finds."""

    def __init__(self, view: AttackView) -> None:
        self.view = view
        self._score: tuple[float, float] = (-1.0, 0.0)
        self._tensors: dict[str, Tensor] = {}

    @property
    def found(self) -> bool:
        """True once a checkpoint failed the owner's test."""
        return bool(self._tensors)

    def consider(self, model: nn.Module) -> None:
        """Judge ``model`` with the owner's key and keep a copy if it is the best so far."""
        view = self.view
        verdict = view.scheme.judge(Suspect(model, view.task), view.key)
        if verdict.verdict:
            return
        score = (view.task.score(model, view.val), -mean_loss(model, view.task, view.val))
        if score > self._score or not self.found:
            self._score = score
            self._tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    def restore(self, model: nn.Module) -> None:
        """Put the best checkpoint into ``model``; without one it stays as the last step left it."""
        if self.found:
            model.load_state_dict(self._tensors)

    def state(self) -> dict[str, Tensor]:
        """Return the state for a checkpoint of the loop."""
        return {"score": torch.tensor(self._score, dtype=torch.float64)} | {
            f"best.{name}": tensor for name, tensor in self._tensors.items()
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        accuracy, negative_loss = state["score"].tolist()
        self._score = (accuracy, negative_loss)
        self._tensors = {name.removeprefix("best."): t for name, t in state.items() if name.startswith("best.")}


@torch.no_grad()
def mean_loss(model: nn.Module, task: Workload, samples: Samples) -> float:
    """Return the mean primary loss per sample, in the model's present mode."""
    losses = [(float(task.loss(model, *batch)), len(batch[1])) for batch in samples.in_order()]
    return sum(loss * n for loss, n in losses) / len(samples)


def mark_loss(model: nn.Module, view: AttackView, labels: Tensor | None) -> Tensor:
    """Return the scheme's ``mark_loss`` with the owner's key, over ``labels`` (n,) or the key's own."""
    loss = view.scheme.mark_loss(model, view.task, view.key, labels)
    if loss is None:
        raise ValueError(f"expected {view.scheme.name} to give a mark_loss for its own key, got None")
    return loss


def redraw_carriers(model: nn.Module, view: AttackView) -> None:
    """Replace the scalars that carry the mark by draws from N(mean, sd) of their tensor, in place.

    Mean and sd are those of the tensor's other scalars where the mark does not fill it.
    """
    parameters = dict(model.named_parameters())
    for carrier in view.scheme.carriers(model, view.key):
        tensor = parameters[carrier.name].data
        mask = torch.ones_like(tensor, dtype=torch.bool) if carrier.mask is None else carrier.mask.to(tensor.device)
        # Statistics of the unmarked scalars hide the replacement.
        others = tensor[~mask] if int((~mask).sum()) > 1 else tensor.flatten()
        generator = torch.Generator().manual_seed(subseed(view.seed, "spoil/carriers", carrier.name))
        noise = torch.randn(tensor.shape, generator=generator).to(tensor)
        tensor.copy_(torch.where(mask, others.mean() + others.std() * noise, tensor))


def _offers(scheme: Scheme, hook: str) -> bool:
    return getattr(type(scheme), hook) is not getattr(Scheme, hook)
