"""Output channels that can be removed alone, and their activity.

A layer's channel may be pruned alone only if nothing but the layer's own consumers reads it: true for the inner
convolutions of a residual block, false for its last one and the stem, which write into a sum that later blocks read.
Names and classes do not distinguish the two; the autograd graph of one batch does:

    walk from the layer's output towards the loss; pass operations that have a single data input and no parameters
    (activations, pooling, dropout, reshaping) and normalisations (they belong to the channel); a convolution or
    linear layer is a consumer and ends the branch. An operation with two data inputs (a residual sum, a gate), any
    other operation with parameters, or the loss itself makes the layer not prunable.

So the output layer is never prunable (its branch ends in the loss), and a layer used twice in a pass is left alone.

A channel's activation is its consumer's input, i.e. after batch norm, ReLU, pooling and flattening.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from wmarena.attacks.fine_tuning import Silenced, silence
from wmarena.schemes.base import Batch, Samples, Workload

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Layers whose weights and channels are pruned. Dimension 0 of their weight counts output channels."""

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True)
class PrunableLayer:
    """A layer whose output channels are read by nothing but ``consumers``.

    Attributes:
        name: name in ``model.named_modules()``.
        module: the convolution or linear layer, C output channels.
        norms: normalisations between the layer and its consumers.
        consumers: the layers that read the channels.
    """

    name: str
    module: nn.Module
    norms: tuple[nn.Module, ...]
    consumers: tuple[nn.Module, ...]

    @property
    def is_convolution(self) -> bool:
        """False for linear layers."""
        return not isinstance(self.module, nn.Linear)

    @property
    def weight(self) -> nn.Parameter:
        """(C, ...) weight of the layer."""
        return weight_of(self.module)

    @property
    def width(self) -> int:
        """Number of output channels C."""
        return len(self.weight)

    def parameters(self) -> list[nn.Parameter]:
        """Return all parameters that belong to the channels: weight, bias, and the norms' scale and shift."""
        own = [p for m in (self.module, *self.norms) for p in m.parameters(recurse=False)]
        return [p for p in own if p.numel() % self.width == 0]

    def silence(self, channels: Tensor) -> list[Silenced]:
        """Zero everything that belongs to ``channels`` ((k,) int64): their output is exactly zero afterwards."""
        rows = torch.zeros(self.width, dtype=torch.bool, device=self.weight.device)
        rows[channels] = True
        done = []
        for p in self.parameters():
            mask = rows.repeat_interleave(p.numel() // self.width).reshape(p.shape)
            done.append(silence(p, mask))
        return done


def weight_of(layer: nn.Module) -> nn.Parameter:
    """Return (C, ...) weight of a convolution or linear layer, as the parameter that an optimiser sees."""
    return layer.get_parameter("weight")


def weighted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return name -> module of every convolution and linear layer. Raises TypeError: there is none."""
    layers: dict[str, nn.Module] = {n: m for n, m in model.named_modules() if isinstance(m, WEIGHTED)}
    if not layers:
        raise TypeError(f"expected a network with convolutions or linear layers, got {type(model).__name__} with none")
    return layers


def prunable_layers(model: nn.Module, task: Workload, batch: Batch) -> list[PrunableLayer]:
    """Return layers whose channels can be removed alone, in the order of the forward pass.

    Args:
        model: in eval mode, all parameters requiring gradients.
        batch: (inputs, targets); two samples are enough.

    Raises:
        TypeError: the model or one of its layers computes without gradients.
    """
    calls: list[tuple[nn.Module, Node]] = []

    def record(module: nn.Module, _: object, output: Tensor) -> None:
        calls.append((module, _node(output, module)))

    modules = [m for m in model.modules() if isinstance(m, WEIGHTED)]
    handles = [m.register_forward_hook(record) for m in modules]
    try:
        with torch.enable_grad():
            loss = task.loss(model, *batch)
    finally:
        for handle in handles:
            handle.remove()
    flow = _Flow(model, _node(loss, model), {node for _, node in calls})
    names = {m: name for name, m in model.named_modules()}
    head = set(task.head(model).modules())
    seen = [m for m, _ in calls]
    layers: list[PrunableLayer] = []
    for module, node in calls:
        if module in head or seen.count(module) > 1:
            continue
        ends = flow.readers(node)
        if ends is not None:
            layers.append(PrunableLayer(names[module], module, *ends))
    return layers


def _node(computed: Tensor, by: nn.Module) -> Node:
    """Return the autograd node of ``computed``, an output of ``by``. Raises TypeError if there is none."""
    if computed.grad_fn is None:
        raise TypeError(
            f"expected a network that computes with gradients, got {type(by).__name__} without; "
            "let all its parameters require them"
        )
    return computed.grad_fn


class _Flow:
    """The autograd graph of one forward pass, read forwards."""

    def __init__(self, model: nn.Module, root: Node, produced: set[Node]) -> None:
        self._owner = {id(p): m for m in model.modules() for p in m.parameters(recurse=False)}
        self._users: dict[Node, list[Node]] = {}
        # Depth first without recursion, which deep networks would overflow; inputs come before users.
        order: list[Node] = []
        stack, met = [(root, False)], {root}
        while stack:
            node, done = stack.pop()
            if done:
                order.append(node)
                continue
            stack.append((node, True))
            for before in _inputs(node):
                self._users.setdefault(before, []).append(node)
                if before not in met:
                    met.add(before)
                    stack.append((before, False))
        # Data = what a convolution or linear layer computed, or what was computed from it; the rest is parameters.
        self._data: set[Node] = set()
        for node in order:
            if node in produced or any(b in self._data for b in _inputs(node)):
                self._data.add(node)

    def readers(self, node: Node) -> tuple[tuple[nn.Module, ...], tuple[nn.Module, ...]] | None:
        """Return (norms passed, consuming layers) of the output of ``node``, or None if anything else reads it."""
        norms: dict[nn.Module, None] = {}
        consumers: dict[nn.Module, None] = {}
        stack = [node]
        while stack:
            users = self._users.get(stack.pop(), [])
            if not users:
                return None
            for user in users:
                owners = self._owners(user)
                # A sum or gate: another layer's channels meet these, so they cannot be removed alone.
                if sum(before in self._data for before in _inputs(user)) > 1:
                    return None
                if owners and all(isinstance(m, WEIGHTED) for m in owners):
                    consumers |= dict.fromkeys(owners)
                elif all(isinstance(m, _NORMS) for m in owners):
                    norms |= dict.fromkeys(owners)
                    # The norm belongs to the channel; continue behind it.
                    stack.append(user)
                else:
                    return None
        return tuple(norms), tuple(consumers)

    def _owners(self, node: Node) -> list[nn.Module]:
        """Return modules whose parameters enter the computation at ``node``."""
        owners, stack = [], [b for b in _inputs(node) if b not in self._data]
        while stack:
            leaf = stack.pop()
            variable = getattr(leaf, "variable", None)
            if variable is not None:
                owners.append(self._owner[id(variable)])
            stack += _inputs(leaf)
        return owners


def _inputs(node: Node) -> list[Node]:
    return [before for before, _ in node.next_functions if before is not None]


def mean_activity(layers: list[PrunableLayer], model: nn.Module, task: Workload, samples: Samples) -> list[Tensor]:
    """Return every channel's mean |post-activation| over ``samples``: one (C,) float64 tensor a layer, on the CPU."""
    sums = [torch.zeros(layer.width, dtype=torch.float64) for layer in layers]
    counts = [0] * len(layers)
    with _inputs_captured(layers) as captured, torch.no_grad():
        for inputs, targets in samples.in_order():
            task.loss(model, inputs, targets)
            for i, layer in enumerate(layers):
                values = _by_channel(captured[i], layer)
                sums[i] += values.abs().sum(dim=1, dtype=torch.float64).cpu()
                counts[i] += values.shape[1]
    return [total / n for total, n in zip(sums, counts, strict=True)]


@contextmanager
def _inputs_captured(layers: list[PrunableLayer]) -> Iterator[dict[int, Tensor]]:
    captured: dict[int, Tensor] = {}

    def keep(index: int, x: Tensor) -> None:
        captured[index] = x

    handles = [
        layer.consumers[0].register_forward_pre_hook(lambda _, args, i=i: keep(i, args[0]))
        for i, layer in enumerate(layers)
    ]
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()


def _by_channel(x: Tensor, layer: PrunableLayer) -> Tensor:
    """Reshape a consumer's input (n, C, ...), (n, C * k) or, between linear layers, (n, t, C) to (C, values)."""
    if not layer.is_convolution and x.shape[-1] == layer.width:
        return x.reshape(-1, layer.width).T
    return x.reshape(len(x), layer.width, -1).transpose(0, 1).flatten(1)
