"""Search for the serial number that unlocks a model, within a budget of forward passes.

A candidate is a number at a position; its score is the mean log-probability of the right class (or, without labels, of
the network's own answer) over stamped images. Unlike accuracy, the score of a nearly right number is nearly as good as
the right one's; climbing relies on that.

    halving   score all candidates on two images, keep the best eighth, score those on twice as many images, and so on
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
"""Images that every candidate is scored on first."""

_SURVIVORS = 0.125
_CHUNK = 2000
"""Images in one forward pass."""

_STARTS, _STARTS_AT_PLACE, _CLIMBS = 1024, 64, 4
"""Random numbers of a greedy round if the position is unknown or known, and how many of them start a climb."""

_IMAGES = 32
"""Images that climbing and descending score on."""

_DESCENT_STEPS, _DESCENT_LR = 60, 0.3
_RESTARTS = 4
_MASK_STEPS, _MASK_LR, _MASK_WEIGHT = 100, 0.1, 0.01


Ask = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Candidates:
    """Numbers at positions.

    Attributes:
        patterns: (n, side, side) uint8.
        positions: (n, 2) int64 rows and columns.
    """

    patterns: Tensor
    positions: Tensor

    def __len__(self) -> int:
        return len(self.patterns)

    def at(self, index: Tensor) -> "Candidates":
        """Return the candidates at ``index``."""
        return Candidates(self.patterns[index], self.positions[index])


@dataclass
class Oracle:
    """A model that answers stamped images, with a count of its answers.

    Attributes:
        ask: inputs (n, c, h, w) -> log-probabilities (n, C), differentiable for ``gradient_round``.
        raw, labels: (m, c, h, w) uint8 and (m,), the searcher's images; neighbours are of different classes.
        budget: largest number of forward passes; a search ends before the query that would exceed it.
        labelled: score by the labels; else by the model's own confidence.
        used: forward passes so far.
        tried: numbers queried so far; a number queried again by a later search counts again.
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
        """Forward passes left in the budget."""
        return self.budget - self.used

    @property
    def n_images(self) -> int:
        """m, the number of images."""
        return len(self.inputs)

    def scores(self, candidates: Candidates, n_images: int, first: int = 0) -> Tensor:
        """Return (n,) mean log-probabilities over ``n_images`` images from ``first`` on, wrapping around."""
        return torch.cat([part.mean(dim=1) for part, _ in self._answers(candidates, n_images, first)])

    def judge(self, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """Return scores (n,) and accuracies (n,) on all images."""
        parts = list(self._answers(candidates, self.n_images, 0))
        scores = torch.cat([part.mean(dim=1) for part, _ in parts])
        # In double precision 45 of 50 equals 0.9; in float32 it does not.
        return scores, torch.cat([right.double().mean(dim=1) for _, right in parts])

    def loss(self, stamped: Tensor) -> Tensor:
        """Return the negative score of (r m, c, h, w): the first m images, stamped with each of r numbers.

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
        """Yield (log-probabilities, right or not), each (part of n, n_images)."""
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
    """Return ``Oracle.ask`` of a network with logits (n, C)."""
    return lambda inputs: F.log_softmax(model(inputs), dim=1)


def interleaved(labels: Tensor) -> Tensor:
    """Return (n,) an order that interleaves the classes: a constant answer is then right for one of C in turn."""
    turn = torch.zeros(len(labels), dtype=torch.int64)
    for label in labels.cpu().unique():  # type: ignore[no-untyped-call]
        members = (labels.cpu() == label).nonzero()[:, 0]
        turn[members] = torch.arange(len(members))
    return torch.argsort(turn, stable=True)


def random_candidates(n: int, side: int, positions: Tensor, generator: torch.Generator) -> Candidates:
    """Draw ``n`` random numbers at positions from ``positions`` (k, 2)."""
    patterns = torch.randint(2, (n, side, side), generator=generator, dtype=torch.uint8)
    chosen = torch.randint(len(positions), (n,), generator=generator)
    return Candidates(patterns, positions[chosen])


def all_positions(side: int, input_shape: tuple[int, ...]) -> Tensor:
    """Return (k, 2) int64: every position where the stamp fits."""
    rows, columns = places(side, input_shape)
    return torch.cartesian_prod(torch.arange(rows), torch.arange(columns))


def halving(oracle: Oracle, candidates: Candidates, survivors: int, first: int = 0) -> Candidates:
    """Select at most ``survivors`` of ``candidates``, best first, on as many images as the budget allows.

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
        # Running mean over all images so far: early scores are not wasted.
        best = totals.argsort(descending=True, stable=True)[: max(survivors, int(_SURVIVORS * len(candidates)))]
        candidates, totals = candidates.at(best), totals[best]
        if len(candidates) <= survivors:
            break
        n_images = min(2 * n_images, oracle.n_images - seen)
    return candidates.at(torch.arange(min(survivors, len(candidates))))


def climb(oracle: Oracle, start: Candidates, n_images: int, limits: tuple[int, int] | None) -> tuple[Candidates, float]:
    """Climb from one candidate to a local maximum of the score over ``n_images``: (1 candidate, its score).

    Args:
        limits: (rows, columns) that the stamp may move over; None where its place is known.
    """
    here, score = start, -torch.inf
    while True:
        # The start itself is scored together with its first neighbours.
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
    """Return all candidates that differ by one flipped bit or a move of one pixel."""
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
    """Run greedy rounds until a number reaches accuracy ``enough`` or the budget is spent; return the best."""
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
    """Climb from the best of some random numbers; best first, fewer if the budget is short.

    Args:
        positions: (k, 2) places that the stamp may have; with one alone it does not move.
    """
    generator = torch.Generator().manual_seed(seed)
    # Halving takes less than three forwards a start.
    n_starts = min(_STARTS_AT_PLACE if len(positions) == 1 else _STARTS, max(1, oracle.left // 3))
    starts = random_candidates(n_starts, side, positions, generator)
    return _climbed(oracle, halving(oracle, starts, _CLIMBS), positions)


def gradient_round(oracle: Oracle, side: int, positions: Tensor, seed: int) -> Candidates:
    """Descend over relaxed bits, round and climb; best first, none if the budget is spent.

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
    """Optimise (r, side, side) logits of bits, each number at its own position ``at`` (r, 2)."""
    device = oracle.task.device
    # All restarts in one batch: the loss is a sum over numbers, so their gradients stay separate.
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
    """Learn a mask (Neural Cleanse with all true labels); return the (r, 2) positions of its heaviest windows."""
    inputs, ink = oracle.inputs[:n_images], oracle.ink
    height, width = oracle.task.info.input_shape[-2:]
    drawn = (torch.randn(2, height, width, generator=generator) * 0.1).to(inputs.device)
    # The mask starts nearly transparent: sigmoid(-2) is 0.12.
    drawn[0] -= 2.0
    mask_and_picture = drawn.requires_grad_()
    optimiser = torch.optim.Adam([mask_and_picture], lr=_MASK_LR)
    row, column = ink.offset.tolist()
    window = (..., slice(row, row + height), slice(column, column + width))
    black, white = (value[:, None, None] for value in (ink.black, ink.white))
    # The penalty on the mask's sum leaves it heavy only where the images must change to be answered: at the stamp.
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
    # Mean of the mask over every window that a stamp could fill.
    per_place = F.avg_pool2d(weight, extent, stride=1)[0, 0].cpu()[positions[:, 0], positions[:, 1]]
    return positions[per_place.argsort(descending=True, stable=True)[:_RESTARTS]]


def _climbed(oracle: Oracle, starts: Candidates, positions: Tensor) -> Candidates:
    limits = None if len(positions) == 1 else (int(positions[:, 0].max()) + 1, int(positions[:, 1].max()) + 1)
    n_images = min(_IMAGES, oracle.n_images)
    found = [climb(oracle, starts.at(torch.tensor([i])), n_images, limits) for i in range(len(starts))]
    found.sort(key=lambda pair: -pair[1])
    return Candidates(torch.cat([c.patterns for c, _ in found]), torch.cat([c.positions for c, _ in found]))
