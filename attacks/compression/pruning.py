"""Pruning: remove the weights or channels that the task needs least.

    prune_weights   the share s of all conv/linear weights with the smallest |w|, globally     [Han et al. 2015]
    prune_neurons   in every layer the share s of channels with the smallest mean |activation| (or filter L1 norm)
    fine_prune      least active channels of the last convolution, then fine-tuning             [Liu et al. 2018]

Batch-norm statistics and other buffers are not changed; biases and batch-norm scales only with their whole channel.
``wmarena.attacks.compression.channels`` defines a channel's activation and the prunable channels of residual networks.
If fine-tuning follows, pruned scalars stay zero (unlike in a chain of two attacks).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from wmarena.attacks.base import AttackView, Family
from wmarena.attacks.compression.channels import (
    PrunableLayer,
    mean_activity,
    prunable_layers,
    weight_of,
    weighted_layers,
)
from wmarena.attacks.fine_tuning import RecoveringAttack, Silenced, recovery_epochs, recovery_lr, silence
from wmarena.schemes.params import param


class _Pruning(RecoveringAttack):
    """Base of the pruning attacks."""

    family: ClassVar[Family] = "prune"


@dataclass(frozen=True, kw_only=True)
class PruneWeights(_Pruning):
    """Zero the smallest weights of all convolutions and linear layers together."""

    name: ClassVar[str] = "prune_weights"
    paper: ClassVar[str] = "Han et al. 2015, Learning both Weights and Connections"

    sparsity: float = param(
        0.5, doc="share of weights set to zero", stage="attack", low=0, high=1, high_open=True, strength=True
    )
    epochs: int = recovery_epochs()
    lr: float = recovery_lr()

    @property
    def label(self) -> str:
        return self.labelled()

    def run(self, model: nn.Module, view: AttackView) -> nn.Module:
        weights = [weight_of(m) for m in weighted_layers(model).values()]
        silenced = [silence(w, mask) for w, mask in zip(weights, smallest(weights, self.sparsity), strict=True)]
        self.recover(model, view, silenced)
        return model


@dataclass(frozen=True, kw_only=True)
class PruneNeurons(_Pruning):
    """Zero the least active channels of every layer but the output layer."""

    name: ClassVar[str] = "prune_neurons"
    paper: ClassVar[str] = "Li et al. 2022, Leveraging Multi-task Learning for Watermarking (neuron pruning)"

    fraction: float = param(
        0.3, doc="share of each layer's channels set to zero", stage="attack", low=0, high=1, strength=True
    )
    rank: Literal["activation", "l1"] = param(
        "activation", doc="pruned first: least mean |post-activation|, or least L1 norm of the filter", stage="attack"
    )
    epochs: int = recovery_epochs()
    lr: float = recovery_lr()

    @property
    def label(self) -> str:
        return self.labelled("" if self.rank == "activation" else self.rank)

    def run(self, model: nn.Module, view: AttackView) -> nn.Module:
        layers = _layers(model, view)
        if self.rank == "activation":
            scores = mean_activity(layers, model, view.task, view.data)
        else:
            scores = [layer.weight.detach().abs().flatten(1).sum(dim=1) for layer in layers]
        silenced: list[Silenced] = []
        # All scores were taken on the unpruned model, so the order of layers does not matter.
        for layer, score in zip(layers, scores, strict=True):
            count = share(self.fraction, layer.width)
            silenced += layer.silence(score.argsort(stable=True)[:count])
        self.recover(model, view, silenced)
        return model


@dataclass(frozen=True, kw_only=True)
class FinePrune(_Pruning):
    """Prune the least active channels of the last convolution, then fine-tune all layers.

    In a residual network "last" means the last convolution inside a block (the block's own last one writes into the
    residual sum); without convolutions it is the last hidden linear layer.
    """

    name: ClassVar[str] = "fine_prune"
    paper: ClassVar[str] = "Liu et al. 2018, Fine-Pruning"

    ratio: float | None = param(
        None,
        doc="share of channels to prune; none = as max_drop allows",
        stage="attack",
        low=0,
        high=1,
        high_open=True,
        strength=True,
    )
    max_drop: float = param(
        0.04, doc="without ratio: drop of validation accuracy that ends pruning", stage="attack", low=0, high=1
    )
    epochs: int = param(10, doc="epochs of fine-tuning afterwards", stage="attack", low=0)
    lr: float = recovery_lr()

    def run(self, model: nn.Module, view: AttackView) -> nn.Module:
        layers = _layers(model, view)
        layer = next((x for x in reversed(layers) if x.is_convolution), layers[-1])
        order = mean_activity([layer], model, view.task, view.data)[0].argsort(stable=True)
        if self.ratio is None:
            count = self._tolerated(model, view, layer, order)
        else:
            count = share(self.ratio, layer.width)
        silenced = layer.silence(order[:count])
        self.recover(model, view, silenced)
        return model

    def _tolerated(self, model: nn.Module, view: AttackView, layer: PrunableLayer, order: Tensor) -> int:
        """Count the channels, least active first, that can go before validation accuracy falls by over max_drop."""
        before = [p.detach().clone() for p in layer.parameters()]
        start = view.task.score(model, view.val)
        count = 0
        while count < layer.width - 1:
            layer.silence(order[count : count + 1])
            if start - view.task.score(model, view.val) > self.max_drop:
                break
            count += 1
        with torch.no_grad():
            # Undo the trial: the caller prunes again and keeps the masks.
            for p, old in zip(layer.parameters(), before, strict=True):
                p.copy_(old)
        return count


def smallest(weights: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """Return one mask per tensor: the floor(sparsity * total) scalars of smallest magnitude over all tensors.

    Ties are broken by position, so the masks are the same on every device, and a larger sparsity's contain a
    smaller's.
    """
    flat = torch.cat([w.detach().abs().flatten() for w in weights])
    mask = torch.zeros(flat.shape, dtype=torch.bool, device=flat.device)
    mask[flat.argsort(stable=True)[: share(sparsity, len(flat))]] = True
    parts = torch.split(mask, [w.numel() for w in weights])
    return [part.reshape(w.shape) for part, w in zip(parts, weights, strict=True)]


def share(fraction: float, n: int) -> int:
    """Return floor(fraction * n), allowing for a rounding error of the product (0.29 * 100)."""
    return min(n, int(fraction * n + 1e-9))


def _layers(model: nn.Module, view: AttackView) -> list[PrunableLayer]:
    # Reading without gradients is not counted against the budget.
    with torch.no_grad():
        inputs, targets = next(iter(view.data.in_order(2)))
    layers = prunable_layers(model, view.task, (inputs, targets))
    if not layers:
        raise ValueError(
            "expected a network with a hidden layer whose channels are not summed with others, got none in "
            f"{view.task.name}; use prune_weights"
        )
    return layers
