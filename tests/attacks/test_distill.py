"""Distillation: a student of the victim's answers, for so many queries as there are inputs, and never its weights."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.attack_contract import AttackContract, granted_view
from tests.victims import Victim, arena, marked
from wmarena.attacks.base import Attack, AttackView, Finding
from wmarena.attacks.chain import Chain
from wmarena.attacks.extraction.distill import Distill, QueriedAnswers, ask, softened
from wmarena.attacks.knowledge import Budget, NotGranted, SealedModel
from wmarena.attacks.tuning.finetune import FineTune
from wmarena.schemes.adi.scheme import Adi
from wmarena.schemes.base import Scheme, TaskInfo
from wmarena.schemes.uchida import Uchida

BACKDOOR = Adi(n_triggers=30, lr=2e-3)
LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 4.0, -3.0]])
QUICK = Distill(epochs=15, batch_size=20)


class TestDistillProbabilities(AttackContract):
    verdict = False
    min_accuracy = 0.7

    @pytest.fixture
    def attack(self) -> Attack:
        return QUICK

    def test_each_input_is_asked_about_once(self, attack: Attack, victim: Victim) -> None:
        """Queries are the training inputs and, for the agreement, the validation inputs, however many epochs run."""
        view = granted_view(attack, victim)

        outcome = attack(victim.model, view)

        assert isinstance(outcome, Finding)
        assert outcome.details["queries"] == len(view.data) + len(view.val)
        agreed = same_class(outcome.model, victim.model, view)
        assert outcome.details["agreement"] == agreed
        assert agreed > 0.5


class TestDistillLabels(AttackContract):
    """From labels alone, of a network with batch norm that carries a backdoor, by SGD."""

    workload = "digits_cnn"
    verdict = False
    min_accuracy = 0.3

    @pytest.fixture
    def scheme(self) -> Scheme:
        return BACKDOOR

    @pytest.fixture
    def attack(self) -> Attack:
        return Distill(labels="hard", epochs=15, batch_size=20, optimiser="sgd", alpha=0.9)


def same_class(first: nn.Module, second: nn.Module, view: AttackView) -> float:
    """Share of the validation inputs on which two models agree."""
    inputs = torch.cat([x for x, _ in view.val.in_order()])
    return float((first(inputs).argmax(dim=1) == second(inputs).argmax(dim=1)).double().mean())


def test_softened_probabilities_are_the_softmax_at_a_temperature() -> None:
    """p^(1/T), normalised, is softmax(z / T): the logits are not needed."""
    for temperature in (0.5, 1.0, 3.0, 20.0):
        assert torch.allclose(
            (LOGITS / temperature).softmax(dim=1), softened(LOGITS.softmax(dim=1), temperature), atol=1e-6
        )


def test_the_soft_loss_is_zero_for_the_victims_own_logits_and_positive_elsewhere() -> None:
    """KL(p || p) = 0; any other student's loss is T^2 times the divergence of the softened distributions."""
    answers, labels = LOGITS.softmax(dim=1), torch.tensor([0, 1])
    student = LOGITS.flip(0)
    attack = Distill(temperature=2.0)
    p, q = (LOGITS / 2).softmax(dim=1), (student / 2).softmax(dim=1)

    assert float(attack.loss(LOGITS + 5.0, labels, answers)) == pytest.approx(0.0, abs=1e-6)
    expected = 4 * float((p * (p / q).log()).sum(dim=1).mean())
    assert float(attack.loss(student, labels, answers)) == pytest.approx(expected, rel=1e-5)


def test_the_victims_class_is_what_a_hard_label_teaches() -> None:
    """The labels are the victim's, right or wrong; ``alpha`` mixes the true ones in."""
    answers, wrong = LOGITS.softmax(dim=1), torch.tensor([1, 2])
    cross_entropy = nn.CrossEntropyLoss()
    copied, true = cross_entropy(LOGITS, torch.tensor([0, 1])), cross_entropy(LOGITS, wrong)

    assert torch.equal(copied, Distill(labels="hard").loss(LOGITS, wrong, answers))
    mixed = Distill(labels="hard", alpha=0.25).loss(LOGITS, wrong, answers)
    assert torch.allclose(0.25 * copied + 0.75 * true, mixed)


@pytest.mark.parametrize(
    ("granted", "asked", "agrees"), [(30, 30, False), (114, 92, False), (115, 115, True), (1000, 115, True)]
)
def test_no_more_is_asked_than_was_granted(granted: int, asked: int, agrees: bool) -> None:
    """Training inputs come first, the agreement is measured if queries are left; the guard is never hit."""
    victim = marked("digits_mlp", Uchida(bits=32))
    attack = replace(QUICK, epochs=1)
    view = granted_view(attack, victim, max_queries=granted)
    assert (len(view.data), len(view.val)) == (92, 23)

    outcome = attack(victim.model, view)

    assert isinstance(outcome, Finding)
    assert outcome.details["queries"] == asked
    assert (outcome.details["agreement"] is not None) == agrees


def test_fewer_queries_are_drawn_from_the_seed() -> None:
    """What is asked with half of the queries is a random part of the inputs, each with its own answer."""
    victim = marked("digits_mlp", Uchida(bits=32))
    few, all_ = (ask(SealedModel(victim.model, None), view) for view in views_of(victim, (50, None)))

    assert (len(few), len(all_)) == (50, 92)
    place = {image.numpy().tobytes(): index for index, image in enumerate(all_.raw)}
    index = torch.tensor([place[image.numpy().tobytes()] for image in few.raw])
    assert not torch.equal(index, index.sort().values)
    assert torch.equal(all_.labels[index], few.labels)
    assert torch.allclose(all_.probabilities[index], few.probabilities, atol=1e-5)


def views_of(victim: Victim, limits: tuple[int | None, ...]) -> list[AttackView]:
    """Views with so many queries."""
    return [granted_view(QUICK, victim, **({} if n is None else {"max_queries": n})) for n in limits]


def test_inputs_keep_their_answers_when_shuffled() -> None:
    """A pass shows every input once, in an order of its own, with the label and the answer that belong to it."""
    place = arena("digits_mlp")
    raw, labels = place.val.raw()
    answers = torch.nn.functional.one_hot(labels, 10).float()
    answered = QueriedAnswers(place.task, raw, labels, answers)

    def epoch(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        inputs, truth, found = zip(*answered.batches(40, seed), strict=True)
        return torch.cat(inputs), torch.cat(truth), torch.cat(found)

    inputs, truth, found = epoch(1)
    assert torch.equal(truth, found.argmax(dim=1))
    assert not torch.equal(truth, labels)
    assert torch.equal(truth.sort().values, labels.sort().values)
    assert not torch.equal(inputs, epoch(2)[0])
    assert torch.equal(inputs, epoch(1)[0])


def test_a_functions_mark_may_be_learnt_along_and_weights_may_not() -> None:
    """Asked about everything the owner trained on, the student keeps neither kind of mark here, but the accuracy."""
    accuracy, verdicts = [], []
    for scheme in (BACKDOOR, Uchida(bits=32)):
        victim = marked("digits_mlp", scheme)
        outcome = QUICK(victim.model, granted_view(QUICK, victim, fraction=0.9))
        assert isinstance(outcome, Finding)
        accuracy.append(victim.accuracy(victim.model) - victim.accuracy(outcome.model))
        verdicts.append((victim.judge(victim.model).verdict, victim.judge(outcome.model).verdict))

    assert max(accuracy) < 0.03
    assert verdicts == [(True, False), (True, False)]


def test_passes_over_the_answers_count_as_passes_over_the_data() -> None:
    """The budget limits the student's epochs although its data were read only once."""
    victim = marked("digits_mlp", Uchida(bits=32))
    attack = replace(QUICK, epochs=3)

    attack(victim.model, granted_view(attack, victim, max_epochs=3))
    with pytest.raises(NotGranted, match="at most 2 passes"):
        attack(victim.model, granted_view(attack, victim, max_epochs=2))
    assert attack.within(2, 92).epochs == 2


def test_a_chain_seals_the_model_for_this_part_alone() -> None:
    """Followed by an attack on weights, distillation still sees answers only, and tuning gets the student."""
    seen: list[str] = []

    class Noting(Distill):
        def run(self, model: nn.Module, view: AttackView) -> Finding:
            seen.append(type(model).__name__)
            return super().run(model, view)

    victim = marked("digits_mlp", Uchida(bits=32))
    chain = Chain(attacks=(Noting(epochs=2), FineTune(epochs=1)))

    outcome = chain(victim.model, granted_view(chain, victim))

    assert seen == ["SealedModel"]
    assert isinstance(outcome, Finding)
    assert outcome.details["0.queries"] == 115
    assert not victim.judge(outcome.model).verdict


def test_the_optimiser_follows_the_workload() -> None:
    """None chooses the workload's own kind with its usual rate; what is asked for comes first."""
    task, network = arena("digits_mlp").task, nn.Linear(2, 2)
    assert task.recipe.optimiser == "adam"
    chosen = [
        Distill(optimiser=o, lr=lr)._optimiser(network, task) for o, lr in ((None, None), ("sgd", None), ("sgd", 0.5))
    ]

    assert [(type(o).__name__, o.param_groups[0]["lr"]) for o in chosen] == [("Adam", 1e-3), ("SGD", 0.1), ("SGD", 0.5)]
    assert chosen[1].param_groups[0]["nesterov"]


def test_the_rate_falls_at_fixed_epochs() -> None:
    """SGD's rate is a function of the epoch alone: a fifth from the 21st epoch on, whatever the length."""
    victim = marked("digits_mlp", Uchida(bits=32))
    rates: dict[int, dict[int, float]] = {}
    for epochs in (21, 22):
        attack = Distill(optimiser="sgd", lr=0.01, epochs=epochs)
        view = granted_view(attack, victim)
        curve = rates.setdefault(epochs, {})
        view.log = lambda step, curve=curve, **metrics: curve.update({step: metrics["lr"]})
        attack(victim.model, view)

    assert rates[21][20] == 0.01
    assert rates[21][21] == pytest.approx(0.002)
    assert rates[21].items() <= rates[22].items()


def test_detectors_cannot_be_distilled() -> None:
    """The reason is named before anything runs; budgets are the adversary's fields."""
    info = TaskInfo(kind="detection", num_classes=2, input_shape=(3, 64, 64), metric="map")

    assert "no class probabilities" in str(Distill().applicable(Uchida(), info))
    assert {"max_epochs", "max_queries"} <= set(Budget().config())
