"""Transfer learning: another task is learnt, the victim's head comes back, and what does not fit is named."""

import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from tests.attack_contract import AttackContract, granted_view
from tests.attacks.test_finetune import changed_tensors
from tests.victims import NewestOnly, Victim, arena, marked
from wmarena.attacks.base import Attack, AttackView, Finding
from wmarena.attacks.chain import Chain
from wmarena.attacks.knowledge import AuxiliaryData, NotGranted
from wmarena.attacks.tuning.finetune import FineTune
from wmarena.attacks.tuning.transfer import Transfer, plug, top_1
from wmarena.experiments.workloads.data import Container, Dataset, DataSource, Images
from wmarena.experiments.workloads.images.digits import DIGITS, DigitsMlp
from wmarena.experiments.workloads.networks.base import Network
from wmarena.experiments.workloads.networks.small import SmallMlp
from wmarena.orchestrator.worker.workload import BoundWorkload
from wmarena.schemes.base import Samples, Scheme, TaskInfo
from wmarena.schemes.mtlsign.scheme import MTLSign
from wmarena.schemes.params import ConfigError
from wmarena.schemes.uchida import Uchida

QUICK = Transfer(target="digits_cnn", epochs=2, lr=1e-2)


class Pairs(Container):
    """Digits with two neighbours in one class."""

    def __str__(self) -> str:
        return "scikit-learn's digits, relabelled"

    def present(self) -> bool:
        return True

    def read(self) -> Dataset:
        """0 and 1 are class 0, 2 and 3 class 1, ..."""
        digits = DIGITS.load(None)
        return Dataset(*(Images(part.pixels, part.labels // 2) for part in (digits.train, digits.test)))


@dataclass(frozen=True, kw_only=True)
class DigitPairs(DigitsMlp):
    """A task with five classes."""

    name: ClassVar[str] = "digit_pairs"
    num_classes: ClassVar[int] = 5
    source: ClassVar[DataSource] = replace(DIGITS, name="digit_pairs", in_system=(Pairs(),))

    def build(self) -> Network:
        return SmallMlp(n_inputs=24 * 24, num_classes=5)


def pairs() -> BoundWorkload:
    """The task with five classes."""
    return DigitPairs().bind(torch.device("cpu"), None)


def view_with(victim: Victim, name: str, train: Samples, val: Samples, info: TaskInfo, **changes: Any) -> AttackView:
    """A view that grants one other data set."""
    return granted_view(FineTune(), victim, auxiliary_data=AuxiliaryData({name: (train, val, info)}), **changes)


def view_of_pairs(victim: Victim, **changes: Any) -> AttackView:
    """A view that grants the task with five classes."""
    place = pairs()
    return view_with(victim, "digit_pairs", place.train, place.val, place.task.info, **changes)


class TestTransferWithANewHead(AttackContract):
    verdict = True
    min_accuracy = 0.5

    @pytest.fixture
    def attack(self) -> Attack:
        return QUICK

    def test_the_head_is_the_victims(self, attack: Attack, victim: Victim) -> None:
        """All layers below were trained; the output layer is the one that the victim was published with."""
        outcome = attack(victim.model, granted_view(attack, victim))

        assert isinstance(outcome, Finding)
        names = {name for name, _ in victim.model.named_parameters()}
        assert changed_tensors(victim.model, outcome.model) == names - {"head.weight", "head.bias"}
        assert not attack.replaces_head


class TestTransferOfTheLastLayer(AttackContract):
    """On the network with batch norm, whose statistics stay."""

    workload = "digits_cnn"
    verdict = True

    @pytest.fixture
    def scheme(self) -> Scheme:
        return MTLSign(n=60, steps=150, lr=1e-3, head_lr=3e-3, lambda2=0.0, check_every=50)

    @pytest.fixture
    def attack(self) -> Attack:
        return Transfer(target="digits_mlp", variant="ftll", epochs=2, bn_mode="eval")

    def test_nothing_is_left_of_it(self, attack: Attack, victim: Victim) -> None:
        """Only the head was trained, and the old one is back: the victim, bit for bit."""
        outcome = attack(victim.model, granted_view(attack, victim))

        assert isinstance(outcome, Finding)
        assert changed_tensors(victim.model, outcome.model) == set()


def test_another_number_of_classes_is_learnt() -> None:
    """Five classes with a new head, from the victim's features; the suspect has ten outputs again."""
    victim = marked("digits_mlp", Uchida(bits=32))
    attack = Transfer(target="digit_pairs", epochs=8, lr=2e-2)

    outcome = attack(victim.model, view_of_pairs(victim))

    assert isinstance(outcome, Finding)
    assert outcome.details["target_classes"] == 5
    assert float(str(outcome.details["target_accuracy"])) > 0.9
    assert outcome.model.get_parameter("head.weight").shape == victim.model.get_parameter("head.weight").shape
    assert victim.judge(outcome.model).verdict


def test_the_target_accuracy_is_that_of_the_trained_head() -> None:
    """On the same features an untrained new head is at chance and a trained one is not."""
    victim = marked("digits_mlp", Uchida(bits=32))
    place = pairs()
    found = []
    for lr in (1e-9, 5e-2):
        attack = Transfer(target="digit_pairs", variant="rtll", epochs=3, lr=lr)
        outcome = attack(victim.model, view_of_pairs(victim))
        assert isinstance(outcome, Finding)
        assert changed_tensors(victim.model, outcome.model) == set()
        found.append(float(str(outcome.details["target_accuracy"])))

    assert found[0] < 0.5 < 0.9 < found[1]
    assert top_1(victim.model, place.val) < 0.3, "ten outputs are no answer to five classes"


def test_part_of_the_target_is_stratified_and_as_large_as_asked() -> None:
    """``target_size`` samples with every class in proportion; more than there are means all."""
    victim, place = marked("digits_mlp", Uchida(bits=32)), pairs()
    view = view_of_pairs(victim)
    part = replace(QUICK, target_size=100)._part(place.train, view)
    counts = part.raw()[1].bincount()

    assert len(part) == 100
    assert int(counts.min()) >= 17
    assert replace(QUICK, target_size=10**6)._part(place.train, view) is place.train
    assert QUICK._part(place.train, view) is place.train


class Cropped:
    """Samples whose inputs lack their last row."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def in_order(self, batch_size: int = 1000) -> Any:
        """One row less."""
        return ((inputs[..., :-1, :], labels) for inputs, labels in self._samples.in_order(batch_size))


@pytest.mark.parametrize("variant", ["ftll", "ftal"])
def test_a_kept_head_needs_as_many_classes(variant: Any) -> None:
    """The field, both numbers and the way out."""
    victim = marked("digits_mlp", Uchida(bits=32))
    attack = Transfer(target="digit_pairs", variant=variant)

    with pytest.raises(
        ConfigError, match=f"variant: expected 10 classes .* {variant} keeps, got 5 .* use rtal or rtll"
    ):
        attack(victim.model, view_of_pairs(victim))


def test_inputs_of_another_shape_are_refused() -> None:
    """Both shapes are named before anything is trained."""
    victim, place = marked("digits_mlp", Uchida(bits=32)), arena("digits_cnn")
    cropped: Any = Cropped(place.train)
    checkpoints = NewestOnly()
    view = view_with(victim, "digits_cnn", cropped, place.val, place.task.info, checkpoints=checkpoints)

    with pytest.raises(ConfigError, match=r"target: expected inputs of shape \(1, 24, 24\), got \(1, 23, 24\)"):
        QUICK(victim.model, view)
    assert checkpoints.n_offers == 0


def test_the_budget_counts_passes_over_the_target() -> None:
    """Training on other data is training: no more passes than were granted, on a count of its own in each part."""
    victim = marked("digits_mlp", Uchida(bits=32))
    part = Transfer(target="digits_cnn", epochs=2, target_size=1150)
    chain = Chain(attacks=(part, FineTune(epochs=2), part))

    chain(victim.model, granted_view(chain, victim, max_epochs=2))
    with pytest.raises(NotGranted, match="at most 1 passes"):
        part(victim.model, granted_view(part, victim, max_epochs=1))
    assert chain.data_sets() == ("digits_cnn",)
    assert part.within(1, 92).config()["epochs"] == 1


def test_a_chain_keeps_what_was_found() -> None:
    """The target's accuracy is reported with the part's index, and fine-tuning continues from the old head."""
    victim = marked("digits_mlp", Uchida(bits=32))
    chain = Chain(attacks=(QUICK, FineTune(epochs=1)))

    outcome = chain(victim.model, granted_view(chain, victim))

    assert isinstance(outcome, Finding)
    assert set(outcome.details) == {"0.target_accuracy", "0.target_classes"}


def test_plugging_finds_layers_wherever_they_are() -> None:
    """Nested layers are replaced in place, whatever they are called; strangers are an error."""
    old, new = nn.Linear(2, 3), nn.Linear(2, 4)
    model = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(2, 2), old))
    before = list(model.state_dict())

    plug(model, old, new)

    assert model[1][1] is new
    assert before == list(model.state_dict())
    with pytest.raises(ValueError, match="expected an output layer inside the model"):
        plug(model, old, new)


def test_heads_that_are_no_linear_layers_can_only_be_kept() -> None:
    """What cannot be given another number of classes is named."""
    victim = marked("digits_mlp", Uchida(bits=32))
    view = granted_view(QUICK, victim)
    head = nn.Sequential(copy.deepcopy(victim.arena.task.head(victim.model)))

    assert replace(QUICK, variant="ftal")._new_head(head, 10, view) is not head
    with pytest.raises(ConfigError, match="expected a linear output layer"):
        QUICK._new_head(head, 5, view)
