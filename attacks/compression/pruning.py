"""Pruning: remove what the task needs least and hope that the mark lived there.

    prune_weights   the share s of all conv/linear weights with the smallest |w|, globally     [Han et al. 2015]
    prune_neurons   in every layer the share s of channels with the smallest mean |activation| (or filter L1 norm)
    fine_prune      least active channels of the last convolution, then fine-tuning             [Liu et al. 2018]

Batch-norm statistics and other buffers are never touched; biases and batch-norm scales only with their whole channel.
What counts as a channel's activation, and which channels of a residual network may go, is said in
``wmarena.attacks.compression.channels``. Where fine-tuning follows, pruned scalars stay zero (unlike in a chain of two
attacks).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from wmarena.attacks.base import Attack, AttackView, Family
from wmarena.attacks.compression.channels import (
    PrunableLayer,
    mean_activity,
    prunable_layers,
    weight_of,
    weighted_layers,
)
from wmarena.attacks.fine_tuning import Silenced, sgd, silence, tune_all
from wmarena.attacks.knowledge import Knowledge
from wmarena.schemes.params import param

_WEIGHTS: frozenset[Knowledge] = frozenset({"weights"})


@dataclass(frozen=True, kw_only=True)
class PruneWeights(Attack):
    """Zero the smallest weights of all convolutions and linear layers together."""

    name: ClassVar[str] = "prune_weights"
    family: ClassVar[Family] = "prune"
    knows: ClassVar[frozenset[Knowledge]] = _WEIGHTS
    paper: ClassVar[str] = "Han et al. 2015, Learning both Weights and Connections"

    sparsity: float = param(
        0.5, doc="share of weights set to zero", stage="attack", low=0, high=1, high_open=True, strength=True
    )
    epochs: int = param(0, doc="epochs of fine-tuning afterwards; 0 = none", stage="attack", low=0)
    lr: float = param(1e-3, doc="learning rate of that fine-tuning", stage="attack", low=0, low_open=True)

    @property
    def label(self) -> str:
        return _label(self.name, self.epochs)

    def run(self, model: nn.Module, view: AttackView) -> nn.Module:
        weights = [weight_of(m) for m in weighted_layers(model).values()]
        silenced = [silence(w, mask) for w, mask in zip(weights, smallest(weights, self.sparsity), strict=True)]
        tune_all(model, view, sgd(epochs=self.epochs, lr=self.lr), silenced=silenced)
        return model


@dataclass(frozen=True, kw_only=True)
class PruneNeurons(Attack):
    """Zero the least active channels of every layer but the output layer."""

    name: ClassVar[str] = "prune_neurons"
    family: ClassVar[Family] = "prune"
    knows: ClassVar[frozenset[Knowledge]] = _WEIGHTS
    paper: ClassVar[str] = "Li et al. 2022, Leveraging Multi-task Learning for Watermarking (neuron pruning)"

    fraction: float = param(
        0.3, doc="share of each layer's channels set to zero", stage="attack", low=0, high=1, strength=True
    )
    rank: Literal["activation", "l1"] = param(
        "activation",
        doc="least mean |post-activation| on the adversary's data, or least L1 norm of the filter, goes first",
        stage="attack",
        choices=("activation", "l1"),
    )
    epochs: int = param(0, doc="epochs of fine-tuning afterwards; 0 = none", stage="attack", low=0)
    lr: float = param(1e-3, doc="learning rate of that fine-tuning", stage="attack", low=0, low_open=True)

    @property
    def label(self) -> str:
        return _label(self.name if self.rank == "activation" else f"{self.name}-{self.rank}", self.epochs)

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
        tune_all(model, view, sgd(epochs=self.epochs, lr=self.lr), silenced=silenced)
        return model


@dataclass(frozen=True, kw_only=True)
class FinePrune(Attack):
    """Prune the least active channels of the last convolution, then fine-tune all layers.

    In a residual network "last" means the last convolution inside a block (the block's own last one writes into the
    residual sum); without convolutions it is the last hidden linear layer.
    """

    name: ClassVar[str] = "fine_prune"
    family: ClassVar[Family] = "prune"
    knows: ClassVar[frozenset[Knowledge]] = _WEIGHTS
    paper: ClassVar[str] = "Liu et al. 2018, Fine-Pruning"

    ratio: float | None = param(
        None,
        doc="share of the layer's channels to prune; none = as many as max_drop allows",
        stage="attack",
        low=0,
        high=1,
        high_open=True,
        strength=True,
    )
    max_drop: float = param(
        0.04,
        doc="without ratio: loss of validation accuracy that ends pruning, absolute",
        stage="attack",
        low=0,
        high=1,
    )
    epochs: int = param(10, doc="epochs of fine-tuning afterwards", stage="attack", low=0)
    lr: float = param(1e-3, doc="learning rate of that fine-tuning", stage="attack", low=0, low_open=True)

    def run(self, model: nn.Module, view: AttackView) -> nn.Module:
        layers = _layers(model, view)
        layer = next((x for x in reversed(layers) if x.is_convolution), layers[-1])
        order = mean_activity([layer], model, view.task, view.data)[0].argsort(stable=True)
        if self.ratio is None:
            count = self._tolerated(model, view, layer, order)
        else:
            count = share(self.ratio, layer.width)
        silenced = layer.silence(order[:count])
        tune_all(model, view, sgd(epochs=self.epochs, lr=self.lr), silenced=silenced)
        return model

    def _tolerated(self, model: nn.Module, view: AttackView, layer: PrunableLayer, order: Tensor) -> int:
        """How many channels can go, least active first, before validation accuracy falls by more than max_drop."""
        before = [p.detach().clone() for p in layer.parameters()]
        start = view.task.score(model, view.val)
        count = 0
        while count < layer.width - 1:
            layer.silence(order[count : count + 1])
            if start - view.task.score(model, view.val) > self.max_drop:
                break
            count += 1
        with torch.no_grad():
            for p, old in zip(layer.parameters(), before, strict=True):
                p.copy_(old)
        return count


def smallest(weights: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """One mask per tensor: the floor(sparsity * total) scalars with the smallest magnitude over all of them.

    Ties are broken by position, so the masks are the same on every device, and a larger sparsity's contain a
    smaller's.
    """
    flat = torch.cat([w.detach().abs().flatten() for w in weights])
    mask = torch.zeros(flat.shape, dtype=torch.bool, device=flat.device)
    mask[flat.argsort(stable=True)[: share(sparsity, len(flat))]] = True
    parts = torch.split(mask, [w.numel() for w in weights])
    return [part.reshape(w.shape) for part, w in zip(parts, weights, strict=True)]


def share(fraction: float, n: int) -> int:
    """floor(fraction * n), forgiving a float that is one rounding error short (0.29 * 100)."""
    return min(n, int(fraction * n + 1e-9))


def _layers(model: nn.Module, view: AttackView) -> list[PrunableLayer]:
    # Without gradients reading is free: finding the layers is no pass over the adversary's data.
    with torch.no_grad():
        inputs, targets = next(iter(view.data.in_order(2)))
    layers = prunable_layers(model, view.task, (inputs, targets))
    if not layers:
        raise ValueError(
            "expected a network with a hidden layer whose channels are not summed with others, got none in "
            f"{view.task.name}; use prune_weights"
        )
    return layers


def _label(name: str, epochs: int) -> str:
    return f"{name}-ft{epochs}" if epochs else name
