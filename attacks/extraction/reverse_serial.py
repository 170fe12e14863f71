"""Search for the serial number of a locked network, from its answers to stamped images.

    brute     score numbers at positions by successive halving: all of them in random order if they can be listed
              (nine bits), else random ones; in blocks, the search ends with the first that holds a working number
    greedy    climb repeatedly from the best of some random numbers by flipping bits and moving the stamp: works if the
              network was not trained against nearly right numbers
    gradient  descend the cross-entropy over sigmoids of the bits, round, climb; if the position is unknown, first over
              a mask and a picture of the whole image, whose heaviest windows are the positions to try

A number works if it reaches ``enough`` on the adversary's images (specs A17: 0.9 of what the true number reaches, which
the adversary does not know). The best one is claimed: as the adversary's key with the adversary's images, and with a
signature if one can be found. The strength is the number of forward passes; a backward pass counts as one more. Only
descending needs the weights; the others query probabilities. Without labels the network's confidence ranks the numbers
and a working one cannot be recognised, so the search uses its whole budget; labels then serve the report alone.

Cost of brute force: halving takes 8/3 forwards a candidate on average, and each block of 4,096 another 4 * ``n_images``
to judge its best. All nine-bit numbers at all positions, at most:

    24x24   484 positions   247,808 candidates   0.67 * 10^6 forwards
    28x28   676             346,112              0.94
    32x32   900             460,800              1.25

So the default budget covers all of them, on 28x28 pixels twice. Two images are few: a sweep loses the right number if
the network errs on one of them even with the right stamp. A sweep that found nothing is repeated with the next two
images first, until all were used or the budget is spent.

Source: ours (specs A17), for Tang, Du, Hu 2020, whose nine bits are 346,112 candidates on 28x28 pixels.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from wmarena.attacks.base import Attack, AttackView, Claim, Family
from wmarena.attacks.knowledge import Knowledge
from wmarena.schemes.base import Scheme, TaskInfo
from wmarena.schemes.params import Json, param
from wmarena.schemes.prf import subseed
from wmarena.schemes.serial.numbers import SerialScheme, patterns_of
from wmarena.schemes.serial.search import (
    FIRST_IMAGES,
    Candidates,
    Oracle,
    all_positions,
    answers_of,
    gradient_round,
    greedy_round,
    halving,
    interleaved,
    random_candidates,
)

_BLOCK = 2**12
"""Candidates of one brute-force round."""

_SURVIVORS = 4
"""Candidates of a block that are judged on all images."""

_LISTED = 2**22
"""Largest number of candidates that are listed; of more, random ones are drawn."""

_CLAIMED_IMAGES = 500
_SMALLEST = 1e-30


@dataclass(frozen=True, kw_only=True)
class ReverseSerial(Attack):
    """Search the serial number that a locked network answers to."""

    name: ClassVar[str] = "reverse_serial"
    family: ClassVar[Family] = "adaptive"
    knows: ClassVar[frozenset[Knowledge]] = frozenset({"queries", "algorithm"})
    paper: ClassVar[str] = "Tang, Du, Hu 2020, Deep Serial Number (the search is ours)"

    mode: Literal["brute", "gradient", "greedy"] = param(
        "brute", doc="try numbers, descend on relaxed bits, or flip bits greedily", stage="attack"
    )
    n_forwards: int = param(2_000_000, doc="images shown to the network, at most", stage="attack", low=1, strength=True)
    n_images: int = param(50, doc="labelled images to score numbers on, at most", stage="attack", low=2)
    labelled: bool = param(True, doc="score by labels; else by the network's own confidence", stage="attack")
    known_position: bool = param(False, doc="the stamp's position is known (needs the key)", stage="attack")
    enough: float = param(
        0.9, doc="accuracy on the images at which a number is found", stage="attack", low=0, high=1, low_open=True
    )

    @property
    def label(self) -> str:
        return f"{self.name}-{self.mode}"

    @property
    def makes(self) -> frozenset[Literal["model", "claim"]]:
        return frozenset({"claim"})

    def needs(self) -> frozenset[Knowledge]:
        answers: frozenset[Knowledge] = frozenset({"weights", "algorithm"}) if self.mode == "gradient" else self.knows
        return answers | {"key"} if self.known_position else answers

    def within(self, epochs: int, n_samples: int) -> "ReverseSerial":
        """Return this attack unchanged: it trains nothing."""
        return self

    def applicable(self, victim: Scheme, info: TaskInfo) -> str | None:
        if not isinstance(victim, SerialScheme):
            return f"{victim.name} has no serial number"
        return None

    def run(self, model: nn.Module, view: AttackView) -> Claim:
        scheme = view.scheme
        if not isinstance(scheme, SerialScheme):
            raise TypeError(f"expected a scheme with serial numbers, got {scheme.name}; choose one that has them")
        search = _Search(self, scheme, model, view)
        search.run()
        raw, labels = (part[:_CLAIMED_IMAGES].cpu() for part in _in_turn(view))
        row, column = search.best.positions[0].tolist()
        key = view.scheme.keygen(view.task, view.prf.child("reverse_serial"))
        key = scheme.adopt(key, search.best.patterns[0], (row, column), raw, labels)
        return Claim(key, n_tried=max(1, search.oracle.tried), details=search.facts())


class _Search:
    """State of one search: rounds that propose numbers, the best of which is kept."""

    def __init__(self, attack: ReverseSerial, scheme: SerialScheme, model: nn.Module, view: AttackView) -> None:
        self.attack, self.view, self.side = attack, view, scheme.side
        raw, labels = (part[: attack.n_images] for part in _in_turn(view))
        budget, ask = attack.n_forwards, answers_of(model)
        if attack.mode == "gradient":
            model.requires_grad_(False)
        else:
            budget, ask = min(budget, view.budget.max_queries or budget), partial(_log_probabilities, model)
        self.oracle = Oracle(ask, view.task, raw, labels, budget, labelled=attack.labelled)
        self.positions = all_positions(self.side, view.task.info.input_shape)
        if attack.known_position:
            self.positions = torch.tensor([scheme.place(view.key)])
        self.best = random_candidates(1, self.side, self.positions, self._generator("best"))
        self.best_score, self.best_accuracy = -torch.inf, 0.0
        self.at_success: int | None = None
        n_all = 2 ** (self.side * self.side) * len(self.positions)
        self.order = torch.randperm(n_all, generator=self._generator("order")) if n_all <= _LISTED else None

    @property
    def finished(self) -> bool:
        """True once a working number was recognised."""
        return self.attack.labelled and self.at_success is not None

    def run(self) -> None:
        """Search in rounds, from the latest checkpoint on, until a number works or the budget is spent."""
        done = self._resume()
        while not self.finished:
            proposed = self._propose(done)
            if len(proposed) == 0 or not self._consider(proposed):
                return
            done += 1
            self.view.checkpoints.offer(done, self._state)

    def facts(self) -> dict[str, Json]:
        """Return what the report may show, without the number itself."""
        return {
            "mode": self.attack.mode,
            "found": self.at_success is not None,
            "accuracy": self.best_accuracy,
            "forwards": self.oracle.used,
            "forwards_at_success": self.at_success,
            "labelled": self.attack.labelled,
            "known_position": self.attack.known_position,
        }

    def _propose(self, number: int) -> Candidates:
        """Return the best numbers of one round; none when all were tried or the budget is spent."""
        if self.attack.mode == "brute":
            return self._best_of_block(number)
        make = greedy_round if self.attack.mode == "greedy" else gradient_round
        return make(self.oracle, self.side, self.positions, subseed(self.view.seed, "reverse_serial", number))

    def _best_of_block(self, number: int) -> Candidates:
        """Return the best of the next block of candidates, listed in random order or drawn if they are too many."""
        # Halving takes less than three forwards a candidate.
        size = min(_BLOCK, max(1, self.oracle.left // 3))
        if self.order is None:
            block = random_candidates(size, self.side, self.positions, self._generator("block", number))
            return halving(self.oracle, block, _SURVIVORS)
        sweep, index = divmod(number, math.ceil(len(self.order) / _BLOCK))
        first = sweep * FIRST_IMAGES
        if first >= self.oracle.n_images:
            return self.best.at(torch.arange(0))
        chosen = self.order[index * _BLOCK : (index + 1) * _BLOCK][:size]
        n_patterns = 2 ** (self.side * self.side)
        block = Candidates(patterns_of(chosen % n_patterns, self.side), self.positions[chosen // n_patterns])
        return halving(self.oracle, block, _SURVIVORS, first)

    def _consider(self, proposed: Candidates) -> bool:
        """Judge proposals on all images; False where the budget does not allow it."""
        oracle = self.oracle
        proposed = proposed.at(torch.arange(min(len(proposed), oracle.left // oracle.n_images)))
        if len(proposed) == 0:
            return False
        scores, accuracies = oracle.judge(proposed)
        value = accuracies if self.attack.labelled else scores
        top = int(value.argmax())
        if float(value[top]) > self.best_score:
            self.best, self.best_score = proposed.at(torch.tensor([top])), float(value[top])
            self.best_accuracy = float(accuracies[top])
            self.at_success = (self.at_success or oracle.used) if self.best_accuracy >= self.attack.enough else None
        return True

    def _generator(self, *purpose: str | int) -> torch.Generator:
        return torch.Generator().manual_seed(subseed(self.view.seed, "reverse_serial", *purpose))

    def _state(self) -> dict[str, Tensor]:
        numbers = [self.oracle.used, self.oracle.tried, -1 if self.at_success is None else self.at_success]
        return {
            "counts": torch.tensor(numbers),
            "best": torch.tensor([self.best_score, self.best_accuracy], dtype=torch.float64),
            "pattern": self.best.patterns.clone(),
            "position": self.best.positions.clone(),
        }

    def _resume(self) -> int:
        found = self.view.checkpoints.latest()
        if found is None:
            return 0
        done, state = found
        self.oracle.used, self.oracle.tried, success = (int(v) for v in state["counts"].tolist())
        self.at_success = None if success < 0 else success
        self.best_score, self.best_accuracy = state["best"].tolist()
        self.best = Candidates(state["pattern"], state["position"])
        return done


def _log_probabilities(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return log-probabilities of a sealed model, which gives probabilities."""
    probabilities: Tensor = model(inputs)
    return probabilities.clamp_min(_SMALLEST).log()


def _in_turn(view: AttackView) -> tuple[Tensor, Tensor]:
    """Return the adversary's raw images and labels, interleaved by class."""
    with torch.no_grad():  # nothing is trained on them
        raw, labels = view.data.raw()
    order = interleaved(labels).to(labels.device)
    return raw[order], labels[order]
