"""Realignment: bring a suspect's channels back to the order and scale of the owner's own model.

Permuting and scaling hidden channels costs an adversary nothing and breaks every mark that is read at fixed positions.
The owner, who has the marked model, rewrites the suspect once more, by the permutations and scales that make it most
similar to that model. Its function stays the same.

    1  both networks to unit scale: every gain is divided by the norm of its first writer (filter and bias, or gamma
       and beta), in the order of the forward pass, so that the cosines of step 2 depend on no scale
    2  for each group the assignment p that maximises  sum_i S[i, p(i)]  (Hungarian method),
         S[i, j] = mean over the group's layers of cos(reference channel i, suspect channel j)
       first in the order of the forward pass, from layers whose other side is already assigned; then from all layers
       until nothing improves, at most ``MAX_SWEEPS`` times
    3  p applied to the suspect, and scales by the ratio of the norms of step 1

    cos of writers: filters and biases after batch-norm folding; of readers: the weights that read the channel

Source: Ainsworth, Hayase, Srinivasa, "Git Re-Basin" (ICLR 2023), weight matching. Differs from the paper: cosines per
channel and layer instead of one inner product, because the adversary chooses the scales; groups in the order of the
forward pass instead of a random one, and the first pass reads only layers that are comparable already.

A p-value after realigning is no longer exact: the order depends on the marked model. Untrained networks (60, the
digits' CNN) that were realigned to one with 64 of Uchida's bits matched 53.2 % of them, 50.1 % before. So null models
must be realigned too. A low mean cosine shows that a suspect is unrelated to the reference.
"""

import copy
from dataclasses import dataclass
from itertools import zip_longest

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from wmarena.schemes.symmetry.groups import ChannelWeights, Gain, Group, channel_groups, ensure_equivalent

MAX_SWEEPS = 20
"""Passes over all groups; exact rewrites need two."""

MAX_RATIO = 1e6
"""Larger ratios are not applied: a channel that is dead in one network would overflow in single precision."""

_IMPROVEMENT = 1e-9
"""Mean cosine that a new assignment must gain, so that ties cannot alternate forever."""


def realign(suspect: nn.Module, reference: nn.Module, inputs: Tensor) -> tuple[nn.Module, float]:
    """Return a copy of ``suspect`` with its channels in the order and scale of ``reference``.

    Args:
        reference: the owner's own marked model, of the same architecture; an output layer of another size is allowed.
        inputs: (n, ...) normalised; used for shapes and to check that the function is unchanged.

    Returns:
        (copy, mean cosine in [-1, 1] between matched channels: 1 for a suspect that was only rewritten).

    Raises:
        ValueError: the networks differ in their channels, have none to match, or cannot be traced.
        RuntimeError: rewriting changed the function.
        FloatingPointError: the suspect has NaN or infinite weights.
    """
    aligned = copy.deepcopy(suspect)
    groups = channel_groups(aligned, inputs)
    theirs, ours = _UnitScale.of(suspect, inputs), _UnitScale.of(reference, inputs)
    _check_structure(theirs.groups, ours.groups)
    matching = _Matching(theirs.groups, ours.groups)
    orders = matching.run()
    # The matching worked on unit-scale copies; the result is applied to the suspect itself.
    for group, order in zip(groups, orders, strict=True):
        group.permute(order)
    for place, gain in _gains(groups):
        order = orders[place].to(theirs.norms[gain.rank].device)
        ratios = ours.norms[gain.rank].to(order.device) / theirs.norms[gain.rank][order]
        usable = (ratios > 1 / MAX_RATIO) & (ratios < MAX_RATIO)
        gain.scale(torch.where(usable, ratios, 1.0))
    ensure_equivalent(suspect, aligned, inputs)
    return aligned, matching.mean_cosine()


def _gains(groups: list[Group]) -> list[tuple[int, Gain]]:
    """Return all gains with the index of their group, in the order of the forward pass."""
    return sorted(((i, gain) for i, group in enumerate(groups) for gain in group.gains), key=lambda g: g[1].rank)


@dataclass(frozen=True)
class _UnitScale:
    """A double-precision copy of a network whose gains are all 1.

    Attributes:
        norms: by a gain's rank, the (C,) factors that were divided out; NaN where a channel's source is zero.
    """

    groups: list[Group]
    norms: dict[int, Tensor]

    @classmethod
    def of(cls, model: nn.Module, inputs: Tensor) -> "_UnitScale":
        groups = channel_groups(copy.deepcopy(model).double(), inputs.double())
        norms: dict[int, Tensor] = {}
        # In order of rank: dividing one gain changes the norms of later writers.
        for _, gain in _gains(groups):
            norm = gain.norms()
            usable = torch.isfinite(norm) & (norm > 0)
            norms[gain.rank] = torch.where(usable, norm, torch.nan)
            gain.scale(torch.where(usable, 1 / norm, 1.0))
        return cls(groups, norms)


def _check_structure(theirs: list[Group], ours: list[Group]) -> None:
    places = [[slot.place for group in groups for slot in group.slots] for groups in (theirs, ours)]
    if places[0] != places[1]:
        parted = next((pair for pair in zip_longest(*places) if pair[0] != pair[1]), (None, None))
        found, expected = (f"{p[2]} in dimension {p[1]} of {p[0]}" if p else "none" for p in parted)
        raise ValueError(
            f"expected a suspect with the reference's channels ({expected}), got {found}; judge the suspect as it is"
        )
    if not theirs:
        raise ValueError("expected a network with channels that can be permuted, got none; judge the suspect as it is")


class _Matching:
    """The assignment of suspect channels to reference channels; permutes the suspect's groups in place."""

    def __init__(self, theirs: list[Group], ours: list[Group]) -> None:
        self._suspect = theirs
        self._reference = ours
        self._orders = [torch.arange(group.width) for group in theirs]
        self._comparable = [
            [k for k, (a, b) in enumerate(zip(one.layers, other.layers, strict=True)) if _same_shapes(a, b)]
            for one, other in zip(theirs, ours, strict=True)
        ]

    def run(self) -> list[Tensor]:
        """Match all groups; for each return (C,) int64: reference channel i is suspect channel ``order[i]``."""
        for place in range(len(self._suspect)):
            # Layers whose other side is unordered would compare noise.
            self._assign(place, self._matched_layers(place))
        # Now readers count too; a better order of one group improves the comparison of its neighbours.
        for _ in range(MAX_SWEEPS):
            improved = [self._assign(place, layers) for place, layers in enumerate(self._comparable)]
            if not any(improved):
                break
        return self._orders

    def mean_cosine(self) -> float:
        """Return the mean cosine of matched channels over all groups."""
        own = [self._similarity(i, layers).diagonal() for i, layers in enumerate(self._comparable)]
        return float(torch.cat(own).mean())

    def _matched_layers(self, place: int) -> list[int]:
        """Return the layers of a group whose other side is matched already or belongs to no group."""
        open_tensors = {s.name for group in self._reference[place + 1 :] for s in group.slots}
        own = [s.name for s in self._reference[place].slots]
        open_tensors |= {name for name in own if own.count(name) > 1}
        layers = self._reference[place].layers
        return [k for k in self._comparable[place] if not any(s.name in open_tensors for s in layers[k].slots)]

    def _assign(self, place: int, layers: list[int]) -> bool:
        """Permute one group to its best assignment by ``layers``; tell whether anything improved."""
        similarity = self._similarity(place, layers).cpu()
        # Hungarian method: nearest neighbours could assign one suspect channel twice.
        order = torch.from_numpy(linear_sum_assignment(similarity.numpy(), maximize=True)[1])
        gained = similarity.gather(1, order[:, None]).mean() - similarity.diagonal().mean()
        if not gained > _IMPROVEMENT:
            return False
        self._suspect[place].permute(order)
        self._orders[place] = self._orders[place][order]
        return True

    def _similarity(self, place: int, layers: list[int]) -> Tensor:
        """Return S (C, C) float64: row = channel of the reference, column = channel of the suspect as it is now."""
        ours, theirs = self._reference[place], self._suspect[place]
        total = torch.zeros(ours.width, ours.width, dtype=torch.float64, device=ours.slots[0].tensor.device)
        for k in layers:
            total += _unit(ours.layers[k]) @ _unit(theirs.layers[k]).to(total.device).T
        return total / max(1, len(layers))


def _unit(layer: ChannelWeights) -> Tensor:
    """Return (C, entries): rows of length 1, or zero."""
    rows = layer.rows()
    if not bool(torch.isfinite(rows).all()):
        raise FloatingPointError(f"expected finite weights, got NaN or infinity in {layer.slots[0].name}")
    return nn.functional.normalize(rows, dim=1)


def _same_shapes(one: ChannelWeights, other: ChannelWeights) -> bool:
    return [s.tensor.shape for s in one.slots] == [s.tensor.shape for s in other.slots]
