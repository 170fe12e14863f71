"""Follow channels through a network: which tensors share the same hidden channels.

The network is traced symbolically (torch.fx) and run once for its shapes. Dimension 1 of every tensor is a sequence of
channel blocks. Convolutions and linear layers read blocks and open new ones, batch norms keep the channels and open a
new gain, sums join their terms (union-find), and an operation without a handler pins (fixes) its inputs.
"""

import math
import operator
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from wmarena.schemes.base import untouched
from wmarena.schemes.symmetry.blocks import ChannelBlock, ChannelClass, Layout, fixed_block
from wmarena.schemes.symmetry.tensors import ChannelWeights, Gain, Group, TensorAxis


def channel_groups(model: nn.Module, inputs: Tensor) -> list[Group]:
    """Find the groups of ``model`` that may be permuted, in the order of the forward pass; they refer to its tensors.

    Args:
        inputs: (n, ...) normalised; a few are enough, only their shapes are read.

    Raises:
        ValueError: the network cannot be traced.
    """
    with untouched(model), torch.no_grad():
        try:
            flow = _Flow(model, fx.Tracer().trace(model))
            flow.run(inputs[:2])
        except (TypeError, ValueError, RuntimeError, AttributeError, LookupError) as error:
            raise ValueError(
                f"expected a traceable network, got {type(model).__name__} with: {error}; "
                "its forward pass must not branch on values"
            ) from error
    return flow.groups()


class _Flow(fx.Interpreter):
    """An interpreter that runs a graph once and follows channel blocks through it."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(model, graph=graph)
        self._uses = _tensor_uses(model, graph)
        self._shapes: dict[fx.Node, torch.Size] = {}
        self._layouts: dict[fx.Node, Layout] = {}
        self._slots: list[tuple[ChannelClass, TensorAxis]] = []
        self._layers: list[tuple[ChannelClass, ChannelWeights]] = []
        self._writers: dict[fx.Node, int] = {}
        self._written: list[tuple[ChannelClass, ChannelClass, tuple[TensorAxis, ...]]] = []
        self._divided: list[tuple[ChannelClass, TensorAxis]] = []

    def run_node(self, n: fx.Node) -> Any:
        """Compute the node's value; store its shape and layout."""
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self._shapes[n] = value.shape
        # Inputs and free tensors carry no hidden channels: their order is given from outside.
        layout = () if n.op in ("placeholder", "get_attr") else self._handled(n)
        # Safe default: what an unknown operation reads must not be rewritten.
        if layout is None:
            self._pin(n)
        self._layouts[n] = layout or ()
        return value

    def groups(self) -> list[Group]:
        """Return the groups found, without pinned ones."""
        # Roots are final only after the whole pass: a late sum may still join two classes.
        slots: dict[ChannelClass, list[TensorAxis]] = {}
        layers: dict[ChannelClass, list[ChannelWeights]] = {}
        for channels, slot in self._slots:
            slots.setdefault(channels.root(), []).append(slot)
        for channels, layer in self._layers:
            layers.setdefault(channels.root(), []).append(layer)
        gains = self._gains()
        return [
            Group(found[0].width, tuple(found), tuple(gains.get(root, ())), tuple(layers[root]))
            for root, found in slots.items()
            if not root.fixed
        ]

    def _gains(self) -> dict[ChannelClass, list[Gain]]:
        """Return the free gains by their channels."""
        # A gain with several writers (a residual sum) is free only if all of them are scaled alike.
        sources: dict[ChannelClass, list[tuple[TensorAxis, ...]]] = {}
        owners: dict[ChannelClass, ChannelClass] = {}
        for channels, gain, written in self._written:
            sources.setdefault(gain.root(), []).append(written)
            owners.setdefault(gain.root(), channels.root())
        gains: dict[ChannelClass, list[Gain]] = {}
        for rank, (root, found) in enumerate(sources.items()):
            if not root.fixed:
                divided = tuple(slot for gain, slot in self._divided if gain.root() is root)
                multiplied = tuple(slot for written in found for slot in written)
                gains.setdefault(owners[root], []).append(Gain(rank, multiplied, divided, found[0]))
        return gains

    def _handled(self, node: fx.Node) -> Layout | None:
        """Return the layout of the node's value, None if the operation is unknown."""
        handler: _Handler | None = None
        if node.op == "call_module":
            module = self.module_of(node)
            handler = _MODULES.get(type(module)) if self._plain(module) else None
        elif node.op == "call_function":
            handler = _FUNCTIONS.get(node.target)
        elif node.op == "call_method":
            handler = _METHODS.get(str(node.target))
        return None if handler is None else handler(self, node)

    def _plain(self, module: nn.Module) -> bool:
        """Tell whether a layer's tensors are its own and used once, and the layer has no hooks."""
        # A shared tensor would be rewritten for two places at once; a hook may compute anything.
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        hooked = bool(module._forward_hooks or module._forward_pre_hooks)
        return not hooked and all(self._uses[id(t)] == 1 for t in own)

    def _pin(self, node: fx.Node) -> None:
        """Fix the channels and gains of everything that enters ``node``."""
        for before in node.all_input_nodes:
            for block in self.layout(before):
                block.channels.fix()
                block.gain.fix()

    # Interface of the handlers.

    def module_of(self, node: fx.Node) -> nn.Module:
        """Return the module that a node calls."""
        return self.fetch_attr(str(node.target))  # type: ignore[no-any-return]

    def layout(self, node: object) -> Layout:
        """Return the layout of a node's value; () if ``node`` is no graph node."""
        return self._layouts.get(node, ()) if isinstance(node, fx.Node) else ()

    def shape(self, node: object) -> torch.Size:
        """Return shape of a node's value; () if it is no tensor."""
        found = self._shapes.get(node) if isinstance(node, fx.Node) else None
        return torch.Size() if found is None else found

    def run_over(self, channels: ChannelClass, slots: Iterable[TensorAxis]) -> None:
        """Record tensors that run over ``channels``."""
        self._slots += [(channels, slot) for slot in slots]

    def describe(self, channels: ChannelClass, slots: tuple[TensorAxis, ...]) -> int:
        """Record a layer that reads or writes ``channels``; return its index in the list of layers."""
        self._layers.append((channels, ChannelWeights(slots)))
        return len(self._layers) - 1

    def write(self, node: fx.Node, slots: tuple[TensorAxis, ...]) -> Layout:
        """Open a group for what ``node`` computes with the rows ``slots``."""
        channels = ChannelClass()
        self.run_over(channels, slots)
        self._writers[node] = self.describe(channels, slots)
        return (ChannelBlock(channels, self.open_gain(channels, slots), slots[0].width),)

    def open_gain(self, channels: ChannelClass, slots: tuple[TensorAxis, ...]) -> ChannelClass:
        """Open the gain of a signal that is proportional to ``slots``; fixed if there are none."""
        gain = ChannelClass()
        if slots:
            self._written.append((channels, gain, slots))
        else:
            gain.fix()
        return gain

    def divide(self, gain: ChannelClass, slot: TensorAxis) -> None:
        """Record the weights that multiply a gain's signal."""
        self._divided.append((gain, slot))

    def fold(self, writer: object, norm: _BatchNorm) -> bool:
        """Fold ``norm`` into the filters of the node ``writer`` if nothing else reads them."""
        # A second reader would see the filters without the norm.
        if not isinstance(writer, fx.Node) or writer not in self._writers or len(writer.users) > 1:
            return False
        channels, layer = self._layers[self._writers[writer]]
        self._layers[self._writers[writer]] = channels, replace(layer, norm=norm)
        return True


_Handler = Callable[[_Flow, fx.Node], Layout | None]
"""(flow, node) -> layout of the node's value; None: pin the inputs."""


def _tensor_uses(model: nn.Module, graph: fx.Graph) -> Counter[int]:
    """Count how often each parameter and buffer, by identity, enters the computation."""
    uses: Counter[int] = Counter()
    for node in graph.nodes:
        if node.op == "call_module":
            module = model.get_submodule(str(node.target))
            uses.update(id(t) for t in [*module.parameters(), *module.buffers()])
        elif node.op == "get_attr":
            path, _, name = str(node.target).rpartition(".")
            uses[id(getattr(model.get_submodule(path), name))] += 1
    return uses


def _slots(
    node: fx.Node, module: nn.Module, names: Iterable[str], block: ChannelBlock, start: int = 0
) -> tuple[TensorAxis, ...]:
    """Return the rows that belong to ``block`` of those tensors ``names`` that the module has."""
    found = [(f"{node.target}.{name}", getattr(module, name)) for name in names]
    return tuple(TensorAxis(name, t, 0, block.width, start, block.size) for name, t in found if t is not None)


def _with_starts(layout: Layout) -> list[tuple[int, ChannelBlock]]:
    """Return every block with its first entry."""
    sizes = [block.entries for block in layout]
    return [(sum(sizes[:i]), block) for i, block in enumerate(layout)]


def _weighted(flow: _Flow, node: fx.Node) -> Layout | None:
    """Handle a convolution or linear layer over dimension 1: it reads its input's channels and opens a group."""
    module = flow.module_of(node)
    weight, bias = module.get_parameter("weight"), getattr(module, "bias", None)
    layout = flow.layout(node.args[0])
    if flow.shape(node.args[0]) == () or len(flow.shape(node)) != weight.dim():
        return None
    if getattr(module, "groups", 1) != 1:
        return _depthwise(flow, node, layout)
    if layout and sum(block.entries for block in layout) != weight.shape[1]:
        return None
    name = f"{node.target}.weight"
    # The columns follow the channels that they read; the rows are free, so they open a group.
    for start, block in _with_starts(layout):
        columns = TensorAxis(name, weight, 1, block.width, start, block.size)
        flow.run_over(block.channels, (columns,))
        flow.describe(block.channels, (columns,))
        flow.divide(block.gain, columns)
    rows = (TensorAxis(name, weight, 0, len(weight)),)
    return flow.write(node, rows if bias is None else (*rows, TensorAxis(f"{node.target}.bias", bias, 0, len(bias))))


def _depthwise(flow: _Flow, node: fx.Node, layout: Layout) -> Layout | None:
    """Handle one filter per channel: the channels stay, their gain ends and another one begins."""
    module = flow.module_of(node)
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return None
    # Other groupings fix which channels are read together, so a free permutation would break them.
    if not module.groups == module.in_channels == module.out_channels:
        return None
    return _each_channel(flow, node, layout, ("weight", "bias"), divided=True)


def _batch_norm(flow: _Flow, node: fx.Node) -> Layout | None:
    """Handle a batch norm: channels stay, scale and shift begin a new gain, the old one is fixed."""
    module = flow.module_of(node)
    assert isinstance(module, _BatchNorm)
    statistics = ("running_mean", "running_var")
    folded = flow.fold(node.args[0], module)
    return _each_channel(flow, node, flow.layout(node.args[0]), ("weight", "bias"), statistics, described=not folded)


def _each_channel(
    flow: _Flow,
    node: fx.Node,
    layout: Layout,
    proportional: tuple[str, ...],
    others: tuple[str, ...] = (),
    *,
    divided: bool = False,
    described: bool = True,
) -> Layout:
    """Handle a layer that acts per channel and whose output is proportional to the tensors ``proportional``.

    Args:
        divided: the output is also proportional to the input, by the first of the tensors.
        described: record the layer for comparing channels; a batch norm folded into another layer is not.
    """
    module, blocks = flow.module_of(node), []
    for start, block in _with_starts(layout):
        moved = _slots(node, module, proportional, block, start)
        rest = _slots(node, module, others, block, start)
        flow.run_over(block.channels, moved + rest)
        # A folded batch norm is compared as part of its filters, not by itself.
        if described and moved + rest:
            flow.describe(block.channels, moved + rest)
        if divided:
            flow.divide(block.gain, moved[0])
        else:
            block.gain.fix()
        blocks.append(block._replace(gain=flow.open_gain(block.channels, moved)))
    return tuple(blocks)


def _homogeneous(flow: _Flow, node: fx.Node) -> Layout | None:
    """Handle f(a x) = a f(x) for a > 0, channel by channel."""
    shapes = flow.shape(node.args[0]), flow.shape(node)
    return flow.layout(node.args[0]) if _alone(flow, node) and shapes[0][:2] == shapes[1][:2] else None


def _pointwise(flow: _Flow, node: fx.Node) -> Layout | None:
    """Handle a function that is equal for every channel, but not homogeneous."""
    layout = _homogeneous(flow, node)
    for block in layout or ():
        block.gain.fix()
    return layout


def _alone(flow: _Flow, node: fx.Node) -> bool:
    """Tell whether the first argument is the only tensor that enters."""
    return bool(node.args) and [n for n in node.all_input_nodes if flow.shape(n) != ()] == [node.args[0]]


def _reshape(flow: _Flow, node: fx.Node) -> Layout | None:
    """Handle flattening of all dimensions but the batch, or of space alone."""
    before, after = flow.shape(node.args[0]), flow.shape(node)
    if not _alone(flow, node) or len(before) < 2 or before[0] != after[0]:
        return None
    if before[:2] == after[:2]:
        return flow.layout(node.args[0])
    if len(after) == 2 and after[1] == math.prod(before[1:]):
        # Flattening gives each channel its spatial entries as consecutive columns.
        area = math.prod(before[2:])
        return tuple(block._replace(size=block.size * area) for block in flow.layout(node.args[0]))
    return None


def _over_space(flow: _Flow, node: fx.Node) -> Layout | None:
    """Handle a homogeneous reduction over spatial dimensions."""
    dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    listed = list(dims) if isinstance(dims, list | tuple) else [dims]
    n_dims = len(flow.shape(node.args[0]))
    if any(not isinstance(d, int) or d % n_dims < 2 for d in listed):
        return None
    return _homogeneous(flow, node)


def _indexed(flow: _Flow, node: fx.Node) -> Layout | None:
    """Handle a slice of space."""
    index = node.args[1]
    whole = slice(None, None, None)
    if not isinstance(index, tuple) or len(index) < 2 or index[0] != whole or index[1] != whole:
        return None
    return _homogeneous(flow, node) if all(isinstance(i, slice | int) for i in index) else None


def _padded(flow: _Flow, node: fx.Node) -> Layout | None:
    """Handle padding of space; ``_homogeneous`` refuses padding of channels, which changes their number."""
    value = node.kwargs.get("value", node.args[3] if len(node.args) > 3 else None)
    return _homogeneous(flow, node) if value in (None, 0) else _pointwise(flow, node)


def _added(flow: _Flow, node: fx.Node) -> Layout | None:
    """Join the channels of a sum's two terms; a constant term ends homogeneity."""
    if _alone(flow, node):
        return _pointwise(flow, node)
    if len(node.args) != 2:
        return None
    first, second = (flow.layout(arg) for arg in node.args)
    shapes = [flow.shape(arg) for arg in node.args]
    alike = [(b.width, b.size) for b in first] == [(b.width, b.size) for b in second]
    if not first or not alike or len(shapes[0]) != len(shapes[1]):
        return None
    # A sum adds channel i to channel i, so both terms must be rewritten by one permutation and one scale.
    for one, other in zip(first, second, strict=True):
        one.channels.join(other.channels)
        one.gain.join(other.gain)
    return first


def _concatenated(flow: _Flow, node: fx.Node) -> Layout | None:
    """Concatenate channels; a part without hidden channels is fixed."""
    parts = node.args[0]
    dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    if not isinstance(parts, list | tuple) or not isinstance(dim, int) or dim % len(flow.shape(node)) != 1:
        return None
    return tuple(block for part in parts for block in flow.layout(part) or (fixed_block(flow.shape(part)[1]),))


def _no_data(flow: _Flow, node: fx.Node) -> Layout | None:
    """Handle shapes and types, which hold no channels."""
    return ()


def _attribute(flow: _Flow, node: fx.Node) -> Layout | None:
    return () if node.args[1] in ("shape", "ndim", "dtype", "device") else None


def _table(*rows: tuple[_Handler, Iterable[Any]]) -> dict[Any, _Handler]:
    return {key: handler for handler, keys in rows for key in keys}


_MODULES: dict[type[nn.Module], _Handler] = _table(
    (_weighted, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)),
    (_batch_norm, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)),
    (_homogeneous, (nn.Identity, nn.ReLU, nn.LeakyReLU)),
    (_homogeneous, (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)),
    (_homogeneous, (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)),
    (_homogeneous, (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)),
    (_homogeneous, (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)),
    (_pointwise, (nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU, nn.ELU, nn.Softplus, nn.ReLU6, nn.Hardtanh, nn.Hardswish)),
    (_reshape, (nn.Flatten,)),
)
"""Handlers by exact type: a subclass may compute anything."""

_FUNCTIONS: dict[Any, _Handler] = _table(
    (_homogeneous, (functional.relu, torch.relu, functional.leaky_relu, functional.dropout, functional.dropout2d)),
    (_homogeneous, (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)),
    (_homogeneous, (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)),
    (_homogeneous, (functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d, functional.adaptive_avg_pool3d)),
    (_homogeneous, (functional.adaptive_max_pool1d, functional.adaptive_max_pool2d, functional.adaptive_max_pool3d)),
    (_homogeneous, (operator.mul, operator.truediv, operator.neg)),
    (_pointwise, (torch.sigmoid, torch.tanh, functional.gelu, functional.silu, functional.elu, functional.softplus)),
    (_pointwise, (functional.relu6, functional.hardtanh, functional.hardswish, torch.clamp)),
    (_reshape, (torch.flatten, torch.reshape, torch.squeeze)),
    (_over_space, (torch.mean, torch.sum, torch.amax)),
    (_indexed, (operator.getitem,)),
    (_padded, (functional.pad,)),
    (_added, (operator.add, operator.iadd, torch.add, operator.sub, operator.isub, torch.sub)),
    (_concatenated, (torch.cat, torch.concat)),
    (_attribute, (getattr,)),
)

_METHODS: dict[str, _Handler] = _table(
    (_homogeneous, ("relu", "relu_", "contiguous", "clone", "detach", "float")),
    (_pointwise, ("sigmoid", "tanh", "clamp")),
    (_reshape, ("flatten", "view", "reshape", "squeeze")),
    (_over_space, ("mean", "sum", "amax")),
    (_added, ("add", "add_", "sub", "sub_")),
    (_no_data, ("size", "dim")),
)
