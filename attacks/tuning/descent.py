"""The training loop of attacks whose losses or rates ``Workload.fit`` does not offer."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wmarena.attacks.base import AttackView
from wmarena.schemes.base import Batch
from wmarena.schemes.prf import subseed
from wmarena.schemes.training_state import epochs_left, seeded

StepLoss = Callable[[Batch, int, float], Tensor]
"""(batch, number of the step from 0, learning rate) -> what the step minimises, a scalar."""


@dataclass(frozen=True, kw_only=True)
class Descent:
    """SGD with momentum 0.9 on the adversary's data, for losses and rates that ``Workload.fit`` does not offer.

    Epoch e depends on the seed and e alone; a resumed descent is bit-equal.

    Attributes:
        model: trained in place, in train mode, all of its parameters.
        loss: see ``StepLoss``.
        purpose: names the order of the batches.
        rate: epoch from 0 -> learning rate.
        keep_last: keep the last epoch's checkpoint for longer descents.
    """

    model: nn.Module
    view: AttackView
    loss: StepLoss
    purpose: str
    rate: Callable[[int], float]
    epochs: int
    batch_size: int
    weight_decay: float
    keep_last: bool = False

    def run(self) -> None:
        """Train from the latest checkpoint, if any. Raises FloatingPointError: a mean loss is NaN or infinite."""
        model, view = self.model, self.view
        optimiser = torch.optim.SGD(
            model.parameters(), lr=self.rate(0), momentum=0.9, weight_decay=self.weight_decay, fused=True
        )
        model.train()
        for epoch in epochs_left(view.checkpoints, self.epochs, model, optimiser, keep_last=self.keep_last):
            rate = self.rate(epoch)
            # Dropout draws from the global generator; seeding per epoch makes it independent of resumption.
            with seeded(subseed(view.seed, self.purpose, "global", epoch), view.task.device):
                mean_loss = self._epoch(epoch, rate, optimiser)
            view.log(epoch + 1, loss=mean_loss, lr=rate)

    def _epoch(self, epoch: int, rate: float, optimiser: torch.optim.Optimizer) -> float:
        """Train one epoch; return the mean loss."""
        for group in optimiser.param_groups:
            group["lr"] = rate
        data = self.view.data
        n_steps = math.ceil(len(data) / self.batch_size)
        batches = data.batches(self.batch_size, seed=subseed(self.view.seed, self.purpose), epoch=epoch)
        # Summed on the device and read once: reading every step would make the CPU wait for the GPU.
        total = torch.zeros((), dtype=torch.float64, device=self.view.device)
        for step, batch in enumerate(batches, start=epoch * n_steps):
            optimiser.zero_grad()
            loss = self.loss(batch, step, rate)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            total += loss.detach()
        mean_loss = float(total) / n_steps
        if not math.isfinite(mean_loss):
            raise FloatingPointError(
                f"expected a finite loss, got {mean_loss} in epoch {epoch + 1} of {self.epochs} (lr {rate:g}); lower lr"
            )
        return mean_loss
