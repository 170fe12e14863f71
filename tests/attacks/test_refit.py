"""REFIT: a decaying rate, weights penalised by their importance, and other images with the victim's answers."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from tests.attack_contract import AttackContract, granted_view, make_view
from tests.victims import NewestOnly, Victim, arena, marked
from wmarena.attacks.base import Attack, Finding
from wmarena.attacks.knowledge import AuxiliaryData, NotGranted
from wmarena.attacks.tuning.finetune import FineTune
from wmarena.attacks.tuning.refit import ElasticPenalty, Refit, UnlabelledImages, fisher
from wmarena.experiments.workloads.networks.base import Network
from wmarena.schemes.adi.scheme import Adi
from wmarena.schemes.base import Cancelled, TaskInfo
from wmarena.schemes.params import ConfigError

BACKDOOR = Adi(n_triggers=50, lr=3e-3)
BATCH = 23
"""The adversary's 92 digits are four batches of it."""


class TestRefit(AttackContract):
    @pytest.fixture
    def attack(self) -> Attack:
        return Refit(epochs=3, batch_size=BATCH)


class TestRefitElastic(AttackContract):
    """On the network with batch norm."""

    workload = "digits_cnn"
    min_accuracy = 0.7

    @pytest.fixture
    def attack(self) -> Attack:
        return Refit(epochs=3, batch_size=BATCH, lr=0.02, ewc=10.0, fisher_samples=40)


class TestRefitUnlabelled(AttackContract):
    """With a new head, elastic weights and other images together."""

    min_accuracy = 0.5

    @pytest.fixture
    def attack(self) -> Attack:
        return Refit(variant="rtal", epochs=4, batch_size=BATCH, ewc=10.0, fisher_samples=30, unlabelled="digits_cnn")


def movement(victim: nn.Module, suspect: nn.Module) -> float:
    """Euclidean distance of all parameters."""
    pairs = zip(victim.parameters(), suspect.parameters(), strict=True)
    return float(sum((a - b).detach().square().sum() for a, b in pairs)) ** 0.5


@pytest.fixture
def victim() -> Victim:
    """A backdoored network without batch norm."""
    return marked("digits_mlp", BACKDOOR)


# The rate.


def test_the_rate_decays_as_announced(victim: Victim) -> None:
    """lr, lr, lr decay, lr decay, lr decay^2 with a decay every other epoch."""
    attack = Refit(lr=0.04, decay=0.5, decay_every=2, epochs=5, batch_size=BATCH)
    view = granted_view(attack, victim)
    rates: list[float] = []
    view.log = lambda step, **metrics: rates.append(metrics["lr"])

    attack(victim.model, view)

    assert rates == pytest.approx([0.04, 0.04, 0.02, 0.02, 0.01])


def test_the_rate_of_the_optimiser_decays(victim: Victim) -> None:
    """With a decay of nearly zero the weights stay where the first epoch left them, momentum or not."""
    slow = Refit(decay=1e-9, epochs=2, batch_size=100, weight_decay=0.0)
    once = Refit(decay=1e-9, epochs=1, batch_size=100, weight_decay=0.0)

    twice, first = (a(victim.model, granted_view(a, victim)) for a in (slow, once))

    assert movement(victim.model, first) > 1e-4
    assert movement(first, twice) < 1e-3 * movement(victim.model, first)


def test_shorter_runs_are_beginnings_of_longer_ones(victim: Victim) -> None:
    """Nothing depends on the number of epochs: the first epoch's loss is the same."""
    losses: list[list[float]] = []
    for epochs in (1, 4):
        attack = Refit(epochs=epochs, batch_size=BATCH)
        view, own = granted_view(attack, victim), []
        view.log = lambda step, own=own, **metrics: own.append(metrics["loss"])
        attack(victim.model, view)
        losses.append(own)

    assert losses[0] == losses[1][:1]


def test_a_large_rate_removes_what_a_small_one_leaves() -> None:
    """Twenty epochs of fine-tuning at 1e-3 keep the triggers' answers; REFIT's rate loses half of them."""
    victim = marked("digits_cnn", BACKDOOR)
    tuning = FineTune(epochs=20, batch_size=BATCH)
    refit = Refit(lr=0.1, epochs=20, batch_size=BATCH)

    tuned, suspect = (a(victim.model, granted_view(a, victim)) for a in (tuning, refit))

    assert victim.judge(tuned).statistic > 0.95
    assert victim.judge(suspect).statistic < 0.5
    assert victim.accuracy(suspect) > victim.accuracy(victim.model) - 0.1


class Dropping(Network):
    """A network that drops half of its hidden units in training."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(24 * 24, 32)
        self.head = nn.Linear(32, 10)

    def taps(self, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (nn.functional.dropout(self.hidden(inputs.flatten(1)).relu(), training=self.training),)


def test_a_network_with_dropout_resumes_bit_equal(victim: Victim) -> None:
    """What is dropped depends on the seed and the epoch, not on where a run was stopped."""
    attack = Refit(epochs=3, batch_size=BATCH)
    torch.manual_seed(7)
    model = Dropping()
    checkpoints = NewestOnly(stop_at=2)
    undisturbed = attack(model, granted_view(attack, victim))
    with pytest.raises(Cancelled):
        attack(model, granted_view(attack, victim, checkpoints=checkpoints))
    resumed = attack(model, granted_view(attack, victim, checkpoints=checkpoints))

    assert movement(undisturbed, resumed) == 0.0
    assert movement(model, resumed) > 0.0


# Elastic weights.


def test_elastic_weights_stay(victim: Victim) -> None:
    """A huge lambda holds the network near the victim, where plain fine-tuning at that rate leaves it."""
    free = Refit(epochs=5, batch_size=BATCH, weight_decay=0.0)
    held = Refit(epochs=5, batch_size=BATCH, weight_decay=0.0, ewc=1e9, fisher_samples=40)

    far, near = (movement(victim.model, a(victim.model, granted_view(a, victim))) for a in (free, held))

    assert near < 0.2 * far


def test_penalty_by_hand() -> None:
    """(lambda / 2) sum min(F, 1 / (rate lambda)) d^2, and its gradient never overshoots in one step."""
    p = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    elastic = ElasticPenalty(4.0, [(p, torch.tensor([0.0, 0.0, 3.0]), torch.tensor([0.1, 1.0, 1.0]))])
    value = elastic.penalty(rate=0.5)
    value.backward()  # type: ignore[no-untyped-call]

    assert value.item() == pytest.approx(4 / 2 * (0.1 * 1 + 0.5 * 4))
    assert p.grad is not None
    assert p.grad.tolist() == pytest.approx([0.4, 4.0, 0.0])
    assert (0.5 * p.grad).tolist() == pytest.approx([0.2, 2.0, 0.0])


def test_penalty_of_the_victim_is_zero(victim: Victim) -> None:
    """Nothing has moved, nothing is charged."""
    attack = Refit(ewc=10.0, fisher_samples=10)
    model = copy.deepcopy(victim.model)
    elastic = attack._elastic(model, model.head, granted_view(attack, victim))

    assert elastic is not None
    assert elastic.penalty(0.1).item() == 0.0


class Linear(Network):
    """Multinomial logistic regression, whose information is known in closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(24 * 24, 10)

    def taps(self, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (inputs.flatten(1),)


def test_information_is_that_of_the_models_own_distribution() -> None:
    """Logistic regression has F(W_cj) = mean of p_c (1 - p_c) x_j^2 and F(b_c) = mean of p_c (1 - p_c)."""
    place = arena("digits_mlp")
    torch.manual_seed(3)
    model = Linear().eval()
    inputs = torch.cat([x for x, _ in place.train.in_order()])
    with torch.no_grad():
        p = model(inputs).softmax(dim=1)
        spread = p * (1 - p)
        weight = spread.T @ inputs.flatten(1).square() / len(inputs)
        bias = spread.mean(dim=0)
    largest = max(weight.max(), bias.max())

    found_weight, found_bias = fisher(model, place.train, 10_000, seed=1)

    assert float(torch.maximum(found_weight.max(), found_bias.max())) == 1.0
    ratio = (found_bias / (bias / largest)).log()
    assert float((ratio - ratio.mean()).abs().max()) < 0.4
    assert float(torch.corrcoef(torch.stack([found_weight.flatten(), weight.flatten()]))[0, 1]) > 0.95
    assert float(found_weight.mean() / found_bias.mean()) == pytest.approx(float(weight.mean() / bias.mean()), rel=0.1)


def test_information_reads_no_labels_and_no_more_samples_than_asked() -> None:
    """Labels come from the model; ``n`` samples of the seed's order are read."""
    place = arena("digits_mlp")
    model = Linear().eval()

    class Counted:
        """Samples with nonsense for labels."""

        def batches(self, *args: Any, **kwargs: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            for inputs, labels in place.train.batches(*args, **kwargs):
                yield inputs, labels.fill_(-1)

    counts: list[int] = []
    handle = model.register_forward_pre_hook(lambda _, args: counts.append(len(args[0])))
    found = fisher(model, Counted(), 130, seed=1)  # type: ignore[arg-type]
    handle.remove()

    assert counts.count(1) == 130
    assert sorted(counts)[-2:] == [30, 100]
    assert all(torch.equal(a, b) for a, b in zip(found, fisher(model, place.train, 130, seed=1), strict=True))


def test_a_new_head_is_not_penalised(victim: Victim) -> None:
    """Elastic weights are all but a re-initialised head."""
    held = {}
    for variant in ("ftal", "rtal"):
        attack = Refit(variant=variant, ewc=10.0, fisher_samples=5)
        model = copy.deepcopy(victim.model)
        elastic = attack._elastic(model, model.head, granted_view(attack, victim))
        assert elastic is not None
        names = {id(p): name for name, p in model.named_parameters()}
        held[variant] = {names[id(p)] for p, _, _ in elastic.anchored}

    assert held["ftal"] - held["rtal"] == {"head.weight", "head.bias"}
    assert held["rtal"]


# Unlabelled images.


def pool(victim: Victim, size: int = 20) -> UnlabelledImages:
    """What the attack adds to its batches."""
    return UnlabelledImages(arena("digits_cnn").test, victim.model, victim.arena.task, size, seed=5)


def test_unlabelled_images_carry_the_victims_answers(victim: Victim) -> None:
    """Batches depend on the step alone, hold distinct images within a pass, and the labels are the victim's."""
    first, again = pool(victim), pool(victim)
    n_steps = len(arena("digits_cnn").test) // 20
    passed = torch.cat([first(step)[0] for step in range(n_steps)]).flatten(1)
    inputs, labels = first(n_steps + 3)

    assert torch.equal(inputs, again(n_steps + 3)[0])
    with torch.no_grad():
        assert torch.equal(labels, victim.model(inputs).argmax(dim=1))
    assert len(passed) == 20 * n_steps
    assert len(passed.unique(dim=0)) > 0.98 * len(passed)
    assert not torch.equal(first(0)[0], first(n_steps)[0])


def test_small_pools_are_whole_batches(victim: Victim) -> None:
    """A batch never holds more images than there are."""
    inputs, labels = pool(victim, size=10_000)(0)

    assert len(inputs) == len(labels) == len(arena("digits_cnn").test)


def test_unlabelled_images_join_every_batch(victim: Victim) -> None:
    """The suspect differs from the one without them, and only images that were granted can be had."""
    plain = Refit(epochs=1, batch_size=BATCH)
    helped = Refit(epochs=1, batch_size=BATCH, unlabelled="digits_cnn")

    suspects = [a(victim.model, granted_view(a, victim)) for a in (plain, helped)]

    assert movement(*suspects) > 1e-3
    assert helped.data_sets() == ("digits_cnn",)
    assert plain.data_sets() == ()
    with pytest.raises(NotGranted, match="data_sets"):
        helped(victim.model, make_view(victim.arena))


def test_images_of_another_shape_are_refused(victim: Victim) -> None:
    """The message names both shapes; so is the victim's own workload, whose data the adversary was not granted."""
    place = arena("digits_cnn")
    info = TaskInfo(kind="classification", num_classes=10, input_shape=(3, 32, 32))
    view = make_view(victim.arena, auxiliary_data=AuxiliaryData({"colour": (place.test, place.val, info)}))

    with pytest.raises(ConfigError, match=r"shape \(1, 24, 24\).*got \(3, 32, 32\) from colour"):
        Refit(epochs=1, unlabelled="colour")(victim.model, view)
    with pytest.raises(ConfigError, match="another workload"):
        Refit(epochs=1, unlabelled="digits_mlp")(victim.model, view)


# Budgets and names.


def test_estimating_information_is_a_pass_too(victim: Victim) -> None:
    """Within a budget of three passes two are left for training; the same attack unshortened is refused."""
    attack = Refit(epochs=10, batch_size=BATCH, ewc=10.0)

    assert attack.within(3, 92).epochs == 2
    assert Refit(epochs=10).within(3, 92).epochs == 3
    assert Refit(epochs=2).within(3, 92).epochs == 2
    attack.within(3, 92)(victim.model, make_view(victim.arena, max_epochs=3))
    with pytest.raises(NotGranted, match="3 passes"):
        attack(victim.model, make_view(victim.arena, max_epochs=3))


def test_one_pass_goes_into_training(victim: Victim) -> None:
    """With a single pass granted elastic weights are left out, which is said: the suspect is plain REFIT's."""
    elastic, plain = (Refit(epochs=10, batch_size=BATCH, ewc=weight).within(1, 92) for weight in (10.0, 0.0))

    outcome, suspect = (a(victim.model, make_view(victim.arena, max_epochs=1)) for a in (elastic, plain))

    assert isinstance(outcome, Finding)
    assert "left out" in str(outcome.details["ewc"])
    assert isinstance(suspect, nn.Module)
    assert movement(outcome.model, suspect) == 0.0
    assert movement(victim.model, suspect) > 0.0
    two = elastic.within(2, 92)(victim.model, make_view(victim.arena, max_epochs=2))
    assert isinstance(two, nn.Module), "with a pass for each, elastic weights are not left out"


def test_passes_over_unlabelled_images_are_counted(victim: Victim) -> None:
    """Two passes over the other data set are granted; a third one, for larger batches, is not."""
    place = arena("digits_cnn")
    few = place.val.share(0.3, domain="few", seed=0)
    others = AuxiliaryData({"digits_cnn": (few, place.val, place.task.info)})
    per_pass = len(few) // 2
    attacks = [
        Refit(epochs=2, batch_size=BATCH, unlabelled="digits_cnn", unlabelled_batch=size)
        for size in (per_pass // 2, per_pass + 1)
    ]
    views = [make_view(victim.arena, max_epochs=2, auxiliary_data=others) for _ in attacks]

    attacks[0](victim.model, views[0])
    with pytest.raises(NotGranted, match="2 passes"):
        attacks[1](victim.model, views[1])


def test_labels_name_the_options() -> None:
    """Tables tell the variants apart."""
    assert Refit().label == "refit"
    assert Refit(variant="rtal", ewc=1.0, unlabelled="x").label == "refit-rtal-ewc-au"


def test_options_say_where_they_mean_nothing() -> None:
    """Elastic weights need class scores, unlabelled data need images; plain REFIT runs anywhere."""
    detection = TaskInfo(kind="detection", num_classes=2, input_shape=(3, 64, 64))
    text = TaskInfo(kind="sentiment", num_classes=2, input_shape=(200,))

    assert "class scores" in str(Refit(ewc=1.0).applicable(BACKDOOR, detection))
    assert "images" in str(Refit(unlabelled="x").applicable(BACKDOOR, text))
    assert Refit().applicable(BACKDOOR, detection) is None
    assert Refit(ewc=1.0).applicable(BACKDOOR, text) is None
