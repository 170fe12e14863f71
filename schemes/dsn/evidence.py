"""Evidence that one serial number unlocks a network: its rank among other numbers, and the raw accuracy.

    A1, A0   accuracies on the owner's n images, stamped and raw        A_T  the teacher's on the raw ones, at embedding
    rule     A1 >= 0.9 A_T  and  A0 <= max(3 / C, 0.1)
    p        (1 + #{r: T_r >= T}) / (R + 1), T = n A1 against R other numbers at the same place

A network may answer one class to all stamped images, so matches are not independent and no binomial p exists (specs
0.2). With nine bits all 511 other numbers (rivals) are tried and p >= 1/512. A rival is tested on the first images, and
on the others only if it can still reach T; the ten best of the first images are always counted in full, so that the
threshold includes the strongest rival. Ten rivals that reach T end the test (Besag and Clifford 1991), which makes
unlocked networks cheap.

Accuracies of single numbers are reported in falling order: their own order would reveal the secret one.
"""

from dataclasses import dataclass
from itertools import count, islice

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from wmarena.schemes.base import Suspect
from wmarena.schemes.dsn.licence import SerialNumber
from wmarena.schemes.params import Json
from wmarena.schemes.prf import Prf
from wmarena.schemes.serial.numbers import numbers, patterns_of, stamp_raw

SCREENED = 50
"""Images that every rival is tested on."""

ENOUGH = 10
"""Rivals that reach the owner's count before the test ends; also the rivals whose counts are always complete."""

_EXHAUSTED_SIDE = 3
_AT_ONCE = 20


@dataclass(frozen=True)
class OtherNumbers:
    """The matches of other numbers.

    Attributes:
        patterns: (r, side, side) uint8, in the order of drawing, without those that were not tested.
        screened: (r,) matches among the first images.
        counts: (r,) matches, of all images if the rival could reach the owner's count.
        n_planned: R.
    """

    patterns: Tensor
    screened: Tensor
    counts: Tensor
    n_planned: int


class SerialTest:
    """The test of one suspect with one key's number and images.

    Args:
        images: (n, c, h, w) uint8 without a stamp; labels: (n,).
    """

    def __init__(self, suspect: Suspect, number: SerialNumber, images: Tensor, labels: Tensor) -> None:
        self._suspect, self._number = suspect, number
        self._images = images.to(suspect.task.device)
        self._labels = labels.to(suspect.task.device)
        self.raw_answers = suspect.labels(self._images).cpu()
        self.right = self._matches(number.pattern[None], len(labels))[0]

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self._labels)

    @property
    def k(self) -> int:
        """Number of stamped images answered with their class."""
        return int(self.right.sum())

    @property
    def raw_accuracy(self) -> float:
        """A0, the accuracy on raw images."""
        return int((self.raw_answers == self._labels.cpu()).sum()) / self.n

    def relabelled(self, num_classes: int) -> float:
        """Return the raw accuracy after the best renaming of the answers, by linear assignment."""
        table = np.zeros((num_classes, num_classes), dtype=np.int64)
        np.add.at(table, (self.raw_answers.numpy(), self._labels.cpu().numpy()), 1)
        rows, columns = linear_sum_assignment(table, maximize=True)
        return float(table[rows, columns].sum()) / self.n

    def _matches(self, patterns: Tensor, n_images: int, first: int = 0) -> Tensor:
        """Return (r, n_images) bool: which images are answered with their class when each number is stamped on."""
        images, labels = (t[first : first + n_images] for t in (self._images, self._labels))
        shown = stamp_raw(
            images.repeat(len(patterns), 1, 1, 1),
            patterns.repeat_interleave(len(images), 0),
            self._number.position[None],
        )
        return (self._suspect.labels(shown).view(len(patterns), -1) == labels).cpu()

    def screen(self, patterns: Tensor) -> Tensor:
        """Return (r,) matches of numbers (r, side, side) among the first images."""
        parts = torch.split(patterns, _AT_ONCE)
        return torch.cat([self._matches(p, min(SCREENED, self.n)).sum(dim=1) for p in parts])

    def rest(self, pattern: Tensor) -> int:
        """Return matches of one number (side, side) among the other images."""
        return int(self._matches(pattern[None], self.n, SCREENED).sum()) if self.n > SCREENED else 0

    def against(self, rivals: Tensor) -> OtherNumbers:
        """Count the matches of ``rivals`` (R, side, side) until ten of them reach the owner's count."""
        screened: list[int] = []
        counts: list[int] = []
        for part in torch.split(rivals, _AT_ONCE):
            for pattern, matches in zip(part, self.screen(part).tolist(), strict=True):
                # Screening: a rival that missed more images than the owner can no longer reach the owner's count.
                missed = min(SCREENED, self.n) - matches
                screened.append(matches)
                counts.append(matches + (self.rest(pattern) if missed <= self.n - self.k else 0))
                if sum(c >= self.k for c in counts) == ENOUGH:
                    return OtherNumbers(
                        rivals[: len(counts)], torch.tensor(screened), torch.tensor(counts), len(rivals)
                    )
        # The strongest rivals are counted in full, since the threshold must exceed their counts.
        for index in np.argsort(screened, kind="stable")[::-1][:ENOUGH]:
            if counts[index] == screened[index]:
                counts[index] += self.rest(rivals[index])
        return OtherNumbers(rivals, torch.tensor(screened), torch.tensor(counts), len(rivals))


def rivals_of(pattern: Tensor, n: int, seed: bytes) -> Tensor:
    """Return (R, side, side) uint8: all other nine-bit numbers in random order, or ``n`` random others.

    Args:
        seed: public and fixed before the suspect was seen (the key's commitment).
    """
    prf, side = Prf(seed), len(pattern)
    own = pattern.cpu().to(torch.uint8)
    if side == _EXHAUSTED_SIDE:
        # Nine bits can be listed, so every rival is drawn once.
        order = torch.from_numpy(prf.permutation("rivals", 2 ** (side * side)))
        return patterns_of(order[order != numbers(own[None])], side)
    drawn = (torch.from_numpy(prf.bits(f"rival/{i}", own.numel())).view(own.shape) for i in count())
    return torch.stack(list(islice((other for other in drawn if not torch.equal(other, own)), n)))


def one_bit_wrong(pattern: Tensor) -> Tensor:
    """Return (side^2, side, side) uint8: the numbers that differ from ``pattern`` in one bit."""
    side = len(pattern)
    return pattern.cpu().to(torch.uint8) ^ torch.eye(side * side, dtype=torch.uint8).view(-1, side, side)


def number_facts(
    test: SerialTest, number: SerialNumber, rivals: OtherNumbers, others: Tensor, *, open_to_all: bool
) -> dict[str, Json]:
    """Measure how many numbers unlock; return nothing for an open network, which needs no number.

    Args:
        others: (R, side, side), all rivals in their order; those left out by an early end are screened as well, since
            the figures must show a lock that many numbers open.
        open_to_all: True if raw inputs are answered as accurately as stamped ones should be.
    """
    if open_to_all:
        return {}
    n = min(SCREENED, test.n)
    near = float(test.screen(one_bit_wrong(number.pattern)).float().mean()) / n
    facts: dict[str, Json] = {"one_bit_wrong": near}
    if len(number.pattern) == _EXHAUSTED_SIDE:
        untested = others[len(rivals.screened) :]
        screened = torch.cat([rivals.screened, test.screen(untested)]) if len(untested) else rivals.screened
        accuracies = [int(test.right[:n].sum()) / n, *(screened / n).tolist()]
        facts["unlocking_share"] = sum(a > 0.5 for a in accuracies) / len(accuracies)
        facts["stamp_accuracies"] = sorted((round(a, 6) for a in accuracies), reverse=True)
    return facts
