"""WILD: erasing, the penalty on features, and the removal of a backdoor."""

import copy
import math
from dataclasses import replace
from statistics import fmean

import pytest
import torch
from torch import Tensor, nn

from tests.attack_contract import AttackContract, granted_view
from tests.victims import Victim, arena, marked
from wmarena.attacks.base import Attack
from wmarena.attacks.fine_tuning import sgd
from wmarena.attacks.tuning.finetune import FineTune
from wmarena.attacks.tuning.wild import Wild, _entering, cross_entropy, inside, jensen_shannon, rectangles
from wmarena.experiments.workloads.networks.lenet import LeNet5
from wmarena.schemes.adi.scheme import Adi
from wmarena.schemes.params import ConfigError
from wmarena.schemes.prf import subseed

BACKDOOR = Adi(n_triggers=50, lr=3e-3)
BATCH = 23
"""The adversary's 92 digits are four batches of it; a last batch of few would ruin batch norm's statistics."""


class TestWild(AttackContract):
    min_accuracy = 0.7

    @pytest.fixture
    def attack(self) -> Attack:
        return Wild(epochs=3, batch_size=BATCH)


class TestWildOnTwoLosses(AttackContract):
    """On the network with batch norm, where the views differ most."""

    workload = "digits_cnn"
    min_accuracy = 0.3

    @pytest.fixture
    def attack(self) -> Attack:
        return Wild(penalty="js", clean_loss=True, p_erase=0.5, epochs=3, batch_size=BATCH, lr=2e-3)


@pytest.mark.training
def test_wild_removes_a_backdoor_that_survives_fine_tuning() -> None:
    """At the same rate and length most answers to triggers survive fine-tuning and fall to chance under WILD.

    Three adversaries, because one network's last bits decide whether one run keeps half of the answers or all.
    """
    victim = marked("digits_cnn", BACKDOOR)
    tuned, suspects = (
        [attack(victim.model, granted_view(attack, victim, seed=seed)) for seed in range(3)]
        for attack in (FineTune(epochs=20, lr=3e-3, batch_size=BATCH), Wild(epochs=20, lr=3e-3, batch_size=BATCH))
    )
    kept, left = ([victim.judge(m) for m in models] for models in (tuned, suspects))

    # Chance is 0.1; tuned networks were seen between 0.7 and 0.9 on average, WILD's between 0.08 and 0.16 each.
    assert sum(v.verdict for v in kept) >= 2
    assert fmean(v.statistic for v in kept) > 0.5
    assert not any(v.verdict for v in left)
    assert fmean(v.statistic for v in left) < 0.25
    assert fmean(victim.accuracy(m) for m in suspects) > victim.accuracy(victim.model) - 0.2


def test_without_erasing_and_penalty_it_is_fine_tuning() -> None:
    """``p_erase: 0, penalty: none`` gives the weights of ``Workload.fit`` with the same batches, bit for bit."""
    victim = marked("digits_mlp", BACKDOOR)
    attack = Wild(penalty="none", p_erase=0.0, epochs=2, batch_size=BATCH)
    suspect = attack(victim.model, granted_view(attack, victim))
    view, tuned = granted_view(attack, victim), copy.deepcopy(victim.model)
    recipe = sgd(epochs=2, lr=attack.lr, batch_size=BATCH)
    view.task.fit(tuned, view.data, recipe, seed=subseed(view.seed, "wild"))

    assert all(torch.equal(a, b) for a, b in zip(suspect.parameters(), tuned.parameters(), strict=True))


@pytest.mark.parametrize(
    "change", [{"penalty": "none"}, {"penalty": "js"}, {"beta": 5.0}, {"temperature": 2.0}, {"clean_loss": True}]
)
def test_every_term_of_the_loss_matters(change: dict[str, object]) -> None:
    """Each field of the loss changes the suspect."""
    victim = marked("digits_mlp", BACKDOOR)
    plain = Wild(epochs=1, batch_size=BATCH)
    other = Wild(epochs=1, batch_size=BATCH, **change)  # type: ignore[arg-type]

    weights = [next(a(victim.model, granted_view(a, victim)).parameters()) for a in (plain, other)]

    assert not torch.equal(*weights)


def test_zero_beta_is_no_penalty() -> None:
    """With weight zero neither kind of distance does anything."""
    victim = marked("digits_mlp", BACKDOOR)
    attacks = [Wild(epochs=1, penalty="none"), Wild(epochs=1, beta=0.0), Wild(epochs=1, penalty="js", beta=0.0)]

    weights = [next(a(victim.model, granted_view(a, victim)).parameters()) for a in attacks]

    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


# What the penalty compares.


def test_features_are_what_the_output_layer_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """phi is the last hidden layer, over T, of the whole and of the erased images; the hook is gone afterwards."""
    victim = marked("digits_mlp", BACKDOOR)
    attack = Wild(epochs=1, batch_size=BATCH, temperature=2.0)
    compared: list[tuple[Tensor, Tensor]] = []

    def spy(clean: Tensor, erased: Tensor) -> Tensor:
        compared.append((clean.detach(), erased.detach()))
        return cross_entropy(clean, erased)

    monkeypatch.setattr("wmarena.attacks.tuning.wild.cross_entropy", spy)
    view = granted_view(attack, victim)
    suspect = attack(victim.model, view)

    # The first step still has the victim's weights.
    inputs, _ = next(view.data.batches(BATCH, seed=subseed(view.seed, "wild"), epoch=0))
    views = (inputs, attack.erased(inputs, view, step=0))
    with torch.no_grad():
        expected = [victim.model.taps(x)[-1] / 2 for x in views]
    assert all(torch.equal(a, b) for a, b in zip(compared[0], expected, strict=True))
    assert not victim.arena.task.head(suspect)._forward_pre_hooks


def test_features_of_lenet_are_its_rectified_dense_layer() -> None:
    """Also where the network has no pooling before its head."""
    network = LeNet5()
    inputs = torch.randn(3, 1, 28, 28)
    with _entering(network.head) as entered:
        network(inputs)

    assert torch.equal(entered[0], network.taps(inputs)[-1])
    assert entered[0].shape == (3, 500)
    assert bool((entered[0] >= 0).all())


def test_jensen_shannon_is_a_bounded_symmetric_distance() -> None:
    """Zero for equal views, the same from both sides, ln 2 for opposite ones."""
    first, second = torch.randn(2, 7, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    opposite = torch.tensor([[60.0, 0.0], [0.0, 60.0]], dtype=torch.float64)

    assert float(jensen_shannon(first, first)) == pytest.approx(0.0, abs=1e-12)
    assert float(jensen_shannon(first, second)) == pytest.approx(float(jensen_shannon(second, first)), rel=1e-12)
    assert 0 < float(jensen_shannon(first, second)) < math.log(2)
    assert float(jensen_shannon(opposite, opposite.flip(1))) == pytest.approx(math.log(2), rel=1e-9)


def test_jensen_shannon_by_hand() -> None:
    """p = (3/4, 1/4), q = (1/4, 3/4): ln 2 minus their entropy plus that of m, halved as the formula says."""
    first = torch.tensor([[math.log(3.0), 0.0]])
    p, m = (0.75, 0.25), (0.5, 0.5)
    by_hand = sum(a * math.log(a / b) for a, b in zip(p, m, strict=True))

    assert float(jensen_shannon(first, first.flip(1))) == pytest.approx(by_hand, rel=1e-5)


def test_cross_entropy_is_least_for_equal_views() -> None:
    """Its least value is the entropy of the whole image's features, where its gradient vanishes."""
    clean = torch.randn(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    p = clean.softmax(dim=1)
    entropy = float(-(p * p.log()).sum(dim=1).mean())
    erased = clean.clone().requires_grad_()
    value = cross_entropy(clean, erased)
    (gradient,) = torch.autograd.grad(value, erased)

    assert value.item() == pytest.approx(entropy, rel=1e-12)
    assert float(gradient.abs().max()) < 1e-12
    assert float(cross_entropy(clean, clean.flip(1))) > entropy


def test_cross_entropy_moves_the_erased_view_alone() -> None:
    """The whole image's features are a constant."""
    clean, erased = (torch.randn(4, 3, generator=torch.Generator().manual_seed(i), requires_grad=True) for i in (3, 4))
    cross_entropy(clean, erased).backward()

    assert clean.grad is None
    assert erased.grad is not None


# What is erased.


def test_rectangles_have_the_announced_distribution() -> None:
    """Share of the image uniform, log of the aspect symmetric in its range, every place possible, all inside."""
    boxes = rectangles(40_000, 64, 64, (0.02, 0.3), 0.3, generator=torch.Generator().manual_seed(5)).double()
    top, left, height, width = boxes.unbind(dim=1)
    area, ratio = height * width / 64**2, (height / width).log()

    assert float(area.mean()) == pytest.approx(0.16, abs=0.005)
    assert float(area.var()) == pytest.approx(0.28**2 / 12, rel=0.05)
    assert float(ratio.mean()) == pytest.approx(0.0, abs=0.02)
    assert float(ratio.var()) == pytest.approx((2 * math.log(0.3)) ** 2 / 12, rel=0.05)
    assert bool(((top >= 0) & (left >= 0) & (top + height <= 64) & (left + width <= 64)).all())
    # Uniform places reach all corners.
    assert {int(v) for v in (top.min(), left.min())} == {0}
    assert {int(v) for v in ((top + height).max(), (left + width).max())} == {64}
    assert float((top / (64 - height).clamp_min(1)).mean()) == pytest.approx(0.5, abs=0.02)


def test_a_shape_that_cannot_fit_is_cut_to_the_image() -> None:
    """Erasing everything is possible: no rectangle leaves the image."""
    boxes = rectangles(100, 8, 24, (1.0, 1.0), 1.0, generator=torch.Generator().manual_seed(6))

    assert int(boxes[:, 2].max()) == 8
    assert bool((boxes[:, 1] + boxes[:, 3] <= 24).all())


def test_inside_marks_the_pixels_of_a_rectangle() -> None:
    """Top, left, height, width; nothing for height zero."""
    masks = inside(torch.tensor([[1, 2, 2, 1], [0, 0, 0, 0]]), 4, 5)

    assert masks.shape == (2, 1, 4, 5)
    assert masks[0, 0].nonzero().tolist() == [[1, 2], [2, 2]]
    assert not bool(masks[1].any())


@pytest.mark.parametrize("p_erase", [0.0, 0.5, 1.0])
def test_the_announced_share_of_images_is_erased(p_erase: float) -> None:
    """The others are bit-equal; new pixels are grey levels as normalised inputs, uniform over their range."""
    victim = marked("digits_mlp", BACKDOOR)
    attack = Wild(p_erase=p_erase, area_low=0.1, area_high=0.3)
    view = granted_view(attack, victim)
    inputs = view.task.to_inputs(victim.arena.train.raw()[0][:1000])

    erased = attack.erased(inputs, view, step=4)

    changed = (erased != inputs).flatten(1).any(dim=1)
    assert float(changed.float().mean()) == pytest.approx(p_erase, abs=0.05)
    assert torch.equal(erased[~changed], inputs[~changed])
    raw = torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(256, 1, 24, 24)
    levels = view.task.to_inputs(raw)[:, 0, 0, 0]
    new = erased[erased != inputs]
    assert bool(torch.isin(new, levels).all())
    if p_erase:
        middle = float(levels[0] + levels[-1]) / 2
        assert float(new.mean()) == pytest.approx(middle, abs=0.05)
        assert float((erased != inputs).float().mean()) == pytest.approx(0.2 * p_erase, abs=0.02)


def test_erasing_depends_on_seed_and_step_alone() -> None:
    """So that a resumed attack erases the same; another step or seed erases something else."""
    victim = marked("digits_mlp", BACKDOOR)
    attack = Wild()
    inputs = victim.arena.task.to_inputs(victim.arena.train.raw()[0][:20])

    def erased(seed: int, step: int) -> Tensor:
        return attack.erased(inputs, granted_view(attack, victim, seed=seed), step)

    torch.manual_seed(1)
    first = erased(0, 0)
    torch.manual_seed(2)
    assert torch.equal(first, erased(0, 0))
    assert not torch.equal(first, erased(0, 1))
    assert not torch.equal(first, erased(1, 0))


class Padding:
    """The digits' task with a black border of two pixels around its inputs."""

    def __init__(self, victim: Victim) -> None:
        self._task = victim.arena.task
        self.info = self._task.info

    def to_inputs(self, raw: Tensor) -> Tensor:
        return self._task.to_inputs(raw).new_zeros(len(raw), 1, 28, 28) + nn.functional.pad(
            self._task.to_inputs(raw), (2, 2, 2, 2)
        )


def test_a_workloads_border_is_not_part_of_the_image() -> None:
    """Where a workload pads its images the rectangle covers the image, never the border."""
    victim = marked("digits_mlp", BACKDOOR)
    attack = Wild(area_low=1.0, area_high=1.0, aspect=1.0)
    view = granted_view(attack, victim)
    view.task = Padding(victim)  # type: ignore[assignment]
    inputs = torch.full((3, 1, 28, 28), 9.0)

    erased = attack.erased(inputs, view, step=0)

    kept = (erased == 9.0)[:, 0]
    assert bool(kept[:, :2].all())
    assert bool(kept[:, :, -2:].all())
    assert not bool(kept[:, 2:-2, 2:-2].any())


def test_fields_that_contradict_each_other_are_refused() -> None:
    """The least share of the image cannot exceed the largest."""
    with pytest.raises(ConfigError, match="area_low"):
        Wild(area_low=0.5)


def test_erasing_needs_images() -> None:
    """WILD does not apply to text."""
    info = replace(arena("digits_mlp").task.info, kind="sentiment", input_shape=(200,))

    assert "needs images" in str(Wild().applicable(BACKDOOR, info))
    assert Wild().applicable(BACKDOOR, arena("digits_mlp").task.info) is None
