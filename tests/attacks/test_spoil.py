"""Spoiling: with the key the mark can be removed at little cost; without joint training it returns."""

import copy
from dataclasses import replace

import pytest
import torch

from tests.attack_contract import AttackContract, granted_view
from tests.victims import NewestOnly, Victim, arena, marked
from wmarena.attacks.base import Attack
from wmarena.attacks.knowledge import NotGranted
from wmarena.attacks.known_key.spoil import Spoil, redraw_carriers
from wmarena.schemes.adi.scheme import Adi
from wmarena.schemes.base import Carrier, Scheme
from wmarena.schemes.mtlsign.scheme import MTLSign, MTLSignFixed
from wmarena.schemes.uchida import Uchida

BACKDOOR = Adi(n_triggers=50, lr=3e-3)
SIDE_TASK = MTLSign(n=60, steps=150, lr=1e-3, head_lr=3e-3, lambda2=0.0, check_every=50)
FIXED_HEAD = MTLSignFixed(n=60, steps=100, lr=1e-3, lambda2=0.0, check_every=50)
WEIGHTS = Uchida(bits=64)


class TestJointSpoil(AttackContract):
    verdict = False

    @pytest.fixture
    def scheme(self) -> Scheme:
        return Adi(n_triggers=30, lr=2e-3)

    @pytest.fixture
    def attack(self) -> Attack:
        return Spoil(steps=30, check_every=5)


class TestSequentialSpoil(AttackContract):
    verdict = False
    min_accuracy = 0.0

    @pytest.fixture
    def attack(self) -> Attack:
        return Spoil(mode="sequential", recovery=3)


class TestFlippingSpoil(AttackContract):
    verdict = False

    @pytest.fixture
    def scheme(self) -> Scheme:
        return MTLSignFixed(n=40, steps=100, lr=1e-3, lambda2=0.0, check_every=50)

    @pytest.fixture
    def attack(self) -> Attack:
        return Spoil(labels="flip", steps=60)


@pytest.mark.parametrize(
    ("workload", "scheme"),
    [("digits_cnn", BACKDOOR), ("digits_cnn", SIDE_TASK), ("digits_mlp", FIXED_HEAD), ("digits_cnn", WEIGHTS)],
    ids=["adi", "mtlsign", "mtlsign_fixed", "uchida"],
)
@pytest.mark.training
def test_joint_spoiling_removes_every_kind_of_mark(workload: str, scheme: Scheme) -> None:
    """With default settings: verdict 1 before, 0 after, at a loss of at most five points of test accuracy."""
    victim = marked(workload, scheme)
    attack = Spoil()

    suspect = attack(victim.model, granted_view(attack, victim))

    assert victim.judge(victim.model).verdict
    assert not victim.judge(suspect).verdict
    assert victim.accuracy(victim.model) - victim.accuracy(suspect) <= 0.05


def test_after_sequential_spoiling_the_mark_comes_back() -> None:
    """Recovery restores task and mark alike, while a jointly spoilt mark stays removed at higher accuracy."""
    victim = marked("digits_cnn", BACKDOOR)
    attacks = {
        "spoilt": Spoil(mode="sequential", labels="random", recovery=0),
        "recovered": Spoil(mode="sequential", labels="random"),
        "joint": Spoil(labels="random", steps=50),
    }

    suspects = {name: a(victim.model, granted_view(a, victim)) for name, a in attacks.items()}
    verdicts = {name: victim.judge(suspect) for name, suspect in suspects.items()}
    mark = {name: verdict.statistic for name, verdict in verdicts.items()}
    task = {name: victim.accuracy(suspect) for name, suspect in suspects.items()}

    assert {name: v.verdict for name, v in verdicts.items()} == {"spoilt": False, "recovered": True, "joint": False}
    assert task["spoilt"] < task["recovered"] - 0.1
    assert mark["spoilt"] < mark["recovered"] - 0.1
    assert mark["joint"] < mark["recovered"] - 0.1
    assert task["joint"] > task["spoilt"] + 0.1


@pytest.mark.training
def test_weight_grows_until_the_mark_is_lost() -> None:
    """A deeply anchored mark survives a constant weight and falls to a growing one in the same number of steps."""
    victim = marked("digits_cnn", WEIGHTS)
    constant, growing = Spoil(w_growth=1.0, steps=150), Spoil(steps=150)

    verdicts = [victim.judge(a(victim.model, granted_view(a, victim))).verdict for a in (constant, growing)]

    assert verdicts == [True, False]


@pytest.mark.training
def test_longer_spoiling_is_never_less_accurate_on_validation_data() -> None:
    """The best checkpoint that fails the test is returned, so a larger budget cannot make the attack worse."""
    victim = marked("digits_cnn", BACKDOOR)
    scores = []
    for steps in (80, 120, 160):
        attack = Spoil(steps=steps)
        view = granted_view(attack, victim)
        suspect = attack(victim.model, view)
        assert not victim.judge(suspect).verdict
        scores.append(view.task.score(suspect, view.val))

    assert scores == sorted(scores)


class Offset(Uchida):
    """Carries its mark in three scalars of the first layer."""

    name = "offset"

    def carriers(self, model: torch.nn.Module, key: object) -> list[Carrier]:
        name, tensor = next(iter(model.named_parameters()))
        mask = torch.zeros_like(tensor, dtype=torch.bool)
        mask.view(-1)[:3] = True
        return [Carrier(name, mask)]


def test_carriers_take_their_tensors_own_distribution() -> None:
    """Only the named scalars change, to values on the scale of the others, and the seed alone decides which."""
    victim = marked("digits_mlp", Uchida(bits=32))
    victim = Victim(victim.arena, Offset(bits=32), victim.key, victim.model)
    models = [copy.deepcopy(victim.model) for _ in range(2)]
    for model in models:
        first = next(iter(model.parameters()))
        with torch.no_grad():
            first.view(-1)[:3] = 1000.0
        redraw_carriers(model, granted_view(Spoil(), victim))

    new, again = (next(iter(m.parameters())).detach().flatten() for m in models)
    old = next(iter(victim.model.parameters())).detach().flatten()
    assert torch.equal(new, again)
    assert torch.equal(old[3:], new[3:])
    assert bool((new[:3].abs() < 10 * old.std()).all())


def test_runner_up_labels_cost_less_than_random_ones() -> None:
    """The network's own second choice for each trigger is the cheapest wrong answer to teach."""
    victim = marked("digits_cnn", BACKDOOR)
    loss = []
    for labels in ("runner_up", "random"):
        attack = Spoil(labels=labels, steps=60)
        suspect = attack(victim.model, granted_view(attack, victim))
        assert not victim.judge(suspect).verdict
        loss.append(victim.accuracy(victim.model) - victim.accuracy(suspect))

    assert loss[0] < loss[1]


@pytest.mark.parametrize("labels", ["runner_up", "random", "flip"])
def test_wrong_labels_are_wrong(labels: str) -> None:
    """Whatever the choice, no trigger keeps its own label."""
    victim = marked("digits_mlp", Adi(n_triggers=30, lr=2e-3))
    attack = Spoil(labels=labels)
    view = granted_view(attack, victim)
    raw, right = victim.scheme.triggers(victim.key) or pytest.fail("a backdoor has triggers")

    wrong = attack._wrong(victim.model, view.task.to_inputs(raw), right, view)

    assert wrong.shape == right.shape
    assert not bool((wrong == right).any())
    assert 0 <= int(wrong.min()) <= int(wrong.max()) < 10


def test_schemes_without_hooks_are_named() -> None:
    """Spoiling applies to schemes that offer one of three hooks."""

    class Opaque(Uchida):
        name = "opaque"
        mark_loss = Scheme.mark_loss  # type: ignore[assignment]
        carriers = Scheme.carriers

    assert "none of the hooks" in str(Spoil().applicable(Opaque(), arena("digits_mlp").task.info))
    assert Spoil().applicable(Uchida(), arena("digits_mlp").task.info) is None


@pytest.mark.parametrize(("n_samples", "epochs", "steps"), [(92, 3, 12), (92, 1, 4), (69, 2, 6), (70, 2, 8), (5, 3, 3)])
def test_a_budget_is_so_many_batches(n_samples: int, epochs: int, steps: int) -> None:
    """A last partial batch is a step: as many steps as the granted passes have batches of 23, no fewer."""
    attack = Spoil(batch_size=23)

    assert attack.within(epochs, n_samples).steps == steps
    assert Spoil(batch_size=23, steps=2).within(epochs, n_samples).steps == 2
    sequential = Spoil(mode="sequential", batch_size=23).within(epochs, n_samples)
    assert sequential.recovery == epochs - max(1, epochs // 2)


@pytest.mark.parametrize("batch_size", [20, 23, 90, 100])
def test_a_shortened_spoiling_uses_its_budget_up(batch_size: int) -> None:
    """What the plan leaves of it runs, reads every sample as often as granted, and one step more is refused."""
    victim = marked("digits_mlp", Uchida(bits=32))
    attack = Spoil(batch_size=batch_size, w_growth=1.0)
    shortened = attack.within(2, 92)

    shortened(victim.model, granted_view(attack, victim, max_epochs=2))
    with pytest.raises(NotGranted, match="2 passes"):
        replace(shortened, steps=shortened.steps + 1)(victim.model, granted_view(attack, victim, max_epochs=2))


def test_interrupted_between_spoiling_and_recovery() -> None:
    """A run that is stopped in the recovery resumes there: spoiling's steps are not taken for epochs."""
    victim = marked("digits_cnn", BACKDOOR)
    attack = Spoil(mode="sequential", recovery=2)
    checkpoints = NewestOnly()
    first = attack(victim.model, granted_view(attack, victim, checkpoints=checkpoints))
    again = attack(victim.model, granted_view(attack, victim, checkpoints=checkpoints))

    assert max(checkpoints.states) > 10**6
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
