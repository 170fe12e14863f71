"""MTLSign's embedding loop: loss, fields, checkpoints and choice of the best snapshot.

    L = L_mark(W) + alpha L_0(W) + r lambda1/N ||W - W0||^2 + lambda2 R_DA(W)

    L_mark  mean cross-entropy of the head over trigger mini-batches, batch norm in eval mode
    L_0     mean primary loss over training batches         R_DA   L_mark at a tuned or pruned W_t (``shift.py``)
    W       all parameters that require gradients           r      ``reg_scale``

Paper: Li et al. 2022, equations (5)-(7), summed over N there; here everything is divided by N.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wmarena.schemes.base import Batch, Owner, Recipe, Samples
from wmarena.schemes.mtlsign.mark import Mark
from wmarena.schemes.mtlsign.shift import Shift, pruned_shift, shifts_from_state, trainable, tuned_shift
from wmarena.schemes.params import Configurable, param
from wmarena.schemes.prf import subseed
from wmarena.schemes.training_state import batches_from, pack, seeded, unpack

_STOP_AT, _STOP_AT_TUNED = 0.99, 0.95
"""Mark accuracies at W and at a tuned W_t that end an embedding with ``early_stop``."""


@dataclass(frozen=True, kw_only=True)
class EmbedFields(Configurable):
    """The fields of the embedding loop."""

    lambda1: float = param(0.1, doc="weight of the covertness term ||W - W0||^2 / N", stage="embed", low=0)
    lambda2: float = param(0.1, doc="weight of the robustness term R_DA; 0 skips its cost", stage="embed", low=0)
    alpha: float = param(1.0, doc="weight of the primary loss; 0 is the paper's printed formula", stage="embed", low=0)
    reg_scale: float = param(1.0, doc="factor on lambda1/N, which alone hardly acts", stage="embed", low=0)
    lr: float = param(3e-4, doc="Adam learning rate of the network", stage="embed", low=0, low_open=True)
    steps: int = param(500, doc="optimiser steps", stage="embed", low=1)
    batch_size: int = param(100, doc="primary samples per step", stage="embed", low=1)
    mark_batch: int = param(100, doc="trigger inputs per step", stage="embed", low=2)
    refresh: int = param(250, doc="K: steps between two perturbations of R_DA", stage="embed", low=1)
    tuning_steps: int = param(50, doc="t: fine-tuning steps of a perturbation", stage="embed", low=1)
    tuning_lr: float = param(1e-3, doc="SGD rate of these steps", stage="embed", low=0, low_open=True)
    pool: int = param(4, doc="P: perturbations kept, one drawn per step", stage="embed", low=1)
    d_primary: float = param(
        0.1, doc="share of the training data that perturbations tune on", stage="embed", low=0, high=1, low_open=True
    )
    check_every: int = param(100, doc="steps between two candidates for the best snapshot", stage="embed", low=1)
    max_drop: float = param(
        0.01, doc="validation score a snapshot may lose against W0, absolute", stage="embed", low=0, high=1
    )
    early_stop: bool = param(
        False, doc="stop at mark accuracy 0.99 (0.95 tuned): leaves no margin against fine-tuning", stage="embed"
    )


@dataclass(frozen=True, order=True)
class SnapshotScore:
    """The order of snapshots, by these fields in turn; the later of two equal ones is better."""

    faithful: bool
    accuracy: float
    accuracy_tuned: float
    step: int

    @property
    def enough(self) -> bool:
        """True if the early-stopping rule holds."""
        return self.faithful and self.accuracy >= _STOP_AT and self.accuracy_tuned >= _STOP_AT_TUNED


class MarkTraining:
    """State of one embedding. ``run`` trains ``model`` in place and leaves the best snapshot in it.

    Args:
        fields: the scheme.
        model: W0, moved in place.
        mark: the key's data and head; a trainable head learns too if ``head_lr`` is given.
    """

    def __init__(
        self, fields: EmbedFields, model: nn.Module, owner: Owner, mark: Mark, head_lr: float | None = None
    ) -> None:
        self.fields = fields
        self.model = model
        self.owner = owner
        self.mark = mark
        self.parameters = trainable(model)
        self.anchor = {n: p.detach().clone() for n, p in self.parameters.items()}
        groups = [{"params": list(self.parameters.values()), "lr": fields.lr}]
        if head_lr is not None:
            groups.append({"params": list(mark.head.values()), "lr": head_lr})
        self.optimiser = torch.optim.Adam(groups, fused=True)
        self.shifts: list[Shift] = []
        self.best: tuple[SnapshotScore, dict[str, Tensor]] | None = None
        self.latest: SnapshotScore | None = None
        self.losses: dict[str, Tensor] = {}
        self.min_score = -math.inf
        self.d_primary: Samples | None = None

    def run(self) -> None:
        """Train from the latest checkpoint, or from W0. Raises FloatingPointError: the loss became NaN or infinite."""
        fields, owner = self.fields, self.owner
        self.min_score = owner.task.score(self.model, owner.val) - fields.max_drop
        if fields.lambda2 > 0:
            self.d_primary = owner.train.share(fields.d_primary, domain="mtlsign/d_primary", seed=owner.seed)
        done = self._resume()
        seed = subseed(owner.seed, "mtlsign/primary")
        batches = batches_from(done, owner.train, fields.batch_size, seed)
        while done < fields.steps and not self._finished:
            if self.d_primary is not None and done % fields.refresh == 0:
                self._add_shift(self.d_primary, done)
            self._step(done, next(batches) if fields.alpha > 0 else None)
            done += 1
            if done % fields.check_every == 0 or done == fields.steps:
                self._check(done)
            owner.checkpoints.offer(done, self._state)
        self._restore_best()

    @property
    def _finished(self) -> bool:
        return self.fields.early_stop and self.latest is not None and self.latest.enough

    def _step(self, step: int, batch: Batch | None) -> None:
        """Make one optimiser step: the four terms of L, one backward pass."""
        fields, chosen = self.fields, self._trigger_batch(step)
        self.losses = {"mark": self.mark.loss(self.model, chosen)}
        total = self.losses["mark"]
        if batch is not None:
            self.model.train()
            with seeded(subseed(self.owner.seed, "mtlsign/dropout", step), self.owner.task.device):
                self.losses["primary"] = self.owner.task.loss(self.model, *batch)
            total = total + fields.alpha * self.losses["primary"]
        if self.shifts:
            # Drawn from (seed, step) alone, so that a resumed run draws the same.
            shift = self.shifts[subseed(self.owner.seed, "mtlsign/pool", step) % len(self.shifts)]
            self.losses["robust"] = self.mark.loss(self.model, chosen, shift.applied(self.parameters))
            total = total + fields.lambda2 * self.losses["robust"]
        weight = fields.reg_scale * fields.lambda1 / len(self.mark.labels)
        if weight > 0:
            moved = [(p - self.anchor[n]).square().sum() for n, p in self.parameters.items()]
            total = total + weight * torch.stack(moved).sum()
        self.optimiser.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()

    def _trigger_batch(self, step: int) -> Tensor:
        """Return this step's trigger indices (mark_batch,): reshuffled in every pass, the remainder dropped."""
        n = len(self.mark.labels)
        size = min(self.fields.mark_batch, n)
        epoch, index = divmod(step, n // size)
        generator = torch.Generator().manual_seed(subseed(self.owner.seed, "mtlsign/triggers", epoch))
        order = torch.randperm(n, generator=generator)
        return order[index * size : (index + 1) * size].to(self.mark.labels.device)

    def _add_shift(self, samples: Samples, step: int) -> None:
        """Add a perturbation to the pool and drop the oldest; fine-tuning and pruning alternate."""
        fields, task = self.fields, self.owner.task
        seed = subseed(self.owner.seed, "mtlsign/shift", step)
        self.optimiser.zero_grad()
        if (step // fields.refresh) % 2 == 0:
            recipe = Recipe(
                optimiser="sgd", lr=fields.tuning_lr, batch_size=fields.batch_size, steps=fields.tuning_steps
            )
            shift = tuned_shift(task, self.model, samples, recipe, seed)
        else:
            shift = pruned_shift(task, self.model, samples, fields.batch_size, seed)
        self.shifts = [*self.shifts, shift][-fields.pool :]

    def _check(self, step: int) -> None:
        """Score the present weights, log, and keep them if no earlier ones were better.

        Fidelity comes first, then the mark at W and at W_t: the mark's accuracy oscillates during training.
        """
        losses = {f"loss_{n}": float(t.detach()) for n, t in self.losses.items()}
        wrong = [n for n, v in losses.items() if not math.isfinite(v)]
        if wrong:
            raise FloatingPointError(f"expected finite losses, got {losses} at step {step}; lower lr={self.fields.lr}")
        accuracy = self.mark.accuracy(self.model)
        # The newest tuned perturbation stands for an adversary who fine-tunes.
        tuned = next((s for s in reversed(self.shifts) if s.tuned), None)
        with torch.no_grad():
            state = tuned.applied(self.parameters) if tuned else None
        accuracy_tuned = self.mark.accuracy(self.model, state) if state else accuracy
        val_score = self.owner.task.score(self.model, self.owner.val)
        self.latest = SnapshotScore(val_score >= self.min_score, accuracy, accuracy_tuned, step)
        if self.best is None or self.latest > self.best[0]:
            # Later snapshots win ties (step is the last field): longer training leaves more margin.
            self.best = (self.latest, self._snapshot())
        accuracies = {"mark_accuracy": accuracy, "mark_accuracy_tuned": accuracy_tuned, "val_score": val_score}
        self.owner.log(step, **accuracies, **losses)

    def _snapshot(self) -> dict[str, Tensor]:
        """Copy the network ("model.") and the head ("head.")."""
        live = {f"model.{n}": t for n, t in self.model.state_dict().items()} | self._head_state()
        return {n: t.detach().clone() for n, t in live.items()}

    def _head_state(self) -> dict[str, Tensor]:
        return {f"head.{n}": t for n, t in self.mark.head.items()}

    def _restore_best(self) -> None:
        assert self.best is not None, "the last step is always checked"
        _, snapshot = self.best
        self.model.load_state_dict({n[6:]: t for n, t in snapshot.items() if n.startswith("model.")})
        self._load_head(snapshot)

    def _load_head(self, state: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self.mark.head.items():
                tensor.copy_(state[f"head.{name}"])

    def _state(self) -> dict[str, Tensor]:
        """Return everything that a bit-equal continuation needs."""
        extra = self._head_state()
        for index, shift in enumerate(self.shifts):
            extra |= shift.to_state(f"shift.{index}.")
        if self.latest is not None and self.best is not None:
            score, snapshot = self.best
            extra |= {"latest": _as_row(self.latest), "best.score": _as_row(score)}
            extra |= {f"best.{n}": t for n, t in snapshot.items()}
        return pack(self.model, self.optimiser, extra)

    def _resume(self) -> int:
        """Restore the newest checkpoint; returns the number of steps done."""
        found = self.owner.checkpoints.latest(self.fields.steps)
        if found is None:
            return 0
        done, state = found
        extra = unpack(state, self.model, self.optimiser)
        self._load_head(extra)
        device = self.mark.labels.device
        self.shifts = shifts_from_state(extra, "shift.", self.parameters)
        if "latest" in extra:
            self.latest = _as_score(extra["latest"])
            snapshot = {n[5:]: t.to(device) for n, t in extra.items() if n.startswith(("best.model.", "best.head."))}
            self.best = (_as_score(extra["best.score"]), snapshot)
        return done


def _as_row(score: SnapshotScore) -> Tensor:
    return torch.tensor([score.faithful, score.accuracy, score.accuracy_tuned, score.step], dtype=torch.float64)


def _as_score(row: Tensor) -> SnapshotScore:
    faithful, accuracy, accuracy_tuned, step = row.tolist()
    return SnapshotScore(bool(faithful), accuracy, accuracy_tuned, int(step))
