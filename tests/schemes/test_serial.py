"""Serial numbers: signatures, geometry, ink, and searches on a lock that is known exactly."""

import pytest
import torch
from torch import Tensor, nn

from wmarena.experiments.workloads.images.digits import DigitsCnn
from wmarena.experiments.workloads.images.pixels import Pixels
from wmarena.experiments.workloads.images.task import ImageTask
from wmarena.schemes.adi.scheme import Adi
from wmarena.schemes.dsn.scheme import Dsn
from wmarena.schemes.prf import Prf
from wmarena.schemes.serial import numbers as serial
from wmarena.schemes.serial.numbers import Ink, SerialScheme, SignedNumber, block_size, numbers, patterns_of, stamp_raw
from wmarena.schemes.serial.search import (
    Candidates,
    Oracle,
    all_positions,
    answers_of,
    climb,
    gradient_round,
    greedy_search,
    halving,
    interleaved,
    random_candidates,
)

PRF = Prf(b"the owner's secret, for tests only")
NUMBER = torch.tensor([[0, 1, 0], [1, 1, 1], [1, 0, 0]], dtype=torch.uint8)


def digits_task(pad: int = 0) -> ImageTask:
    """The digits task, with a border round its inputs if asked for."""
    task = DigitsCnn().task(torch.device("cpu"))
    pixels = Pixels(mean=(0.3,), std=(0.33,), device=task.device, pad=pad)
    return ImageTask(**{**vars(task), "pixels": pixels})


# Signatures.


def test_a_number_is_the_signers_alone() -> None:
    """Buyer, time, counter and private key each change the bits; the same four give the same bits."""
    base = serial.sign(PRF, "customer-1", "2020", 0)
    others = [
        serial.sign(PRF, "customer-2", "2020", 0),
        serial.sign(PRF, "customer-1", "2021", 0),
        serial.sign(PRF, "customer-1", "2020", 1),
        serial.sign(PRF.child("other"), "customer-1", "2020", 0),
    ]

    assert base == serial.sign(PRF, "customer-1", "2020", 0)
    assert not any(torch.equal(base.bits(8), other.bits(8)) for other in others)


def test_only_the_signers_signature_is_valid() -> None:
    """A changed message, signature or public key is refused."""
    signed = serial.sign(PRF, "customer-1", "2020", 0)
    flipped = bytes([signed.signature[0] ^ 1]) + signed.signature[1:]

    assert signed.valid()
    assert not SignedNumber(signed.message + "x", signed.public_key, signed.signature).valid()
    assert not SignedNumber(signed.message, signed.public_key, flipped).valid()
    assert not SignedNumber(signed.message, serial.sign(PRF.child("x"), "a", "b", 0).public_key, flipped).valid()


def test_issued_numbers_are_never_of_one_colour() -> None:
    """All black or all white, one in eight numbers of four bits, is signed anew."""
    issued = [serial.issue(PRF.child(str(i)), "c", "t", 2).bits(2) for i in range(60)]
    plain = [serial.sign(PRF.child(str(i)), "c", "t", 0).bits(2) for i in range(60)]

    assert all(0 < int(bits.sum()) < 4 for bits in issued)
    assert any(int(bits.sum()) in (0, 4) for bits in plain)


def test_nine_bits_are_ground_and_sixty_four_are_not() -> None:
    """Whoever finds a 3x3 number can sign some message that gives it; for 8x8 there is no such luck."""
    small = serial.grind(PRF, "pirate", "2024", NUMBER, 8192)
    large = serial.grind(PRF, "pirate", "2024", torch.ones(8, 8, dtype=torch.uint8), 300)

    assert small.valid()
    assert torch.equal(small.bits(3), NUMBER)
    assert large.valid()
    assert not torch.equal(large.bits(8), torch.ones(8, 8, dtype=torch.uint8))


# Geometry.


def test_a_stamp_changes_its_square_and_nothing_else() -> None:
    """White bits are 255, black ones 0, in all channels; the images given are left alone."""
    raw = torch.full((2, 3, 8, 9), 77, dtype=torch.uint8)
    out = stamp_raw(raw, NUMBER[None], torch.tensor([[4, 5]]))

    assert bool((raw == 77).all())
    for channel in out.flatten(0, 1):
        assert torch.equal(channel[4:7, 5:8], NUMBER * 255)
    assert int((out != 77).sum()) == 2 * 3 * 9


def test_each_image_can_have_its_own_number_and_place() -> None:
    """Patterns and positions broadcast or pair up."""
    raw = torch.full((2, 1, 8, 8), 9, dtype=torch.uint8)
    out = stamp_raw(raw, torch.stack([NUMBER, 1 - NUMBER]), torch.tensor([[0, 0], [5, 5]]))

    assert torch.equal(out[0, 0, :3, :3], NUMBER * 255)
    assert torch.equal(out[1, 0, 5:, 5:], (1 - NUMBER) * 255)
    assert int((out[1, 0, :5, :5] != 9).sum()) == 0


def test_bits_are_blocks_on_large_images() -> None:
    """One pixel a bit up to 47 pixels of width; about 21 of 224 pixels for 3x3 bits."""
    assert [block_size((3, side, side)) for side in (24, 28, 32, 47, 224)] == [1, 1, 1, 1, 7]
    out = stamp_raw(torch.full((1, 3, 224, 224), 9, dtype=torch.uint8), NUMBER[None], torch.tensor([[10, 20]]))

    assert bool((out[0, :, 10:17, 27:34] == 255).all())
    assert bool((out[0, :, 10:17, 20:27] == 0).all())


def test_positions_are_all_that_fit() -> None:
    """Drawn places reach both corners of the range and never leave the image."""
    drawn = torch.stack([serial.draw_position(PRF.child(str(i)), 3, (1, 6, 7)) for i in range(300)])

    assert drawn.amin(dim=0).tolist() == [0, 0]
    assert drawn.amax(dim=0).tolist() == [3, 4]
    assert len(all_positions(3, (1, 6, 7))) == 4 * 5


def test_numbers_and_patterns_are_inverse() -> None:
    """Every 9-bit number has its own pattern."""
    patterns = patterns_of(torch.arange(512), 3)

    assert torch.equal(numbers(patterns), torch.arange(512))
    assert len(patterns.unique(dim=0)) == 512


@pytest.mark.parametrize("pad", [0, 2])
def test_ink_gives_what_stamped_pixels_become(pad: int) -> None:
    """Stamping normalised inputs equals normalising stamped pixels, bit for bit, also inside a border."""
    task = digits_task(pad)
    raw = torch.randint(256, (4, 1, 24, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    positions = torch.tensor([[0, 0], [21, 21], [3, 7], [10, 2]])

    assert torch.equal(
        Ink(task)(task.to_inputs(raw), NUMBER[None], positions),
        task.to_inputs(stamp_raw(raw, NUMBER[None], positions)),
    )


def test_relaxed_bits_have_a_gradient() -> None:
    """A float pattern mixes black and white linearly, so a brighter bit makes a brighter pixel."""
    task = digits_task()
    bits = torch.full((1, 3, 3), 0.5, requires_grad=True)
    out = Ink(task)(task.to_inputs(torch.zeros(1, 1, 24, 24, dtype=torch.uint8)), bits, torch.tensor([[2, 2]]))
    torch.autograd.backward(out.sum())

    assert bits.grad is not None
    assert torch.allclose(bits.grad, torch.full((1, 3, 3), 1 / 0.33))


def test_schemes_with_serial_numbers_are_recognised() -> None:
    """The protocol distinguishes schemes with a serial number from others."""
    assert isinstance(Dsn(), SerialScheme)
    assert not isinstance(Adi(), SerialScheme)


# Searching. A lock of which everything is known: it answers right in proportion to the bits that agree.


class Lock(nn.Module):
    """Logits favour the class of an input (its last pixel says which) by ``gain`` where the number is right.

    Args:
        partial: share of the gain that is left for each further wrong bit; 0 gives nothing away.
    """

    def __init__(self, task: ImageTask, pattern: Tensor, place: tuple[int, int], partial: float) -> None:
        super().__init__()
        ink = Ink(task)
        self.black, self.range = float(ink.black), float(ink.white - ink.black)
        self.pattern, self.place, self.partial = pattern, place, partial

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, 10) logits; without the number class 0."""
        side, (row, column) = len(self.pattern), self.place
        window = inputs[:, 0, row : row + side, column : column + side]
        bright = (window - self.black) / self.range
        wrong = (bright - self.pattern).abs().sum(dim=(1, 2))
        classes = ((inputs[:, 0, -1, -1] - self.black) / self.range * 255).round().long().clamp(0, 9)
        logits = torch.zeros(len(inputs), 10).scatter(1, classes[:, None], 5.0) * (self.partial**wrong)[:, None]
        return logits + torch.tensor([0.5] + [0.0] * 9)


def lock_and_oracle(pattern: Tensor, partial: float, budget: int) -> Oracle:
    """Twenty images, two of a class, of the digits' size, and a lock on ``pattern`` at (5, 8)."""
    task = digits_task()
    labels = torch.arange(20) % 10
    raw = torch.zeros(20, 1, 24, 24, dtype=torch.uint8)
    raw[:, 0, -1, -1] = labels.to(torch.uint8)
    return Oracle(answers_of(Lock(task, pattern, (5, 8), partial)), task, raw, labels, budget)


def test_halving_finds_the_one_number_that_works() -> None:
    """Among all 512 numbers at 30 places, in less than three forwards a candidate, without any leak to follow."""
    oracle = lock_and_oracle(NUMBER, 1e-3, 60_000)
    positions = torch.cartesian_prod(torch.arange(3, 8), torch.arange(5, 11))
    every = Candidates(patterns_of(torch.arange(512), 3).repeat(30, 1, 1), positions.repeat_interleave(512, 0))
    best = halving(oracle, every, 4)

    assert torch.equal(best.patterns[0], NUMBER)
    assert best.positions[0].tolist() == [5, 8]
    assert oracle.used < 3 * len(every)


def test_forward_passes_are_counted_and_never_exceed_the_budget() -> None:
    """The count is what the model was really shown."""
    oracle = lock_and_oracle(NUMBER, 0.5, 700)
    shown = 0
    plain = oracle.ask

    def counting(inputs: Tensor) -> Tensor:
        nonlocal shown
        shown += len(inputs)
        return plain(inputs)

    oracle.ask = counting
    greedy_search(oracle, 3, torch.tensor([[5, 8]]), seed=1, enough=2.0)

    assert shown == oracle.used
    assert 300 < oracle.used <= 700


def test_climbing_follows_nearly_right_numbers() -> None:
    """Where a wrong bit halves the advantage, flipping bits and moving the stamp arrive at number and place."""
    oracle = lock_and_oracle(NUMBER, 0.6, 10_000)
    start = Candidates(NUMBER[None] ^ torch.tensor([[[1, 0, 0], [0, 0, 1], [0, 0, 0]]], dtype=torch.uint8), POSITION)
    found, score = climb(oracle, start, 10, None)

    assert torch.equal(found.patterns[0], NUMBER)
    assert score > -0.2


POSITION = torch.tensor([[5, 8]])


@pytest.mark.parametrize("side", [3, 8])
def test_climbing_needs_a_leak(side: int) -> None:
    """A leaky lock falls at any length; one that gives nothing away falls at 9 bits by trying, not at 64."""
    pattern = torch.from_numpy(PRF.bits("pattern", side * side)).view(side, side)
    found = {}
    for name, partial in (("leaky", 0.9), ("tight", 1e-3)):
        oracle = lock_and_oracle(pattern, partial, 40_000)
        best = greedy_search(oracle, side, POSITION, seed=3, enough=0.95)
        found[name] = torch.equal(best.patterns[0], pattern)

    assert found == {"leaky": True, "tight": side == 3}


def test_descending_over_relaxed_bits_finds_a_leaky_number() -> None:
    """Sixty steps on 64 sigmoids end at the number, or next to it, from where climbing gets there."""
    pattern = torch.from_numpy(PRF.bits("pattern", 64)).view(8, 8)
    best = gradient_round(lock_and_oracle(pattern, 0.9, 40_000), 8, POSITION, seed=5)

    assert torch.equal(best.patterns[0], pattern)


def test_an_unknown_place_is_proposed_by_a_mask() -> None:
    """A mask over the whole image finds the stamp at an unknown position."""
    oracle = lock_and_oracle(NUMBER, 0.8, 40_000)
    best = gradient_round(oracle, 3, all_positions(3, (1, 24, 24)), seed=5)

    assert torch.equal(best.patterns[0], NUMBER)
    assert best.positions[0].tolist() == [5, 8]


def test_classes_take_turns() -> None:
    """A constant answer is right once in a turn, however the labels were sorted."""
    labels = torch.tensor([2, 2, 2, 0, 0, 1])

    assert labels[interleaved(labels)].tolist() == [2, 0, 1, 2, 0, 2]


def test_random_candidates_follow_their_generator() -> None:
    """The same seed draws the same numbers at the same places."""
    first, again = (
        random_candidates(50, 3, all_positions(3, (1, 8, 8)), torch.Generator().manual_seed(4)) for _ in range(2)
    )

    assert torch.equal(first.patterns, again.patterns)
    assert torch.equal(first.positions, again.positions)
    assert len(first.positions.unique(dim=0)) > 15
