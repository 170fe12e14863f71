"""Searching a model for the serial number that it answers to, within a budget of forward passes.

A candidate is a number at a place; its score is the mean log-probability of the right class (or, without labels, of
the network's own answer) over stamped images. Scores tell more than accuracies: a number that is nearly right is
nearly as good, which is what the climbing relies on.

    halving   score all candidates on two images, keep the best eighth, show those twice as many images, and so on
              (Karnin, Koren, Somekh 2013): 2 (1 + 1/4 + 1/16 + ...) = 8/3 forwards a candidate
    climbing  flip the bit, or move the stamp by the one pixel, that improves the score most, until none does

Source: Tang, Du, Hu 2020 count the numbers; the searches are ours.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wmarena.schemes.base import Workload
from wmarena.schemes.prf import subseed
from wmarena.schemes.serial.numbers import Ink, places

FIRST_IMAGES = 2
"""Images that every candidate is tried on first."""

_SURVIVORS = 0.125
_CHUNK = 2000
"""Images in one forward pass."""

_STARTS, _STARTS_AT_PLACE, _CLIMBS = 1024, 64, 4
"""Random numbers of a greedy round where the place is unknown or known, and how many of them are climbed from."""

_IMAGES = 32
"""Images that climbing and descending look at."""

_DESCENT_STEPS, _DESCENT_LR = 60, 0.3
_RESTARTS = 4
_MASK_STEPS, _MASK_LR, _MASK_WEIGHT = 100, 0.1, 0.01


Ask = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Candidates:
    """Numbers at places.

    Attributes:
        patterns: (n, side, side) uint8.
        positions: (n, 2) int64 rows and columns.
    """

    patterns: Tensor
    positions: Tensor

    def __len__(self) -> int:
        return len(self.patterns)

    def at(self, index: Tensor) -> "Candidates":
        """Those that ``index`` names."""
        return Candidates(self.patterns[index], self.positions[index])


@dataclass
class Oracle:
    """A model that answers stamped images, and the count of its answers.

    Attributes:
        ask: inputs (n, c, h, w) -> log-probabilities (n, C), differentiable for ``gradient_round``.
        raw, labels: (m, c, h, w) uint8 and (m,), the searcher's images; neighbours are of different classes.
        budget: forward passes, at most; a search ends where the next question would go beyond.
        labelled: score by the labels; else by the model's own confidence.
        used: forward passes so far.
        tried: numbers asked about so far; one that is asked about again by a later search counts again.
    """

    ask: Ask
    task: Workload
    raw: Tensor
    labels: Tensor
    budget: int
    labelled: bool = True
    used: int = 0
    tried: int = 0
    ink: Ink = field(init=False)
    inputs: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.ink = Ink(self.task)
        self.inputs = self.task.to_inputs(self.raw)
        self.labels = self.labels.to(self.task.device)

    @property
    def left(self) -> int:
        """Forward passes that may still be asked for."""
        return self.budget - self.used

    @property
    def n_images(self) -> int:
        """m."""
        return len(self.inputs)

    def scores(self, candidates: Candidates, n_images: int, first: int = 0) -> Tensor:
        """(n,) mean log-probabilities over images ``first`` to ``first + n_images`` (the last ones at the end)."""
        return torch.cat([part.mean(dim=1) for part, _ in self._answers(candidates, n_images, first)])

    def judge(self, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """Scores (n,) and accuracies (n,) on all images."""
        parts = list(self._answers(candidates, self.n_images, 0))
        scores = torch.cat([part.mean(dim=1) for part, _ in parts])
        # In double precision 45 of 50 are 0.9, which 0.9 as a float32 is not.
        return scores, torch.cat([right.double().mean(dim=1) for _, right in parts])

    def loss(self, stamped: Tensor) -> Tensor:
        """Negative score of the first images, stamped by the caller as often as there are numbers (r m, c, h, w).

        A sum over the numbers of means, so that each number has its own gradient; forward and backward are counted.
        """
        n_images = min(_IMAGES, self.n_images)
        logs = self.ask(stamped)
        self.used += 2 * len(stamped)
        self.tried += len(stamped) // n_images
        right = self.labels[:n_images].repeat(len(stamped) // n_images)
        chosen = logs.gather(1, right[:, None])[:, 0] if self.labelled else logs.amax(dim=1)
        return -chosen.sum() / n_images

    def _answers(self, candidates: Candidates, n_images: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(log-probabilities, right or not), each (part of n, n_images)."""
        chosen = (torch.arange(n_images) + first).to(self.inputs.device) % self.n_images
        images, labels = self.inputs[chosen], self.labels[chosen]
        per_pass = max(1, _CHUNK // n_images)
        for start in range(0, len(candidates), per_pass):
            part = candidates.at(torch.arange(start, min(start + per_pass, len(candidates))))
            n = len(part)
            shown = images.repeat(n, 1, 1, 1)
            stamped = self.ink(
                shown, part.patterns.repeat_interleave(n_images, 0), part.positions.repeat_interleave(n_images, 0)
            )
            with torch.no_grad():
                logs = self.ask(stamped).view(n, n_images, -1)
            self.used += n * n_images
            right = labels.expand(n, n_images)
            scores = logs.gather(2, right[:, :, None])[:, :, 0] if self.labelled else logs.amax(dim=2)
            yield scores.cpu(), (logs.argmax(dim=2) == right).cpu()


def answers_of(model: nn.Module) -> Ask:
    """``Oracle.ask`` of a network with logits (n, C)."""
    return lambda inputs: F.log_softmax(model(inputs), dim=1)


def interleaved(labels: Tensor) -> Tensor:
    """(n,) order of samples in which the classes take turns: a constant answer is then right for one of C in turn."""
    turn = torch.zeros(len(labels), dtype=torch.int64)
    for label in labels.cpu().unique():  # type: ignore[no-untyped-call]
        members = (labels.cpu() == label).nonzero()[:, 0]
        turn[members] = torch.arange(len(members))
    return torch.argsort(turn, stable=True)


def random_candidates(n: int, side: int, positions: Tensor, generator: torch.Generator) -> Candidates:
    """``n`` random numbers at places drawn from ``positions`` (k, 2)."""
    patterns = torch.randint(2, (n, side, side), generator=generator, dtype=torch.uint8)
    chosen = torch.randint(len(positions), (n,), generator=generator)
    return Candidates(patterns, positions[chosen])


def all_positions(side: int, input_shape: tuple[int, ...]) -> Tensor:
    """(k, 2) int64: every place where the stamp fits."""
    rows, columns = places(side, input_shape)
    return torch.cartesian_prod(torch.arange(rows), torch.arange(columns))


def halving(oracle: Oracle, candidates: Candidates, survivors: int, first: int = 0) -> Candidates:
    """At most ``survivors`` of ``candidates``, the best first; chosen with as many images as the budget allows.

    Args:
        first: number of the image to begin with.
    """
    n_images, seen = min(FIRST_IMAGES, oracle.n_images, oracle.left // max(1, len(candidates))), 0
    totals = torch.zeros(len(candidates))
    if n_images > 0:
        oracle.tried += len(candidates)
    while n_images > 0 and 0 < len(candidates) * n_images <= oracle.left:
        scores = oracle.scores(candidates, n_images, first=first + seen)
        totals = (totals * seen + scores * n_images) / (seen + n_images)
        seen += n_images
        best = totals.argsort(descending=True, stable=True)[: max(survivors, int(_SURVIVORS * len(candidates)))]
        candidates, totals = candidates.at(best), totals[best]
        if len(candidates) <= survivors:
            break
        n_images = min(2 * n_images, oracle.n_images - seen)
    return candidates.at(torch.arange(min(survivors, len(candidates))))


def climb(oracle: Oracle, start: Candidates, n_images: int, limits: tuple[int, int] | None) -> tuple[Candidates, float]:
    """From one candidate to a local maximum of the score over ``n_images``: (1 candidate, its score).

    Args:
        limits: (rows, columns) that the stamp may move over; None where its place is known.
    """
    here, score = start, -torch.inf
    while True:
        around = _neighbours(here, limits, itself=score == -torch.inf)
        if len(around) * n_images > oracle.left:
            return here, float(score)
        found = oracle.scores(around, n_images)
        oracle.tried += len(around)
        best = int(found.argmax())
        if float(found[best]) <= score:
            return here, float(score)
        here, score = around.at(torch.tensor([best])), float(found[best])


def _neighbours(centre: Candidates, limits: tuple[int, int] | None, *, itself: bool) -> Candidates:
    """One bit flipped, or one pixel moved."""
    side = centre.patterns.shape[-1]
    flips = torch.eye(side * side, dtype=torch.uint8).view(-1, side, side)
    patterns = [centre.patterns] * itself + [centre.patterns ^ flips]
    positions = [centre.positions] * itself + [centre.positions.expand(side * side, 2)]
    if limits is not None:
        moved = centre.positions + torch.tensor([[-1, 0], [1, 0], [0, -1], [0, 1]])
        moved = moved[((moved >= 0) & (moved < torch.tensor(limits))).all(dim=1)]
        patterns.append(centre.patterns.expand(len(moved), side, side))
        positions.append(moved)
    return Candidates(torch.cat(patterns), torch.cat(positions))


def greedy_search(oracle: Oracle, side: int, positions: Tensor, seed: int, enough: float) -> Candidates:
    """The best number (1 candidate) of greedy rounds, until one reaches accuracy ``enough`` or the budget is spent."""
    generator = torch.Generator().manual_seed(seed)
    best, best_accuracy = random_candidates(1, side, positions, generator), -1.0
    number = 0
    while best_accuracy < enough:
        found = greedy_round(oracle, side, positions, subseed(seed, "greedy", number))
        found = found.at(torch.arange(min(len(found), oracle.left // oracle.n_images)))
        if len(found) == 0:
            break
        _, accuracies = oracle.judge(found)
        top = int(accuracies.argmax())
        if float(accuracies[top]) > best_accuracy:
            best, best_accuracy = found.at(torch.tensor([top])), float(accuracies[top])
        number += 1
    return best


def greedy_round(oracle: Oracle, side: int, positions: Tensor, seed: int) -> Candidates:
    """Where climbing from the best of some random numbers leads, the best first; fewer where the budget is short.

    Args:
        positions: (k, 2) places that the stamp may have; with one alone it does not move.
    """
    generator = torch.Generator().manual_seed(seed)
    n_starts = min(_STARTS_AT_PLACE if len(positions) == 1 else _STARTS, max(1, oracle.left // 3))
    starts = random_candidates(n_starts, side, positions, generator)
    return _climbed(oracle, halving(oracle, starts, _CLIMBS), positions)


def gradient_round(oracle: Oracle, side: int, positions: Tensor, seed: int) -> Candidates:
    """Where descending over relaxed bits, rounding and climbing leads, the best first; none if the budget is spent.

    Args:
        positions: (k, 2) places; with more than one a mask over the whole image proposes some first.
    """
    generator = torch.Generator().manual_seed(seed)
    n_images = min(_IMAGES, oracle.n_images)
    n_masks = 0 if len(positions) == 1 else _MASK_STEPS
    # A backward pass costs at least what a forward one does.
    if 2 * n_images * (n_masks + _RESTARTS * _DESCENT_STEPS) > oracle.left:
        return Candidates(torch.zeros(0, side, side, dtype=torch.uint8), torch.zeros(0, 2, dtype=torch.int64))
    if n_masks:
        places_tried = _heaviest_windows(oracle, side, positions, n_images, generator)
    else:
        places_tried = positions.expand(_RESTARTS, 2)
    bits = _relaxed_bits(oracle, side, places_tried, n_images, generator)
    return _climbed(oracle, Candidates((bits > 0).to(torch.uint8), places_tried), positions)


def _relaxed_bits(oracle: Oracle, side: int, at: Tensor, n_images: int, generator: torch.Generator) -> Tensor:
    """(r, side, side) logits of bits that minimise the loss, each number at its own place ``at`` (r, 2)."""
    device = oracle.task.device
    bits = torch.randn(len(at), side, side, generator=generator).to(device).requires_grad_()
    optimiser = torch.optim.Adam([bits], lr=_DESCENT_LR)
    shown = oracle.inputs[:n_images].repeat(len(at), 1, 1, 1)
    where = at.repeat_interleave(n_images, 0)
    with torch.enable_grad():
        for _ in range(_DESCENT_STEPS):
            stamped = oracle.ink(shown, torch.sigmoid(bits).repeat_interleave(n_images, 0), where)
            (bits.grad,) = torch.autograd.grad(oracle.loss(stamped), bits)
            optimiser.step()
    return bits.detach().cpu()


def _heaviest_windows(
    oracle: Oracle, side: int, positions: Tensor, n_images: int, generator: torch.Generator
) -> Tensor:
    """(r, 2) places whose windows a learnt mask weighs most: Neural Cleanse with the true labels of all classes."""
    inputs, ink = oracle.inputs[:n_images], oracle.ink
    height, width = oracle.task.info.input_shape[-2:]
    drawn = (torch.randn(2, height, width, generator=generator) * 0.1).to(inputs.device)
    drawn[0] -= 2.0
    mask_and_picture = drawn.requires_grad_()
    optimiser = torch.optim.Adam([mask_and_picture], lr=_MASK_LR)
    row, column = ink.offset.tolist()
    window = (..., slice(row, row + height), slice(column, column + width))
    black, white = (value[:, None, None] for value in (ink.black, ink.white))
    with torch.enable_grad():
        for _ in range(_MASK_STEPS):
            mask, picture = torch.sigmoid(mask_and_picture)
            painted = inputs.clone()
            painted[window] = torch.lerp(inputs[window], torch.lerp(black, white, picture), mask)
            loss = oracle.loss(painted) + _MASK_WEIGHT * mask.sum()
            (mask_and_picture.grad,) = torch.autograd.grad(loss, mask_and_picture)
            optimiser.step()
    weight = torch.sigmoid(mask_and_picture.detach()[0])[None, None]
    extent = side * ink.block
    per_place = F.avg_pool2d(weight, extent, stride=1)[0, 0].cpu()[positions[:, 0], positions[:, 1]]
    return positions[per_place.argsort(descending=True, stable=True)[:_RESTARTS]]


def _climbed(oracle: Oracle, starts: Candidates, positions: Tensor) -> Candidates:
    limits = None if len(positions) == 1 else (int(positions[:, 0].max()) + 1, int(positions[:, 1].max()) + 1)
    n_images = min(_IMAGES, oracle.n_images)
    found = [climb(oracle, starts.at(torch.tensor([i])), n_images, limits) for i in range(len(starts))]
    found.sort(key=lambda pair: -pair[1])
    return Candidates(torch.cat([c.patterns for c, _ in found]), torch.cat([c.positions for c, _ in found]))
