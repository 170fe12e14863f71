"""Evaluation in smaller batches after memory ran out: slower, with the same results.

Training batches stay, because they change results.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from wmarena.orchestrator.worker.workload import BoundWorkload
from wmarena.schemes.base import Batch, Samples, Workload

SMALLER = (250, 50)
"""Largest evaluation batch in the second and third attempt at a task; workloads choose about 1,000 themselves."""


def in_smaller_batches(bound: BoundWorkload, most: int) -> BoundWorkload:
    """Return the workload with evaluation batches of at most ``most`` samples."""
    return replace(
        bound,
        task=cast(Workload, _BatchedWorkload(bound.task, most)),
        val=_BatchedSamples(bound.val, most),
        test=_BatchedSamples(bound.test, most),
    )


class _BatchedWorkload:
    """A workload that predicts in batches."""

    def __init__(self, task: Workload, most: int) -> None:
        self._task = task
        self._most = most

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def predict(self, model: nn.Module, raw: Tensor) -> Tensor:
        return torch.cat([self._task.predict(model, part) for part in torch.split(raw, self._most)])


@dataclass(frozen=True)
class _BatchedSamples:
    """Samples that are read in smaller batches."""

    samples: Samples
    most: int

    def __len__(self) -> int:
        return len(self.samples)

    def batches(self, batch_size: int, *, seed: int, epoch: int, augment: bool = True) -> Iterator[Batch]:
        return self.samples.batches(batch_size, seed=seed, epoch=epoch, augment=augment)

    def in_order(self, batch_size: int = 1000) -> Iterator[Batch]:
        return self.samples.in_order(min(batch_size, self.most))

    def raw(self) -> Batch:
        return self.samples.raw()

    def share(self, fraction: float, *, domain: str, seed: int) -> Samples:
        return _BatchedSamples(self.samples.share(fraction, domain=domain, seed=seed), self.most)

    def split(self, fraction: float, *, domain: str, seed: int) -> tuple[Samples, Samples]:
        rest, part = self.samples.split(fraction, domain=domain, seed=seed)
        return _BatchedSamples(rest, self.most), _BatchedSamples(part, self.most)
