"""Searching serial numbers: nine bits fall to brute force, 64 to a network that leads the way, within the budget."""

import copy
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from tests.attack_contract import AttackContract, granted_view
from tests.victims import NewestOnly, Victim, arena, marked
from wmarena.attacks.base import Attack, Claim
from wmarena.attacks.extraction.reverse_serial import _BLOCK, _SURVIVORS, ReverseSerial
from wmarena.attacks.knowledge import SealedModel
from wmarena.schemes.base import Cancelled, Scheme
from wmarena.schemes.dsn.scheme import Dsn, number_of
from wmarena.schemes.prf import Prf
from wmarena.schemes.serial.numbers import MAX_SIDE
from wmarena.schemes.serial.search import Candidates, Oracle, all_positions, halving, interleaved, random_candidates
from wmarena.schemes.uchida import Uchida

LOCK = Dsn(epochs=40, batch_size=50, n_images=100)
"""Locks the small perceptron within seconds; nine bits, trained against nearly right numbers."""

LAX = replace(LOCK, neg_mode="raw")
"""The same, trained against raw inputs alone as in the paper."""

N_ALL = 512 * 22 * 22
"""Nine-bit numbers at places on 24x24 pixels."""


class Searching(AttackContract):
    """A search makes a claim and leaves the network locked, so raw inputs are still worth nothing."""

    min_accuracy: ClassVar[float] = 0.0
    verdict: ClassVar[bool | None] = True

    @pytest.fixture
    def scheme(self) -> Scheme:
        return LOCK


class TestTrying(Searching):
    @pytest.fixture
    def attack(self) -> Attack:
        return ReverseSerial(n_forwards=13_000)


class TestDescending(Searching):
    @pytest.fixture
    def attack(self) -> Attack:
        return ReverseSerial(mode="gradient", known_position=True)


class TestClimbing(Searching):
    @pytest.fixture
    def attack(self) -> Attack:
        return ReverseSerial(mode="greedy", labelled=False, n_forwards=6000)


def searched(attack: Attack, victim: Victim, seed: int = 0, model: nn.Module | None = None, **budget: int) -> Claim:
    """The claim of a search on the victim's network, or on another one, with what the attack may know."""
    claim = attack(model or victim.model, granted_view(attack, victim, seed=seed, **budget))
    assert isinstance(claim, Claim)
    return claim


def accuracy(victim: Victim, pattern: Tensor, position: Tensor) -> float:
    """Test accuracy with a number printed on every image."""
    raw, labels = victim.arena.test.raw()
    stamped = replace(number_of(victim.key), pattern=pattern, position=position).on(raw)
    return float((victim.arena.task.predict(victim.model, stamped) == labels).float().mean())


def unlocked(victim: Victim, claim: Claim) -> float:
    """Test accuracy with the claimed number."""
    found = number_of(claim.key)
    return accuracy(victim, found.pattern, found.position)


class Constant(nn.Module):
    """Answers the same whatever it sees: no number ever works."""

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, 10) logits."""
        return torch.zeros(len(inputs), 10)


class Counting(nn.Module):
    """A network that counts the images that it is shown, in any copy of it."""

    shown: ClassVar[int] = 0

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, 10) logits."""
        type(self).shown += len(inputs)
        return torch.as_tensor(self.model(inputs))


# What is found.


def test_a_nine_bit_number_is_found_and_claimed() -> None:
    """The number and the place are the owner's, it unlocks, and the finder's signed claim passes as well."""
    victim = marked("digits_mlp", LOCK)
    claim = searched(ReverseSerial(), victim)
    own, found = number_of(victim.key), number_of(claim.key)

    assert claim.details["found"]
    assert claim.details["forwards_at_success"] == claim.details["forwards"]
    assert unlocked(victim, claim) >= 0.9 * accuracy(victim, own.pattern, own.position)
    assert torch.equal(found.pattern, own.pattern)
    assert found.position.tolist() == own.position.tolist()
    assert victim.judge(victim.model, claim.key).verdict
    assert claim.key.seed != victim.key.seed


@pytest.mark.parametrize("seed", [1, 3])
def test_no_order_of_all_numbers_misses_the_one_that_works(seed: int) -> None:
    """Other adversaries with other images and orders find it too, before every number at every place was tried."""
    victim = marked("digits_mlp", LOCK)
    claim = searched(ReverseSerial(), victim, seed=seed)

    assert claim.details["found"]
    assert claim.n_tried <= N_ALL
    assert unlocked(victim, claim) > 0.9


@pytest.mark.parametrize("mode", ["brute", "greedy", "gradient"])
def test_sixty_four_bits_are_not_found(mode: str) -> None:
    """Trying is hopeless, and nearly right numbers were trained away, so nothing leads: no claim unlocks or passes."""
    victim = marked("digits_mlp", replace(LOCK, side=8))
    claim = searched(ReverseSerial(mode=mode, n_forwards=100_000), victim)  # type: ignore[arg-type]

    assert accuracy(victim, *vars(number_of(victim.key)).values()) > 0.9
    assert not claim.details["found"]
    assert claim.details["forwards_at_success"] is None
    assert unlocked(victim, claim) < 0.5
    assert not victim.judge(victim.model, claim.key).verdict


def test_descending_follows_a_leak_to_sixty_four_bits() -> None:
    """A network locked against raw inputs alone gives its long number away; the finder cannot sign it, though."""
    victim = marked("digits_mlp", replace(LAX, side=8))
    claim = searched(ReverseSerial(mode="gradient", n_forwards=100_000), victim)
    verdict = victim.judge(victim.model, claim.key)

    assert claim.details["found"]
    assert unlocked(victim, claim) > 0.85
    assert not verdict.verdict
    assert verdict.details["found"] == "the serial number is not the one that was signed"


@pytest.mark.parametrize("mode", ["brute", "greedy", "gradient"])
def test_a_network_locked_against_raw_inputs_alone_falls_to_any_search(mode: str) -> None:
    """Many nearly right numbers unlock it: each search is through with a twentieth of all candidates' forwards."""
    victim = marked("digits_mlp", LAX)
    claim = searched(ReverseSerial(mode=mode, n_forwards=N_ALL // 5), victim)  # type: ignore[arg-type]

    assert claim.details["mode"] == mode
    assert claim.details["found"]
    assert claim.details["forwards_at_success"] <= N_ALL * 8 / 3 / 20  # type: ignore[operator]
    assert unlocked(victim, claim) > 0.85


def test_an_insider_needs_few_forwards() -> None:
    """At a known position all 512 numbers cost about 1,400 forwards; one block judges four of them on all images."""
    victim = marked("digits_mlp", LOCK)
    claim = searched(ReverseSerial(known_position=True), victim)

    assert claim.details["found"]
    assert claim.details["known_position"]
    assert claim.n_tried == 512
    assert claim.details["forwards"] < 3 * 512 + _SURVIVORS * 50


@pytest.mark.parametrize("mode", ["brute", "greedy", "gradient"])
def test_confidence_stands_in_for_labels(mode: str) -> None:
    """Unlabelled images find the number too; not knowing it the search spends its budget, and the report knows when."""
    victim = marked("digits_mlp", LOCK)
    attack = ReverseSerial(mode=mode, labelled=False, known_position=True, n_forwards=100_000)  # type: ignore[arg-type]
    claim = searched(attack, victim)

    assert not claim.details["labelled"]
    assert claim.details["found"]
    assert 0 < claim.details["forwards_at_success"] < claim.details["forwards"]  # type: ignore[operator]
    assert unlocked(victim, claim) > 0.9


def test_the_report_holds_no_number() -> None:
    """Counts and settings alone: neither the bits nor the place are among the details."""
    details = searched(ReverseSerial(known_position=True), marked("digits_mlp", LOCK)).details

    assert set(details) == {
        "mode",
        "found",
        "accuracy",
        "forwards",
        "forwards_at_success",
        "labelled",
        "known_position",
    }


# What it costs.


@pytest.mark.parametrize("mode", ["brute", "greedy", "gradient"])
@pytest.mark.parametrize("n_forwards", [1, 60, 5000, 30_000])
def test_the_budget_is_never_exceeded(mode: str, n_forwards: int) -> None:
    """The forwards reported cover every image shown, and are no more than was granted."""
    victim = marked("digits_mlp", LOCK)
    counting = Counting(victim.model)
    Counting.shown = 0
    attack = ReverseSerial(mode=mode, n_forwards=n_forwards, enough=1.0)  # type: ignore[arg-type]
    forwards = int(str(searched(attack, victim, model=counting).details["forwards"]))

    assert Counting.shown <= forwards <= n_forwards
    if mode != "gradient":
        assert Counting.shown == forwards
        assert forwards > 0


@pytest.mark.parametrize("mode", ["brute", "greedy"])
@pytest.mark.parametrize("max_queries", [1, 777])
def test_queries_are_bound_by_the_adversarys_budget(mode: str, max_queries: int) -> None:
    """The smaller of both limits holds: the interface never has to refuse an answer, and counts what is reported."""
    victim = marked("digits_mlp", LOCK)
    attack = ReverseSerial(mode=mode)  # type: ignore[arg-type]
    sealed = SealedModel(copy.deepcopy(victim.model), max_queries)
    claim = attack.run(sealed, granted_view(attack, victim, max_queries=max_queries))

    assert isinstance(claim, Claim)
    assert 0 < sealed.queries == claim.details["forwards"] <= max_queries


def test_weights_need_no_queries() -> None:
    """Descending needs the weights, so the limit on queries does not apply."""
    victim = marked("digits_mlp", LOCK)
    claim = searched(ReverseSerial(mode="gradient", known_position=True), victim, max_queries=10)

    assert claim.details["found"]


def test_reading_images_is_no_training() -> None:
    """An adversary who is granted one pass over the data may search: nothing is trained."""
    victim = marked("digits_mlp", LOCK)

    assert searched(ReverseSerial(known_position=True), victim, max_epochs=1).details["found"]
    assert ReverseSerial(n_forwards=7).within(1, 10) == ReverseSerial(n_forwards=7)


@pytest.mark.parametrize(("side", "n_sweeps"), [(24, 2), (28, 2), (32, 1)])
def test_the_default_budget_covers_all_nine_bit_numbers(side: int, n_sweeps: int) -> None:
    """A block's cost, counted, times the blocks of all numbers at all places: within the default budget."""
    place, attack = arena("digits_mlp"), ReverseSerial()
    raw, labels = place.val.raw()
    oracle = Oracle(Constant(), place.task, raw[: attack.n_images], labels[: attack.n_images], budget=10**6)
    block = random_candidates(_BLOCK, 3, all_positions(3, (1, 24, 24)), torch.Generator().manual_seed(0))
    oracle.judge(halving(oracle, block, _SURVIVORS))
    n_blocks = -(-512 * len(all_positions(3, (1, side, side))) // _BLOCK)

    assert oracle.used <= _BLOCK * 8 / 3 + _SURVIVORS * attack.n_images
    assert n_sweeps * n_blocks * oracle.used <= attack.n_forwards


def test_a_search_ends_when_every_image_had_its_turn() -> None:
    """Where no number works, 512 numbers are swept once for each pair of images, and the best one is claimed."""
    victim = marked("digits_mlp", LOCK)
    claim = searched(ReverseSerial(known_position=True, n_images=20), victim, model=Constant())

    assert not claim.details["found"]
    assert claim.n_tried == 512 * 10
    assert claim.details["forwards"] < 10 * (3 * 512 + _SURVIVORS * 20)


class Erring(nn.Module):
    """The locked network, but wrong on two images as soon as they carry the right number.

    Args:
        inputs: (2, c, h, w), not stamped; labels: (2,).
    """

    def __init__(self, model: nn.Module, inputs: Tensor, labels: Tensor, position: Tensor) -> None:
        super().__init__()
        row, column = position.tolist()
        outside = torch.ones(inputs.shape[-2:], dtype=torch.bool)
        outside[row : row + 3, column : column + 3] = False
        self.model, self.inputs, self.labels, self.outside = model, inputs, labels, outside

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, 10) logits."""
        logits = torch.as_tensor(self.model(inputs))
        for image, label in zip(self.inputs, self.labels.tolist(), strict=True):
            same = (inputs == image)[:, 0, self.outside].all(dim=1)
            unlocks = same & (logits.softmax(dim=1)[:, label] > 0.5)
            logits[unlocks, label] -= 100
        return logits


def test_a_number_lost_on_two_images_is_found_with_the_next_two() -> None:
    """Two images select the candidates of a sweep; if they mislead, the next sweep begins with others."""
    victim, attack = marked("digits_mlp", LOCK), ReverseSerial(known_position=True, enough=0.8)
    raw, labels = granted_view(attack, victim).data.raw()
    first = interleaved(labels)[:2]
    inputs = victim.arena.task.to_inputs(raw[first])
    erring = Erring(victim.model, inputs, labels[first], number_of(victim.key).position)
    claim = searched(attack, victim, model=erring)

    assert claim.details["found"]
    assert 512 < claim.n_tried <= 3 * 512
    assert torch.equal(number_of(claim.key).pattern, number_of(victim.key).pattern)


# Stopping and going on.


@pytest.mark.parametrize(
    ("mode", "labelled", "n_forwards"),
    [("brute", True, 2_000_000), ("brute", False, 60_000), ("greedy", False, 20_000)],
)
def test_a_resumed_search_makes_the_same_claim(mode: str, labelled: bool, n_forwards: int) -> None:
    """Key, count of numbers and every detail agree, wherever the search was stopped."""
    victim = marked("digits_mlp", LOCK)
    attack = ReverseSerial(mode=mode, labelled=labelled, n_forwards=n_forwards)  # type: ignore[arg-type]
    undisturbed = NewestOnly()
    expected = attack(victim.model, granted_view(attack, victim, checkpoints=undisturbed))
    assert isinstance(expected, Claim)
    assert undisturbed.n_offers > 1

    for stop_at in (1, undisturbed.n_offers):
        checkpoints = NewestOnly(stop_at=stop_at)
        with pytest.raises(Cancelled):
            attack(victim.model, granted_view(attack, victim, checkpoints=checkpoints))
        resumed = attack(victim.model, granted_view(attack, victim, checkpoints=checkpoints))
        assert isinstance(resumed, Claim)
        assert resumed.key.commitment == expected.key.commitment
        assert (resumed.n_tried, resumed.details) == (expected.n_tried, expected.details)


# Where it applies.


def test_other_schemes_have_no_serial_number() -> None:
    """The reason is given before anything runs, and running all the same is an error."""
    victim = marked("digits_mlp", Uchida(bits=32))
    attack = ReverseSerial()

    assert attack.applicable(victim.scheme, victim.arena.task.info) == "uchida has no serial number"
    with pytest.raises(TypeError, match="expected a scheme with serial numbers, got uchida"):
        attack(victim.model, granted_view(attack, victim))


def test_knowledge_follows_from_the_mode() -> None:
    """Descending takes the weights, everything else answers; an insider's place takes the key."""
    needs = {(mode, known): ReverseSerial(mode=mode, known_position=known).needs() for mode, known in MODES}  # type: ignore[arg-type]

    assert needs["brute", False] == needs["greedy", False] == {"queries", "algorithm"}
    assert needs["gradient", False] == {"weights", "algorithm"}
    assert all(needs[mode, True] == needs[mode, False] | {"key"} for mode in ("brute", "greedy", "gradient"))
    assert ReverseSerial(mode="greedy").label == "reverse_serial-greedy"


MODES = [(mode, known) for mode in ("brute", "greedy", "gradient") for known in (False, True)]


# The parts of the search that the attack leans on.


def test_accuracies_are_exact_enough_to_compare_with() -> None:
    """Nine right of ten are 0.9, not the float32 below it, so ``enough: 0.9`` is met."""
    place = arena("digits_mlp")
    raw, _ = place.val.raw()
    labels = torch.tensor([0] * 9 + [1])
    oracle = Oracle(Constant(), place.task, raw[:10], labels, budget=100)
    _, accuracies = oracle.judge(
        Candidates(torch.zeros(1, 3, 3, dtype=torch.uint8), torch.zeros(1, 2, dtype=torch.int64))
    )

    assert float(accuracies[0]) == 0.9


def test_halving_no_candidates_makes_no_query() -> None:
    """No candidates, or no budget: nothing is shown, and what was given comes back."""
    place = arena("digits_mlp")
    raw, labels = place.val.raw()
    some = random_candidates(9, 3, all_positions(3, (1, 24, 24)), torch.Generator().manual_seed(0))
    empty, broke = (Oracle(Constant(), place.task, raw[:10], labels[:10], budget) for budget in (100, 8))

    assert len(halving(empty, some.at(torch.arange(0)), 4)) == 0
    assert torch.equal(halving(broke, some, 4).patterns, some.patterns[:4])
    assert (empty.used, broke.used, empty.tried, broke.tried) == (0, 0, 0, 0)


@pytest.mark.parametrize("side", [4, MAX_SIDE])
def test_long_numbers_are_drawn_not_listed(side: int) -> None:
    """2^16 numbers at 441 places are too many to keep in order; so are 2^256: the search runs on random ones."""
    task = arena("digits_mlp").task
    scheme = replace(LOCK, side=side)
    key = scheme.keygen(task, Prf(b"the owner's secret, for tests only"))
    victim = Victim(arena("digits_mlp"), scheme, key, Constant().eval())
    claim = searched(ReverseSerial(n_forwards=3000), victim)

    assert claim.n_tried >= 900
    assert number_of(claim.key).pattern.shape == (side, side)
