"""A backdoor as a watermark: abstract images with random labels, committed to before the model is published.

The owner trains the network to answer secret labels on secret images; whoever shows images and labels that open
commitments older than the model, and that the suspect answers, owned its ancestor.

    L = L_task over a batch of B task images and k trigger images                 (Embed, "FromScratch"/"PreTrained")
    vk = {Com(t_i; r_i), Com(T_L(t_i); r'_i)},  mk = (t, T_L, r)                   (KeyGen)
    verdict_paper: #{i: Classify(M, t_i) != T_L(t_i)} <= eps |T|                   (Verify)
    verdict:       P[Binomial(|T|, 1/C) >= matches] <= 1e-6, exact because labels are uniform, independent of each
                   other and of any model that was trained without them

    t    (n, channels, height, width) uint8   trigger images, drawn from the key (``schemes.trigger_images``)
    T_L  (n,) int64 in [0, C)                 trigger labels; never filtered by what a clean model answers, or the
                                              probability of a match would no longer be 1/C
    r    32 bytes each                        openings, from the key's stream

Source: Adi, Baum, Cisse, Pinkas, Keshet, "Turning Your Weakness Into a Strength: Watermarking Deep Neural Networks by
Backdooring", USENIX Security 2018. Differs from the paper: images are procedural; the commitments are SHA-256 (only
computationally hiding); showings of two triggers differ by at most one (a fresh order per cycle, where the authors'
code starts each epoch at a random offset); ``k`` is raised where training is too short to show each trigger often
enough; continuing from a trained network uses Adam on a one-cycle schedule, which costs less accuracy than the
paper's constant rate.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from schemes.adi_triggers import TriggerFeed, class_count, commit_triggers, draw_triggers, flaw, trigger_set
from schemes.base import Access, Owner, Recipe, Scheme, Suspect, TaskInfo, Verdict, Workload, lists, untouched
from schemes.keys import Key
from schemes.params import param
from schemes.prf import Prf, subseed
from schemes.statistics import LEVEL, binomial_threshold

MIN_STEPS = 250
"""Optimiser steps that 100 triggers need where four passes over a small training set are shorter."""

FORGING_STEPS = 200
"""Gradient-sign steps that ``forge`` spends on its images."""


@dataclass(frozen=True, kw_only=True)
class Adi(Scheme):
    """Backdoor trigger set with hash commitments (Adi et al. 2018)."""

    name: ClassVar[str] = "adi"
    access: ClassVar[Access] = "black"
    paper: ClassVar[str] = "Adi et al., Turning Your Weakness Into a Strength, USENIX Security 2018"
    threat_model: ClassVar[str] = (
        "the adversary holds the weights and knows the algorithm, not the triggers; may tune as long as the owner"
    )

    n_triggers: int = param(100, doc="|T|, number of trigger images", stage="key", low=1)
    mode: Literal["pretrained", "scratch"] = param(
        "pretrained",
        doc="continue from the clean network, or train with triggers from the first epoch",
        stage="embed",
        choices=("pretrained", "scratch"),
    )
    triggers_per_batch: int = param(2, doc="k, triggers appended to a batch, at least", stage="embed", low=1)
    showings: int = param(
        30, doc="times that each trigger is shown, at least: raises k where steps are few", stage="embed", low=1
    )
    epochs: int | None = param(
        None,
        doc="passes over the training data; none: the workload's own (scratch), or 4 and at least 250 steps",
        stage="embed",
        low=1,
    )
    lr: float | None = param(
        None,
        doc="peak rate of Adam's one cycle (pretrained); none: half the workload's own, 5e-4 where it trains by SGD",
        stage="embed",
        low=0,
        low_open=True,
    )
    batch_size: int = param(100, doc="B, task images in a batch (pretrained)", stage="embed", low=1)
    eps: float = param(0.1, doc="share of triggers that the paper's rule lets go wrong", stage="verify", low=0, high=1)

    @property
    def from_scratch(self) -> bool:
        return self.mode == "scratch"

    def applicable(self, info: TaskInfo) -> str | None:
        if info.kind != "classification" or len(info.input_shape) != 3:
            return f"triggers are images with class labels, the task is {info.kind} on inputs {info.input_shape}"
        if binomial_threshold(self.n_triggers, 1 / info.num_classes) > self.n_triggers:
            return (
                f"{self.n_triggers} triggers over {info.num_classes} classes cannot reach p <= {LEVEL:g}; "
                "raise n_triggers"
            )
        return None

    def twin_recipe(self, task: Workload, n_train: int) -> Recipe | None:
        return None if self.from_scratch else self.recipe(task, n_train)

    def overwriting(self) -> "Adi":
        return replace(self, mode="pretrained")

    def for_epochs(self, epochs: int, n_train: int) -> "Adi":
        return replace(self, epochs=epochs)

    def keygen(self, task: Workload, prf: Prf) -> Key:
        why = self.applicable(task.info)
        if why is not None:
            raise ValueError(f"expected a task that {self.name} can protect, got {task.name}: {why}")
        key = Key(self.name, prf.stream("seed", 32), {"config": self.config(until="key"), "workload": task.name})
        return draw_triggers(key, self.n_triggers, task.info.num_classes, task.info.input_shape)

    def embed(self, model: nn.Module, owner: Owner, key: Key) -> tuple[nn.Module, Key]:
        task, recipe = owner.task, self.recipe(owner.task, len(owner.train))
        images, labels = self.triggers(key)
        k = self.triggers_per_step(recipe, len(owner.train))
        feed = TriggerFeed(task.to_inputs(images), labels.to(task.device), k, subseed(owner.seed, "triggers"))
        task.fit(model, owner.train, recipe, seed=owner.seed, extra=feed, log=owner.log, checkpoints=owner.checkpoints)
        return model.eval(), key

    def verify(self, suspect: Suspect, key: Key) -> Verdict:
        images, labels = self.triggers(key)
        n, q = self.trials(key)
        why = flaw(key)
        if why is not None:
            return Verdict.binomial(0, n, q, access=self.access, paper=False, details={"found": why})
        matches = int((suspect.labels(images).cpu() == labels).sum())
        paper = n - matches <= self.eps * n
        return Verdict.binomial(matches, n, q, access=self.access, paper=paper, details={"eps": self.eps})

    def randomise_key(self, key: Key, prf: Prf) -> Key:
        images, labels = self.triggers(key)
        bare = Key(key.scheme, prf.stream("seed", 32), {k: key.public[k] for k in ("config", "workload")})
        return draw_triggers(bare, len(labels), class_count(key), tuple(images.shape[1:]))

    def misfit(self, suspect: Suspect, key: Key) -> str | None:
        info = suspect.task.info
        for what, found in (("num_classes", info.num_classes), ("input_shape", lists(info.input_shape))):
            if key.public.get(what) != found:
                return f"{what} is {found}, the key expects {key.public.get(what)}"
        return None

    def trials(self, key: Key) -> tuple[int, float]:
        return len(self.triggers(key)[1]), 1 / class_count(key)

    def triggers(self, key: Key) -> tuple[Tensor, Tensor]:
        return trigger_set(key)

    def mark_loss(self, model: nn.Module, task: Workload, key: Key, labels: Tensor | None = None) -> Tensor:
        images, own = self.triggers(key)
        targets = own if labels is None else labels
        return task.loss(model, task.to_inputs(images), targets.to(task.device))

    def forge(self, model: nn.Module, forger: Owner, key: Key) -> Key | None:
        """Turn the key's images into adversarial ones that the frozen model answers with the key's labels.

        The iterated gradient-sign method of Madry et al. (ICLR 2018) without a bound on the distance, as abstract
        images need not look like anything, in whole grey levels, as commitments are to uint8 pixels.
        """
        task, (images, labels) = forger.task, self.triggers(key)
        targets = labels.to(task.device)
        pixels = images.to(task.device, torch.int16)
        with untouched(model), torch.enable_grad():
            for step in range(FORGING_STEPS):
                inputs = task.to_inputs(pixels.to(torch.uint8)).requires_grad_()
                (gradient,) = torch.autograd.grad(task.loss(model, inputs, targets), inputs)
                stride = math.ceil(8 * (1 - step / FORGING_STEPS))
                pixels = (pixels - stride * _cropped(gradient, images.shape).sign().to(torch.int16)).clamp(0, 255)
        return commit_triggers(key, pixels.to(torch.uint8), labels)

    def recipe(self, task: Workload, n_train: int) -> Recipe:
        """The training of ``embed``, triggers apart."""
        if self.from_scratch:
            return replace(task.recipe, epochs=self.epochs or task.recipe.epochs)
        own = task.recipe
        steps_per_epoch = math.ceil(n_train / self.batch_size)
        steps = max(4 * steps_per_epoch, MIN_STEPS) if self.epochs is None else self.epochs * steps_per_epoch
        return Recipe(
            optimiser="adam",
            lr=self.lr or (own.lr / 2 if own.optimiser == "adam" else 5e-4),
            batch_size=self.batch_size,
            epochs=math.ceil(steps / steps_per_epoch),
            steps=steps,
            schedule="one_cycle",
            augment=own.augment,
        )

    def triggers_per_step(self, recipe: Recipe, n_train: int) -> int:
        """k, raised until the steps of ``recipe`` show each trigger ``showings`` times."""
        steps = recipe.steps or recipe.epochs * math.ceil(n_train / recipe.batch_size)
        needed = math.ceil(self.showings * self.n_triggers / steps)
        return min(self.n_triggers, max(self.triggers_per_batch, needed))


def _cropped(gradient: Tensor, shape: torch.Size) -> Tensor:
    """The gradient (n, channels, H, W) of the raw image's own pixels, where a workload pads evenly around it."""
    height, width = shape[-2:]
    top, left = (gradient.shape[-2] - height) // 2, (gradient.shape[-1] - width) // 2
    return gradient[..., top : top + height, left : left + width]
