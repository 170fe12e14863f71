"""One hidden channel dimension of a network: the tensors that run over it, permuted and scaled together.

    slot    the axis of one tensor that holds C channels
    gain    a positive factor per channel that can be moved from writers to readers
    layer   one layer's weights per channel, for comparing channels of two networks
    group   all slots of one channel dimension, its gains and its layers

``wmarena.schemes.symmetry.groups`` finds the groups of a network.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True)
class TensorAxis:
    """``width`` = C channels of a tensor: blocks of ``block`` entries along ``dim``, from ``start`` on."""

    name: str
    tensor: Tensor
    dim: int
    width: int
    start: int = 0
    block: int = 1

    @property
    def place(self) -> tuple[str, int, int, int, int]:
        """The axis without its tensor, equal in networks of one architecture."""
        return self.name, self.dim, self.width, self.start, self.block

    def rows(self) -> Tensor:
        """Return (C, entries per channel) float64, a copy."""
        return self._entries().detach().double().movedim(self.dim, 0).reshape(self.width, -1)

    def permute(self, order: Tensor) -> None:
        """Move channel ``order[i]`` to place i, in place; ``order`` is (C,) int64 on the tensor's device."""
        within = torch.arange(self.block, device=order.device)
        index = self.start + (order[:, None] * self.block + within).flatten()
        self._entries().copy_(self.tensor.index_select(self.dim, index))

    def scale(self, factors: Tensor) -> None:
        """Multiply channel i by ``factors[i]``, in place; (C,) on the tensor's device."""
        shape = [-1] + [1] * (self.tensor.dim() - self.dim - 1)
        self._entries().mul_(factors.repeat_interleave(self.block).reshape(shape).to(self.tensor.dtype))

    def _entries(self) -> Tensor:
        return self.tensor.narrow(self.dim, self.start, self.width * self.block)


@dataclass(frozen=True)
class Gain:
    """A positive factor per channel that can be moved from a signal's writers to its readers.

    Attributes:
        rank: index in the forward pass; the inputs of ``source`` were written by gains of smaller rank.
        multiplied: rows of all writers, or scale and shift of batch norms; ``divided``: columns of all readers.
        source: the first writer's part of ``multiplied``; its norm is the channel's magnitude.
    """

    rank: int
    multiplied: tuple[TensorAxis, ...]
    divided: tuple[TensorAxis, ...]
    source: tuple[TensorAxis, ...]

    @property
    def width(self) -> int:
        """C, the number of channels."""
        return self.source[0].width

    def norms(self) -> Tensor:
        """Return (C,) float64: Euclidean norm of each channel's source."""
        rows = torch.cat([slot.rows() for slot in self.source], dim=1)
        return rows.square().sum(dim=1).sqrt()

    @torch.no_grad()
    def scale(self, factors: Tensor) -> None:
        """Multiply channel i by ``factors[i]`` where it is written and divide it where it is read, in place.

        Factors and their reciprocals are rounded once, from float64 to the tensors' type.

        Raises:
            ValueError: ``factors`` are not (C,) positive finite numbers.
        """
        if factors.shape != (self.width,) or not bool((torch.isfinite(factors) & (factors > 0)).all()):
            raise ValueError(
                f"expected {self.width} positive finite factors, got {factors.tolist()}; draw one per channel"
            )
        exact = factors.to(self.source[0].tensor.device, torch.float64)
        for slot in self.multiplied:
            slot.scale(exact)
        for slot in self.divided:
            slot.scale(1 / exact)


@dataclass(frozen=True)
class ChannelWeights:
    """One layer's weights per channel of a group: its filters, or the weights that read the channel.

    Attributes:
        slots: weight first, then bias if there is one.
        norm: the batch norm that alone reads this layer; its scale and shift are folded into the filter.
    """

    slots: tuple[TensorAxis, ...]
    norm: _BatchNorm | None = None

    def rows(self) -> Tensor:
        """Return (C, entries) float64: filter and bias after batch-norm folding, or the columns of a reader."""
        rows = [slot.rows() for slot in self.slots]
        if self.norm is None:
            return torch.cat(rows, dim=1)
        scale, shift = _affine(self.norm)
        bias = rows[1][:, 0] if len(rows) > 1 else torch.zeros_like(scale)
        return torch.cat([rows[0] * scale[:, None], (bias * scale + shift)[:, None]], dim=1)


@dataclass(frozen=True)
class Group:
    """One hidden channel dimension with everything that runs over it.

    Attributes:
        width: C, number of channels.
        slots: all tensor axes that are reordered with the channels.
        gains: independent scalings, mostly one; none where a non-homogeneous operation intervenes.
        layers: writers and readers, in the order of the forward pass.
    """

    width: int
    slots: tuple[TensorAxis, ...]
    gains: tuple[Gain, ...]
    layers: tuple[ChannelWeights, ...]

    def covers(self, name: str, dim: int) -> bool:
        """Tell whether the group's channels lie along ``dim`` of tensor ``name``."""
        return any((slot.name, slot.dim) == (name, dim) for slot in self.slots)

    @torch.no_grad()
    def permute(self, order: Tensor) -> None:
        """Move channel ``order[i]`` to place i, in place on the network; ``order`` is (C,) int64.

        Raises ValueError: ``order`` is no permutation of C channels.
        """
        if order.shape != (self.width,) or not torch.equal(order.cpu().sort().values, torch.arange(self.width)):
            raise ValueError(f"expected each of 0..{self.width - 1} once, got {order.tolist()}; pass a permutation")
        for slot in self.slots:
            slot.permute(order.to(slot.tensor.device))

    def scale(self, factors: Tensor) -> None:
        """Apply (C,) positive ``factors`` to every gain, in place on the network."""
        for gain in self.gains:
            gain.scale(factors)


def _affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return (scale (C,), shift (C,)) float64 that a batch norm applies in eval mode, learnt or not, tracked or not."""
    mean, var, gamma, beta = norm.running_mean, norm.running_var, norm.weight, norm.bias
    known = next(t for t in (gamma, mean, torch.ones(norm.num_features)) if t is not None)
    scale = torch.ones_like(known, dtype=torch.float64) if gamma is None else gamma.detach().double()
    shift = torch.zeros_like(scale) if beta is None else beta.detach().double()
    if mean is None or var is None:
        return scale, shift
    scale = scale * (var.double() + norm.eps).rsqrt()
    return scale, shift - mean.double() * scale
