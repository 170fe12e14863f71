"""Base of schemes that embed by training: from the clean network, or from scratch.

pretrained: Adam on one cycle from the clean network, for ``epochs`` passes, or 4 and at least ``min_steps`` steps
scratch:    the workload's own recipe
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

from wmarena.schemes.base import Recipe, Scheme, Workload
from wmarena.schemes.params import param

_PASSES = 4


@dataclass(frozen=True, kw_only=True)
class ContinuedTraining(Scheme):
    """The length, rate and batch of the training that embeds.

    Attributes:
        min_steps: least number of optimiser steps in pretrained mode, for 100 triggers.
        usual_batch: images in a batch in pretrained mode; None: the workload's own.
    """

    min_steps: ClassVar[int] = 250
    usual_batch: ClassVar[int | None] = 100

    mode: Literal["pretrained", "scratch"] = param(
        "pretrained", doc="continue from the clean network, or embed from the first epoch", stage="embed"
    )
    epochs: int | None = param(
        None, doc="passes over the data; none: the workload's (scratch), or 4, at least 250 steps", stage="embed", low=1
    )
    lr: float | None = param(
        None,
        doc="peak rate; none: the workload's (scratch), else half of it, 5e-4 for SGD",
        stage="embed",
        low=0,
        low_open=True,
    )
    batch_size: int | None = param(
        None, doc="B, task images in a batch; none: the workload's (scratch, tartaglione), or 100", stage="embed", low=1
    )

    @property
    def from_scratch(self) -> bool:
        return self.mode == "scratch"

    def twin_recipe(self, task: Workload, n_train: int) -> Recipe | None:
        return None if self.from_scratch else self.recipe(task, n_train)

    def as_overwriter(self) -> Self:
        return replace(self, mode="pretrained")

    def for_epochs(self, epochs: int, n_train: int) -> Self:
        return replace(self, epochs=epochs)

    def recipe(self, task: Workload, n_train: int) -> Recipe:
        """Return the training of ``embed`` on ``n_train`` samples, without the scheme's own loss."""
        own = task.recipe
        if self.from_scratch:
            return replace(
                own,
                epochs=self.epochs or own.epochs,
                lr=self.lr or own.lr,
                batch_size=self.batch_size or own.batch_size,
            )
        batch_size = self.batch_size or self.usual_batch or own.batch_size
        steps_per_epoch = math.ceil(n_train / batch_size)
        steps = max(_PASSES * steps_per_epoch, self.min_steps)
        if self.epochs is not None:
            steps = self.epochs * steps_per_epoch
        return own.continued(lr=self.lr, sgd_lr=5e-4, batch_size=batch_size, steps=steps, n_train=n_train)
