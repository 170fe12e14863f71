"""Training batches with triggers added, as backdoor schemes embed.

L = L_task over a batch of B task images and k triggers
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from wmarena.schemes.base import Batch, Recipe
from wmarena.schemes.prf import subseed

Feed = Callable[[int], Batch]
"""Global step -> (inputs (k, ...), labels (k,)): a function of the step alone, so that training can resume."""


def optimiser_steps(recipe: Recipe, n_train: int) -> int:
    """Return steps of ``recipe`` on ``n_train`` samples."""
    return recipe.steps or recipe.epochs * math.ceil(n_train / recipe.batch_size)


class TriggerFeed:
    """``k`` triggers for each training step, a function of the step alone, so that a resumed run sees the same ones.

    Each cycle shows every trigger once in a new random order, so showings differ by at most one.
    """

    def __init__(self, inputs: Tensor, labels: Tensor, k: int, seed: int) -> None:
        self._inputs = inputs
        self._labels = labels
        self._k = k
        self._seed = seed

    def __call__(self, step: int) -> Batch:
        """Return (inputs (k, ...), labels (k,)) of a global step."""
        n = len(self._labels)
        # Position p of the endless sequence belongs to cycle p // n.
        positions = range(step * self._k, (step + 1) * self._k)
        chosen = torch.tensor([_order(self._seed, p // n, n)[p % n] for p in positions], device=self._labels.device)
        return self._inputs[chosen], self._labels[chosen]


def together(feeds: Sequence[Feed]) -> Feed:
    """Concatenate the batches that ``feeds`` give at a step."""

    def joined(step: int) -> Batch:
        inputs, labels = zip(*(feed(step) for feed in feeds), strict=True)
        return torch.cat(inputs), torch.cat(labels)

    return joined


@lru_cache(maxsize=16)
def _order(seed: int, cycle: int, n: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(subseed(seed, "cycle", cycle))
    return tuple(torch.randperm(n, generator=generator).tolist())
