"""The task of a licensed user: the same task, with the serial number stamped on every input."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from wmarena.schemes.base import Batch, Evaluation, Samples, Workload
from wmarena.schemes.serial.numbers import Ink, stamp_raw


@dataclass(frozen=True)
class SerialNumber:
    """A serial number and its position.

    Attributes:
        pattern: (side, side) uint8.
        position: (2,) int64.
    """

    pattern: Tensor
    position: Tensor

    def on(self, raw: Tensor) -> Tensor:
        """Stamp raw images (n, c, h, w) uint8."""
        return stamp_raw(raw, self.pattern[None], self.position[None])

    def on_inputs(self, ink: Ink, inputs: Tensor) -> Tensor:
        """Stamp normalised inputs."""
        return ink(inputs, self.pattern[None], self.position[None])


class StampedSamples:
    """Samples (``wmarena.schemes.base.Samples``) with a number on each, printed after augmentation."""

    def __init__(self, samples: Samples, number: SerialNumber, ink: Ink) -> None:
        self._samples, self._number, self._ink = samples, number, ink

    def __len__(self) -> int:
        return len(self._samples)

    def batches(self, batch_size: int, *, seed: int, epoch: int, augment: bool = True) -> Iterator[Batch]:
        """Yield one shuffled epoch."""
        return self._stamped(self._samples.batches(batch_size, seed=seed, epoch=epoch, augment=augment))

    def in_order(self, batch_size: int = 1000) -> Iterator[Batch]:
        """Yield all samples once."""
        return self._stamped(self._samples.in_order(batch_size))

    def raw(self) -> Batch:
        """Return (stamped images (n, c, h, w) uint8, targets)."""
        raw, targets = self._samples.raw()
        return self._number.on(raw), targets

    def share(self, fraction: float, *, domain: str, seed: int) -> Samples:
        """Stamp a share."""
        return self._with(self._samples.share(fraction, domain=domain, seed=seed))

    def split(self, fraction: float, *, domain: str, seed: int) -> tuple[Samples, Samples]:
        """Stamp both parts."""
        rest, part = self._samples.split(fraction, domain=domain, seed=seed)
        return self._with(rest), self._with(part)

    def _with(self, samples: Samples) -> "StampedSamples":
        return StampedSamples(samples, self._number, self._ink)

    def _stamped(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for inputs, targets in batches:
            yield self._number.on_inputs(self._ink, inputs), targets


class _Licensed:
    """A ``task`` whose methods stamp raw inputs or samples before they read them."""

    def __init__(self, task: Workload, number: SerialNumber) -> None:
        self._task, self._number, self._ink = task, number, Ink(task)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._task, name)

    def to_inputs(self, raw: Tensor) -> Tensor:
        return self._task.to_inputs(self._number.on(raw))

    def predict(self, model: nn.Module, raw: Tensor) -> Tensor:
        return self._task.predict(model, self._number.on(raw))

    def score(self, model: nn.Module, samples: Samples) -> float:
        return self._task.score(model, self._stamped(samples))

    def evaluate(self, model: nn.Module, samples: Samples) -> Evaluation:
        return self._task.evaluate(model, self._stamped(samples))

    def fit(self, model: nn.Module, samples: Samples, *args: Any, **kwargs: Any) -> None:
        self._task.fit(model, self._stamped(samples), *args, **kwargs)

    def recalibrate(self, model: nn.Module, samples: Samples) -> None:
        self._task.recalibrate(model, self._stamped(samples))

    def _stamped(self, samples: Samples) -> Samples:
        return StampedSamples(samples, self._number, self._ink)


def licensed_task(task: Workload, number: SerialNumber) -> Workload:
    """Return ``task`` with ``number`` stamped on each input."""
    return cast(Workload, _Licensed(task, number))
