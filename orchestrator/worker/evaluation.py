"""Evaluation in smaller batches, for a device whose memory ran out: slower, with the same answers.

Training is not touched: its batches are part of what a task is.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from wmarena.orchestrator.worker.workload import BoundWorkload
from wmarena.schemes.base import Batch, Samples, Workload

SMALLER = (250, 50)
"""Most samples at once in the second and third attempt at a task; workloads choose about 1,000 themselves."""


def in_smaller_batches(arena: BoundWorkload, most: int) -> BoundWorkload:
    """The same workload, judging models on at most ``most`` samples at once."""
    return replace(
        arena,
        task=cast(Workload, _Task(arena.task, most)),
        val=_Samples(arena.val, most),
        test=_Samples(arena.test, most),
    )


class _Task:
    """A workload whose predictions come in parts."""

    def __init__(self, task: Workload, most: int) -> None:
        self._task = task
        self._most = most

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def predict(self, model: nn.Module, raw: Tensor) -> Tensor:
        return torch.cat([self._task.predict(model, part) for part in torch.split(raw, self._most)])


@dataclass(frozen=True)
class _Samples:
    """Samples that are read in parts."""

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
        return _Samples(self.samples.share(fraction, domain=domain, seed=seed), self.most)

    def split(self, fraction: float, *, domain: str, seed: int) -> tuple[Samples, Samples]:
        rest, part = self.samples.split(fraction, domain=domain, seed=seed)
        return _Samples(rest, self.most), _Samples(part, self.most)
