"""Weight noise: of the announced size in every layer, the same direction at every strength; shifts of mean filters."""

import pytest
import torch
from torch import Tensor, nn

from tests.attack_contract import AttackContract, granted_view
from tests.victims import Victim, marked
from wmarena.attacks.base import Attack
from wmarena.attacks.compression.channels import WEIGHTED
from wmarena.attacks.tuning.weight_noise import WeightNoise
from wmarena.schemes.uchida import Uchida


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameter name -> weight of every convolution and linear layer."""
    return {f"{name}.weight": m.weight.detach() for name, m in model.named_modules() if isinstance(m, WEIGHTED)}


def run(attack: WeightNoise, victim: Victim, seed: int = 0) -> nn.Module:
    """The suspect."""
    suspect = attack(victim.model, granted_view(attack, victim, seed=seed))
    assert isinstance(suspect, nn.Module)
    return suspect


class TestWeightNoise(AttackContract):
    """On the network with batch norm."""

    workload = "digits_cnn"

    @pytest.fixture
    def attack(self) -> Attack:
        return WeightNoise(noise=0.05)

    def test_nothing_but_weights_changes(self, attack: Attack, victim: Victim) -> None:
        """Biases, norms and statistics are bit-equal."""
        suspect = attack(victim.model, granted_view(attack, victim))

        noisy = weights(victim.model)
        after = suspect.state_dict()
        assert len(noisy) == 4
        assert all(torch.equal(t, after[n]) for n, t in victim.model.state_dict().items() if n not in noisy)


class TestShift(AttackContract):
    """Shifting in the published settings but for fewer epochs, which do not heal what it ruins."""

    workload = "digits_cnn"
    min_accuracy = 0.0

    @pytest.fixture
    def attack(self) -> Attack:
        return WeightNoise(shift=1.5, noise=1.0, epochs=2, lr=1e-2)


@pytest.fixture
def victim() -> Victim:
    """A network with batch norm whose mean filter is marked."""
    return marked("digits_cnn", Uchida(bits=32))


@pytest.mark.parametrize("strength", [0.01, 0.5])
def test_noise_has_the_announced_size_in_every_layer(victim: Victim, strength: float) -> None:
    """Its standard deviation is ``noise`` times the layer's own, its mean zero, within sampling error."""
    suspect = run(WeightNoise(noise=strength), victim)

    after = weights(suspect)
    for name, old in weights(victim.model).items():
        relative = (after[name] - old) / old.std(correction=0)
        error = 5 / old.numel() ** 0.5
        assert float(relative.std()) == pytest.approx(strength, rel=error)
        assert float(relative.mean()) == pytest.approx(0.0, abs=error * strength)


def test_strengths_share_a_direction_and_seeds_do_not(victim: Victim) -> None:
    """Twice the strength is twice the same noise; layers and seeds have their own."""
    small, large, other = (run(WeightNoise(noise=s), victim, seed=seed) for s, seed in ((0.1, 0), (0.2, 0), (0.1, 1)))
    noises = [{n: w - weights(victim.model)[n] for n, w in weights(m).items()} for m in (small, large, other)]

    for name in noises[0]:
        assert torch.allclose(2 * noises[0][name], noises[1][name], atol=1e-6)
        assert not torch.allclose(noises[0][name], noises[2][name], atol=1e-3)


def test_no_noise_changes_nothing(victim: Victim) -> None:
    """Strength zero is the victim."""
    suspect = run(WeightNoise(noise=0.0), victim)

    assert all(torch.equal(a, b) for a, b in zip(victim.model.parameters(), suspect.parameters(), strict=True))


def test_shift_takes_the_mean_filter_from_every_filter(victim: Victim) -> None:
    """What is left of the mean filter is 1 - shift of it, differences of filters stay, linear layers are untouched."""
    suspect = run(WeightNoise(noise=0.0, shift=1.5), victim)

    after = weights(suspect)
    for name, old in weights(victim.model).items():
        if old.dim() == 2:
            assert torch.equal(old, after[name])
            continue
        assert torch.allclose(after[name].mean(dim=0), -0.5 * old.mean(dim=0), atol=1e-6)
        assert torch.allclose(after[name][1:] - after[name][:-1], old[1:] - old[:-1], atol=1e-6)


def test_shift_turns_a_mark_in_the_mean_filter_upside_down(victim: Victim) -> None:
    """Bits that are signs of projections of the mean filter are all read wrong, so the mark is not found."""
    suspect = run(WeightNoise(noise=0.0, shift=1.5), victim)

    assert victim.judge(victim.model).k == 32
    assert victim.judge(suspect).k == 0
    assert not victim.judge(suspect).verdict


def test_shift_without_convolutions_is_an_error() -> None:
    """The message says what to do on a network of dense layers."""
    with pytest.raises(ValueError, match="use shift: 0"):
        run(WeightNoise(shift=1.5), marked("digits_mlp", Uchida(bits=32)))


def test_labels_name_the_variant() -> None:
    """Tables tell noise from shifting, whatever the strength."""
    assert WeightNoise(noise=0.5).label == "weight_noise"
    assert WeightNoise(shift=1.5, epochs=10).label == "weight_noise-shift-ft10"
