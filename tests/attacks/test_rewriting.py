"""Functionality-equivalent rewrites: free of cost, blind to answers, fatal to marks read at fixed positions."""

import copy
import math
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from tests.attack_contract import AttackContract, granted_view
from tests.channel_networks import largest_change
from tests.victims import Victim, clean_model, marked
from wmarena.attacks.base import Attack, Finding
from wmarena.attacks.equivalence.rewriting import Permute, Rescale, partial_cycle
from wmarena.schemes.adi.scheme import Adi
from wmarena.schemes.base import Scheme
from wmarena.schemes.commitment import model_digest
from wmarena.schemes.mtlsign.scheme import MTLSign
from wmarena.schemes.symmetry.groups import channel_groups
from wmarena.schemes.symmetry.realign import realign
from wmarena.schemes.uchida import Uchida

ADI = Adi(n_triggers=40, epochs=2)
UCHIDA = Uchida(bits=64)
MTLSIGN = MTLSign(
    n=100, steps=48, lr=2e-3, batch_size=50, mark_batch=50, refresh=16, tuning_steps=5, check_every=24, hidden=64
)
REWRITES = [Permute(), Permute(fraction=0.1), Rescale(factor=1.1), Rescale(), Rescale(factor=10.0)]


def described(attack: Attack) -> str:
    """Name and strength, as a test id."""
    return f"{attack.name}-{attack.strength}"


def attacked(attack: Attack, victim: Victim, **changes: int) -> Finding:
    """What the attack returns."""
    outcome = attack(victim.model, granted_view(attack, victim, **changes))
    assert isinstance(outcome, Finding)
    return outcome


def few_inputs(victim: Victim) -> Tensor:
    """(8, 1, 24, 24) normalised validation images."""
    return next(iter(victim.arena.val.in_order(8)))[0]


def with_permuted(victim: Victim, *names: str) -> nn.Module:
    """A copy of the victim in which only the groups that the layers ``names`` write are permuted, by one cycle."""
    model = copy.deepcopy(victim.model)
    for group in channel_groups(model, few_inputs(victim)):
        if any(group.covers(f"{name}.weight", 0) for name in names):
            group.permute(torch.arange(group.width).roll(1))
    assert largest_change(model, victim.model) > 0
    return model


class TestPermute(AttackContract):
    workload: ClassVar[str] = "digits_cnn"
    verdict: ClassVar[bool | None] = False

    @pytest.fixture
    def scheme(self) -> Scheme:
        return UCHIDA

    @pytest.fixture
    def attack(self) -> Attack:
        return Permute()


class TestRescale(AttackContract):
    verdict: ClassVar[bool | None] = True
    """The mean filter's signs survive factors between a half and two."""

    @pytest.fixture
    def attack(self) -> Attack:
        return Rescale()


@pytest.mark.parametrize("attack", REWRITES, ids=described)
@pytest.mark.parametrize("workload", ["digits_cnn", "digits_mlp"])
def test_answers_stay_and_weights_do_not(workload: str, attack: Attack) -> None:
    """Logits on the adversary's inputs differ by less than 1e-4, recorded; the weights are others."""
    victim = marked(workload, Uchida(bits=32))
    found = attacked(attack, victim)
    inputs = torch.cat([x for x, _ in victim.arena.test.in_order(64)])[:64]
    with torch.no_grad():
        difference = float((victim.model(inputs) - found.model(inputs)).abs().max())

    assert difference < 1e-4
    assert largest_change(victim.model, found.model) > 1e-3
    assert 0 <= found.details["max_logit_difference"] < 1e-4
    assert found.details["channels"] > 0
    assert victim.accuracy(found.model) == victim.accuracy(victim.model)


@pytest.mark.parametrize("attack", REWRITES, ids=described)
def test_black_box_marks_do_not_notice(attack: Attack) -> None:
    """A verdict that is read from answers is the same in every field."""
    victim = marked("digits_cnn", ADI)
    found = attacked(attack, victim)

    assert victim.judge(victim.model).verdict
    assert victim.judge(found.model) == victim.judge(victim.model)


@pytest.mark.parametrize("attack", [Permute(fraction=0.0), Rescale(factor=1.0)], ids=described)
def test_no_strength_changes_no_bit(attack: Attack) -> None:
    """No channel moved, or factors of one: the same weights."""
    victim = marked("digits_cnn", UCHIDA)
    found = attacked(attack, victim)

    assert model_digest(victim.model.state_dict()) == model_digest(found.model.state_dict())
    assert found.details["channels"] == 0
    assert found.details["max_logit_difference"] == 0


@pytest.mark.parametrize("attack", REWRITES, ids=described)
@pytest.mark.parametrize("scheme", [UCHIDA, MTLSIGN], ids=["uchida", "mtlsign"])
def test_realigning_restores_white_box_marks(scheme: Scheme, attack: Attack) -> None:
    """Whatever the rewrite did to the statistic, the realigned suspect has the marked model's own, and its weights."""
    victim = marked("digits_cnn", scheme)
    found = attacked(attack, victim)
    aligned, cosine = realign(found.model, victim.model, few_inputs(victim))

    assert victim.judge(aligned).statistic == victim.judge(victim.model).statistic
    assert largest_change(victim.model, aligned) < 1e-6
    assert cosine == pytest.approx(1.0)


def test_deepest_stage_carries_the_secret_task() -> None:
    """MTLSign's verdict flips when the deepest stage that its head reads is permuted, not when the first one is."""
    victim = marked("digits_cnn", MTLSIGN)

    assert victim.judge(victim.model).verdict
    assert victim.judge(with_permuted(victim, "stage1.0")).verdict
    assert not victim.judge(with_permuted(victim, "stage3.0")).verdict
    assert not victim.judge(attacked(Permute(), victim).model).verdict


def test_standardised_features_do_not_notice_scales() -> None:
    """MTLSign reads standardised features, so no scale of channels changes an answer of its head."""
    victim = marked("digits_cnn", MTLSIGN)

    assert victim.judge(attacked(Rescale(factor=10.0), victim).model).statistic == 1.0


def test_mean_filter_minds_inputs_and_not_outputs() -> None:
    """Uchida's mean over output channels is the same in any order of outputs; permuted inputs lose the bits."""
    victim = marked("digits_cnn", UCHIDA)
    assert victim.key.public["layer"] == "stage2.0.weight"

    assert victim.judge(with_permuted(victim, "stage2.0", "stage3.0")).statistic == 1.0
    assert not victim.judge(with_permuted(victim, "stage1.0")).verdict


def test_mean_filter_minds_scales() -> None:
    """Factors up to ten bend Uchida's mean filter: some bits flip, which mere permuted outputs never do."""
    victim = marked("digits_cnn", UCHIDA)

    assert victim.judge(attacked(Rescale(factor=10.0), victim).model).statistic < 1.0


def test_share_of_every_group_moves() -> None:
    """Half of the channels of each group are elsewhere, the others where they were."""
    victim = marked("digits_cnn", UCHIDA)
    found = attacked(Permute(fraction=0.5), victim)
    moved = [
        int((before.running_mean != after.running_mean).sum())
        for before, after in zip(victim.model.modules(), found.model.modules(), strict=True)
        if isinstance(before, nn.BatchNorm2d) and isinstance(after, nn.BatchNorm2d)
    ]

    assert moved == [8, 16, 32]
    assert found.details["channels"] == 56


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.29, 0.5, 1.0])
def test_cycle_moves_exactly_its_share(fraction: float) -> None:
    """floor(fraction * 100) channels move, along one cycle, and all others stay."""
    order = partial_cycle(100, fraction, torch.Generator().manual_seed(1))
    moved = (order != torch.arange(100)).nonzero().flatten().tolist()
    orbit = []
    if moved:
        place = moved[0]
        while place not in orbit:
            orbit.append(place)
            place = int(order[place])

    assert sorted(order.tolist()) == list(range(100))
    assert len(moved) == round(fraction * 100)
    assert sorted(orbit) == moved


@pytest.mark.parametrize("factor", [1.1, 2.0, 10.0])
def test_factors_are_log_uniform(factor: float) -> None:
    """The factors lie in [1/r, r], reach towards both ends, and are 1 in the geometric mean."""
    victim = marked("digits_mlp", Uchida(bits=32))
    found = attacked(Rescale(factor=factor), victim)
    ratio = found.model.hidden1.bias / victim.model.hidden1.bias
    logs = ratio.detach().log() / math.log(factor)

    assert -1.001 < logs.min() < -0.9
    assert 0.9 < logs.max() < 1.001
    assert abs(logs.mean()) < 4 / math.sqrt(3 * 256)


@pytest.mark.parametrize("attack", [Permute(), Rescale()], ids=described)
def test_another_seed_rewrites_otherwise(attack: Attack) -> None:
    """The rewrite is drawn from the adversary's seed."""
    victim = marked("digits_mlp", Uchida(bits=32))
    digests = {model_digest(attacked(attack, victim, seed=seed).model.state_dict()) for seed in (0, 1)}

    assert len(digests) == 2


@pytest.mark.parametrize("attack", [Permute(), Rescale()], ids=described)
def test_network_without_hidden_channels_is_an_error(attack: Attack) -> None:
    """A linear classifier has nothing to rewrite, which is an error and not a suspect."""
    victim = marked("digits_mlp", Uchida(bits=32))
    linear = nn.Sequential(nn.Flatten(), nn.Linear(24 * 24, 10))

    with pytest.raises(ValueError, match="expected a network with"):
        attack(linear, granted_view(attack, victim))


def test_clean_models_stay_clean() -> None:
    """A rewrite puts no mark anywhere: the owner's key is not found in a permuted clean model either."""
    victim = marked("digits_cnn", UCHIDA)
    attack = Permute()
    outcome = attack(clean_model("digits_cnn"), granted_view(attack, victim))
    assert isinstance(outcome, Finding)

    assert not victim.judge(outcome.model).verdict
