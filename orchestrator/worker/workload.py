"""Interface of workloads: configuration, and the workload bound to a device with its data.

Schemes and attacks never get a ``BoundWorkload``, only its ``task`` and the samples granted to their role.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from wmarena.schemes.base import Samples, TaskInfo, Workload
from wmarena.schemes.params import Json


@dataclass(frozen=True, kw_only=True)
class BoundWorkload:
    """A workload on one device with all its splits.

    Attributes:
        task: the part that plugins use.
        train, val, test: the owner's training data, validation data, and the test set (reporting only).
        reserve: training data that the owner never trains on, for disjoint adversaries; None where there is none.
    """

    task: Workload
    train: Samples
    val: Samples
    test: Samples
    reserve: Samples | None


class WorkloadConfig(Protocol):
    """A workload of a spec; implementations are ``wmarena.schemes.params.Configurable`` dataclasses."""

    @property
    def name(self) -> str: ...

    @property
    def info(self) -> TaskInfo: ...

    @property
    def data_set(self) -> str:
        """Name of the data set, for MLflow inputs and messages."""

    def config(self) -> dict[str, Json]: ...

    def fingerprint(self, data_root: Path | None) -> str:
        """Return the hex digest of the data set's content. Raises MissingData naming every place tried."""

    def task(self, device: torch.device) -> Workload:
        """Return the task without its data: enough to judge a model."""

    def bind(self, device: torch.device, data_root: Path | None) -> BoundWorkload:
        """Load the data onto ``device``. Raises MissingData naming every place tried."""


class MissingData(LookupError):
    """A data set was not found; the message names every place tried and how to get it."""
