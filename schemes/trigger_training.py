"""Training with triggers beside the task's own batches, as backdoor schemes embed.

    L = L_task over a batch of B task images and k triggers
    pretrained: Adam on one cycle from the clean network, for ``epochs`` passes, or for 4 and at least so many steps

A constant rate, as the papers have it, costs more accuracy: a twin trained equally long loses as much without a mark.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from schemes.base import Batch, Recipe
from schemes.prf import subseed

_PASSES = 4

Feed = Callable[[int], Batch]
"""Global step -> (inputs (k, ...), labels (k,)): a function of the step alone, so that training can resume."""


def continuing_recipe(
    own: Recipe, n_train: int, *, epochs: int | None, lr: float | None, batch_size: int, min_steps: int
) -> Recipe:
    """The training that goes on from a network that ``own`` trained.

    Args:
        epochs: passes over ``n_train`` samples; None: 4, and at least ``min_steps`` steps.
        lr: peak rate; None: half of ``own``'s, 5e-4 where that trains by SGD.
    """
    steps_per_epoch = math.ceil(n_train / batch_size)
    steps = max(_PASSES * steps_per_epoch, min_steps) if epochs is None else epochs * steps_per_epoch
    return Recipe(
        optimiser="adam",
        lr=lr or (own.lr / 2 if own.optimiser == "adam" else 5e-4),
        batch_size=batch_size,
        epochs=math.ceil(steps / steps_per_epoch),
        steps=steps,
        schedule="one_cycle",
        augment=own.augment,
    )


def optimiser_steps(recipe: Recipe, n_train: int) -> int:
    """Steps of ``recipe`` on ``n_train`` samples."""
    return recipe.steps or recipe.epochs * math.ceil(n_train / recipe.batch_size)


class TriggerFeed:
    """``k`` triggers for each training step: a function of the step alone, so that a resumed run sees the same ones.

    Each cycle shows every trigger once, in an order drawn anew: no trigger falls behind another by more than one.
    """

    def __init__(self, inputs: Tensor, labels: Tensor, k: int, seed: int) -> None:
        self._inputs = inputs
        self._labels = labels
        self._k = k
        self._seed = seed

    def __call__(self, step: int) -> Batch:
        """(inputs (k, ...), labels (k,)) of a global step."""
        n = len(self._labels)
        positions = range(step * self._k, (step + 1) * self._k)
        chosen = torch.tensor([_order(self._seed, p // n, n)[p % n] for p in positions], device=self._labels.device)
        return self._inputs[chosen], self._labels[chosen]


def together(feeds: Sequence[Feed]) -> Feed:
    """All of what ``feeds`` give at a step, in their order."""

    def joined(step: int) -> Batch:
        inputs, labels = zip(*(feed(step) for feed in feeds), strict=True)
        return torch.cat(inputs), torch.cat(labels)

    return joined


@lru_cache(maxsize=16)
def _order(seed: int, cycle: int, n: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(subseed(seed, "cycle", cycle))
    return tuple(torch.randperm(n, generator=generator).tolist())
