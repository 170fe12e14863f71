"""Quantisation: few values a tensor, none further than half a step away, and fine-tuning that stays on the grid."""

import pytest
import torch
from torch import Tensor, nn

from tests.attack_contract import AttackContract, granted_view
from tests.victims import Victim, clean_model, marked
from wmarena.attacks.base import Attack
from wmarena.attacks.compression.channels import WEIGHTED
from wmarena.attacks.compression.quantize import Grid, Quantize
from wmarena.schemes.uchida import Uchida


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Layer name -> weight of every convolution and linear layer."""
    return {name: m.weight.detach() for name, m in model.named_modules() if isinstance(m, WEIGHTED)}


class TestQuantize(AttackContract):
    """On the network with batch norm."""

    workload = "digits_cnn"

    @pytest.fixture
    def attack(self) -> Attack:
        return Quantize()

    def test_nothing_but_weights_changes(self, attack: Attack, victim: Victim) -> None:
        """Biases, norms and statistics are bit-equal; every layer's weight keeps 2^5 values at most."""
        suspect = attack(victim.model, granted_view(attack, victim))

        rounded = {f"{name}.weight" for name in weights(victim.model)}
        after = suspect.state_dict()
        assert len(rounded) == 4
        assert list(after) == list(victim.model.state_dict())
        assert all(torch.equal(t, after[n]) for n, t in victim.model.state_dict().items() if n not in rounded)
        assert all(1 < len(after[n].unique()) <= 32 for n in rounded)


class TestQuantizeAndTune(AttackContract):
    workload = "digits_cnn"
    min_accuracy = 0.5

    @pytest.fixture
    def attack(self) -> Attack:
        return Quantize(bits=4, epochs=10, lr=5e-3)

    def test_tuned_weights_stay_on_the_victims_grid(self, attack: Attack, victim: Victim) -> None:
        """Every weight is one of the sixteen levels between the victim's extremes, and some have moved to others."""
        suspect = attack(victim.model, granted_view(attack, victim))

        assert list(suspect.state_dict()) == list(victim.model.state_dict())
        n_moved = 0
        for name, new in weights(suspect).items():
            grid = Grid.of(weights(victim.model)[name], 4)
            assert torch.equal(grid.nearest(new), new)
            n_moved += int((new != grid.nearest(weights(victim.model)[name])).sum())
        # Without tuning it is exactly none; how many follow tuning varies between dozens and hundreds.
        assert n_moved > 10


@pytest.mark.parametrize("bits", [1, 2, 5, 8])
@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
@pytest.mark.parametrize("symmetric", [False, True], ids=["affine", "symmetric"])
def test_rounding_is_to_the_nearest_of_few_levels(bits: int, per_channel: bool, symmetric: bool) -> None:
    """At most 2^bits values a tensor or channel, within the range, no error above half a step, and idempotent."""
    for weight in weights(clean_model("digits_cnn")).values():
        grid = Grid.of(weight, bits, symmetric=symmetric, per_channel=per_channel)
        new = grid.nearest(weight)
        parts = list(zip(weight, new, strict=True)) if per_channel else [(weight, new)]

        assert torch.equal(grid.nearest(new), new)
        for old, rounded in parts:
            bound = float(old.abs().max())
            low, high = (-bound, bound) if symmetric else (float(old.min()), float(old.max()))
            step = (high - low) / (2**bits - 1)
            assert len(rounded.unique()) <= 2**bits
            assert float((old - rounded).abs().max()) <= step / 2 * (1 + 1e-4)
            assert low - 1e-6 <= float(rounded.min()) <= float(rounded.max()) <= high + 1e-6


def test_affine_grid_by_hand() -> None:
    """Two bits from -1 to 2 are the levels -1, 0, 1, 2."""
    weight = torch.tensor([[-1.0, 2.0, 0.4], [0.6, -0.2, 1.4]])

    assert Grid.of(weight, 2).nearest(weight).tolist() == [[-1.0, 2.0, 0.0], [1.0, 0.0, 1.0]]


def test_symmetric_grid_by_hand() -> None:
    """Two bits up to 3 are the levels -3, -1, 1, 3."""
    weight = torch.tensor([[-3.0, 1.8], [0.5, -0.2]])

    assert Grid.of(weight, 2, symmetric=True).nearest(weight).tolist() == [[-3.0, 1.0], [1.0, -1.0]]


def test_channels_have_their_own_ranges() -> None:
    """One bit a channel keeps the extremes of each row."""
    weight = torch.tensor([[0.0, 1.0, 0.9], [10.0, 30.0, 11.0]])

    assert Grid.of(weight, 1, per_channel=True).nearest(weight).tolist() == [[0.0, 1.0, 1.0], [10.0, 30.0, 10.0]]


@pytest.mark.parametrize("symmetric", [False, True], ids=["affine", "symmetric"])
def test_equal_weights_stay(symmetric: bool) -> None:
    """A tensor of zeros has a grid of one level, not of NaN."""
    zeros = torch.zeros(4, 3)

    assert torch.equal(Grid.of(zeros, 4, symmetric=symmetric).nearest(zeros), zeros)


def test_fewer_bits_move_the_weights_further() -> None:
    """Strength is monotone downwards: the rounding error grows with every bit less."""
    victim = marked("digits_mlp", Uchida(bits=32))
    errors = []
    for bits in (8, 5, 3, 2):
        attack = Quantize(bits=bits)
        suspect = attack(victim.model, granted_view(attack, victim))
        pairs = zip(victim.model.parameters(), suspect.parameters(), strict=True)
        errors.append(float(sum((a - b).detach().square().sum() for a, b in pairs)))

    assert errors == sorted(errors)
    assert Quantize.direction == -1
    assert Quantize(bits=3).strength == 3.0


def test_tuning_on_the_grid_heals_coarse_rounding() -> None:
    """With so few levels that accuracy falls, fine-tuning wins most of it back without leaving the grid."""
    victim = marked("digits_cnn", Uchida(bits=32))
    attacks = [Quantize(bits=3, epochs=epochs) for epochs in (0, 10)]

    coarse, healed = (victim.accuracy(a(victim.model, granted_view(a, victim))) for a in attacks)

    assert coarse < victim.accuracy(victim.model) - 0.1
    assert healed > coarse + 0.1


def test_labels_name_the_grid_and_the_tuning() -> None:
    """Tables tell the variants apart, whatever the number of bits."""
    assert Quantize(bits=4).label == "quantize"
    assert Quantize(symmetric=True, per_channel=True, epochs=1).label == "quantize-symmetric-per_channel-ft1"
