"""Cached perturbations W_t - W by fine-tuning or pruning, for the robustness term R_DA.

    R_DA(W) = mean CE of the mark at W_t,   W_t = W + Delta,   dW_t/dW := I

Delta comes from t steps of fine-tuning on D'_primary ("tuned") or from zeroing the least active channels ("pruned"),
is refreshed every K steps, and is a constant in between: the first-order form of the paper's term, as in first-order
meta-learning (Finn et al. 2017). The paper's exact form differentiates through the tuning.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from wmarena.schemes.base import Recipe, Samples, Workload, evaluating
from wmarena.schemes.prf import subseed

_PRUNED_LOW, _PRUNED_HIGH = 0.1, 0.5
"""Range of the share of channels that a pruning perturbation zeroes."""

_Norm = nn.BatchNorm1d | nn.BatchNorm2d
_Layer = nn.Conv1d | nn.Conv2d | nn.Linear


@dataclass(frozen=True, kw_only=True)
class Shift:
    """One perturbation: ``delta`` (parameter name -> W_t - W) and the buffers of W_t (none: the model's own)."""

    tuned: bool
    delta: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor] = field(default_factory=dict)

    def applied(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state at W_t; gradients flow to ``parameters`` as if W_t were W."""
        return {n: parameters[n] + d for n, d in self.delta.items()} | dict(self.buffers)

    def to_state(self, prefix: str) -> dict[str, Tensor]:
        """Return flat tensors for a checkpoint."""
        head = f"{prefix}{'tuned' if self.tuned else 'pruned'}"
        deltas = {f"{head}.delta.{n}": t for n, t in self.delta.items()}
        return deltas | {f"{head}.buffer.{n}": t for n, t in self.buffers.items()}


def shifts_from_state(state: Mapping[str, Tensor], prefix: str, parameters: Mapping[str, Tensor]) -> list[Shift]:
    """Restore the shifts saved as ``prefix<index>.``, in order, with layout and device of ``parameters``.

    Kernels sum in an order that depends on the memory layout, and a resumed embedding must be bit-equal.
    """
    device = next(iter(parameters.values())).device
    found: dict[int, tuple[str, dict[str, Tensor], dict[str, Tensor]]] = {}
    for full, tensor in state.items():
        if full.startswith(prefix):
            index, kind, part, name = full.removeprefix(prefix).split(".", 3)
            _, delta, buffers = found.setdefault(int(index), (kind, {}, {}))
            if part == "delta":
                delta[name] = torch.empty_like(parameters[name]).copy_(tensor)
            else:
                buffers[name] = tensor.to(device)
    return [Shift(tuned=kind == "tuned", delta=d, buffers=b) for _, (kind, d, b) in sorted(found.items())]


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return name -> parameter for those that require gradients."""
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def tuned_shift(task: Workload, model: nn.Module, samples: Samples, recipe: Recipe, seed: int) -> Shift:
    """Fine-tune a copy on ``samples``; return its Delta and its batch-norm statistics."""
    clone = copy.deepcopy(model)
    task.fit(clone, samples, recipe, seed=seed)
    before, after = trainable(model), dict(clone.named_parameters())
    # Detached: the perturbation is a constant, dW_t/dW := I.
    delta = {n: (after[n] - p).detach() for n, p in before.items()}
    return Shift(tuned=True, delta=delta, buffers={n: b.detach().clone() for n, b in clone.named_buffers()})


@torch.no_grad()
def pruned_shift(task: Workload, model: nn.Module, samples: Samples, batch_size: int, seed: int) -> Shift:
    """Return the Delta that zeroes the least active channels of every layer but the output layer.

    One share s ~ U(0.1, 0.5) for all layers; a channel's activity is the mean positive part of its output over one
    batch (what a rectifier lets through), after the batch norm that follows the layer and is zeroed too.
    """
    generator = torch.Generator().manual_seed(subseed(seed, "share"))
    # A random share covers attackers of different strength.
    share = _PRUNED_LOW + (_PRUNED_HIGH - _PRUNED_LOW) * float(torch.rand((), generator=generator))
    inputs, targets = next(samples.batches(batch_size, seed=subseed(seed, "batch"), epoch=0, augment=False))
    names = {m: n for n, m in model.named_modules()}
    parameters = trainable(model)
    delta = {n: torch.zeros_like(p) for n, p in parameters.items()}
    for modules, activity in _activities(task, model, inputs, targets):
        # The least active channels are those that an attacker would prune.
        dead = activity.argsort(stable=True)[: round(share * len(activity))]
        for module in modules:
            for part in ("weight", "bias"):
                name = f"{names[module]}.{part}"
                if name in delta:
                    delta[name][dead] = -parameters[name][dead]
    return Shift(tuned=False, delta=delta)


def _activities(
    task: Workload, model: nn.Module, inputs: Tensor, targets: Tensor
) -> list[tuple[list[nn.Module], Tensor]]:
    """Return ([layer, its batch norm if any], mean positive output per channel (C,)), in order of execution."""
    groups: list[tuple[list[nn.Module], Tensor]] = []

    def observe(module: nn.Module, _: tuple[Tensor, ...], out: Tensor) -> None:
        channels = [d for d in range(out.dim()) if d != 1] if not isinstance(module, nn.Linear) else None
        rectified = out.relu()
        activity = rectified.mean(dim=channels) if channels else rectified.flatten(0, -2).mean(dim=0)
        # A norm right after a layer rescales its channels, so activity is measured behind it.
        if isinstance(module, _Norm):
            follows = groups and len(groups[-1][0]) == 1 and len(groups[-1][1]) == len(activity)
            if follows:
                groups[-1] = ([*groups[-1][0], module], activity)
        else:
            groups.append(([module], activity))

    output_layer = set(task.head(model).modules())
    watched = [m for m in model.modules() if isinstance(m, _Norm | _Layer) and m not in output_layer]
    handles = [m.register_forward_hook(observe) for m in watched]
    try:
        with evaluating(model):
            task.loss(model, inputs, targets)
    finally:
        for handle in handles:
            handle.remove()
    return groups
