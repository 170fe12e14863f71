"""Fine-tuning: what is frozen stays, what is re-initialised is new, and no epoch is run twice."""

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.attack_contract import AttackContract, granted_view, make_view
from tests.victims import Victim, arena, clean_model, marked
from wmarena.attacks.base import Attack
from wmarena.attacks.fine_tuning import reinitialise
from wmarena.attacks.tuning.finetune import FineTune
from wmarena.schemes.base import Scheme
from wmarena.schemes.mtlsign.scheme import MTLSign

MARKED_TASK = MTLSign(n=60, steps=150, lr=1e-3, head_lr=3e-3, lambda2=0.0, check_every=50)


def changed_tensors(victim: nn.Module, suspect: nn.Module) -> set[str]:
    """Names of parameters and buffers that differ."""
    after = suspect.state_dict()
    return {name for name, tensor in victim.state_dict().items() if not torch.equal(tensor, after[name])}


class TestFineTuneAllLayers(AttackContract):
    verdict = True

    @pytest.fixture
    def attack(self) -> Attack:
        return FineTune(variant="ftal", epochs=3)

    def test_all_parameters_move(self, attack: Attack, victim: Victim) -> None:
        """FTAL trains every layer."""
        suspect = attack(victim.model, granted_view(attack, victim))

        assert changed_tensors(victim.model, suspect) == {name for name, _ in victim.model.named_parameters()}


class TestRetrainAllLayers(AttackContract):
    min_accuracy = 0.3

    @pytest.fixture
    def attack(self) -> Attack:
        return FineTune(variant="rtal", epochs=8, lr=5e-2)


class TestRetrainLastLayer(AttackContract):
    min_accuracy = 0.5
    verdict = True

    @pytest.fixture
    def attack(self) -> Attack:
        return FineTune(variant="rtll", epochs=8, lr=5e-2)

    def test_head_starts_anew(self, attack: Attack, victim: Victim) -> None:
        """A new head is drawn from the attack's seed and trained; nothing else moves."""
        suspect = attack(victim.model, granted_view(attack, victim))
        other = attack(victim.model, granted_view(attack, victim, seed=1))

        assert changed_tensors(victim.model, suspect) == {"head.weight", "head.bias"}
        assert changed_tensors(suspect, other) == {"head.weight", "head.bias"}
        assert attack.replaces_head


class TestFineTuneLastLayer(AttackContract):
    """On the network with batch norm."""

    workload = "digits_cnn"
    verdict = True

    @pytest.fixture
    def attack(self) -> Attack:
        return FineTune(variant="ftll", epochs=2, bn_mode="eval")

    @pytest.fixture
    def scheme(self) -> Scheme:
        return MARKED_TASK

    def test_nothing_but_the_head_changes(self, attack: Attack, victim: Victim) -> None:
        """With batch norm in eval mode neither weights nor statistics below the head move, so the mark is the same."""
        suspect = attack(victim.model, granted_view(attack, victim))

        assert changed_tensors(victim.model, suspect) == {"head.weight", "head.bias"}
        assert victim.judge(victim.model).statistic == victim.judge(suspect).statistic
        assert torch.equal(mark_features(victim, victim.model), mark_features(victim, suspect))

    def test_no_gradient_is_computed_below_the_head(self, attack: Attack, victim: Victim) -> None:
        """Frozen layers cost no backward pass: what enters the head requires no gradient."""
        entered: list[bool] = []
        model = copy.deepcopy(victim.model)
        hook = victim.arena.task.head(model).register_forward_pre_hook(
            lambda _, inputs: entered.append(inputs[0].requires_grad)
        )
        attack.run(model, granted_view(attack, victim))
        hook.remove()

        assert entered
        assert not any(entered)

    def test_statistics_move_in_train_mode(self, victim: Victim) -> None:
        """As in the authors' code, ``bn_mode: train`` updates batch-norm statistics although layers are frozen."""
        attack = FineTune(variant="ftll", epochs=1, bn_mode="train")

        changed = changed_tensors(victim.model, attack(victim.model, granted_view(attack, victim)))

        buffers = {name for name, _ in victim.model.named_buffers()}
        assert changed - {"head.weight", "head.bias"} == buffers


def test_all_dense_layers_may_be_renewed() -> None:
    """``renew: dense`` draws both dense layers anew and trains them; the convolutions stay as they were."""
    place, model = arena("digits_dsn"), clean_model("digits_dsn")
    attack = FineTune(variant="rtll", renew="dense", epochs=4, lr=2e-2)
    suspect = attack(model, make_view(place))

    assert changed_tensors(model, suspect) == {"fc1.weight", "fc1.bias", "head.weight", "head.bias"}
    assert attack.replaces_head
    assert place.task.score(suspect, place.test) > 0.5


def mark_features(victim: Victim, model: nn.Module) -> Tensor:
    """Mark loss over the key's own labels: a function of all that the secret head reads."""
    with torch.no_grad():
        loss = victim.scheme.mark_loss(model, victim.arena.task, victim.key)
    assert loss is not None
    return loss


def test_labels_name_the_variant() -> None:
    """Tables tell the four variants apart."""
    assert FineTune(variant="rtll").label == "finetune-rtll"
    assert not FineTune(variant="ftll").replaces_head


def test_reinitialise_refuses_a_head_without_weights() -> None:
    """A head that cannot be re-initialised is an error, not a silent no-op."""
    with pytest.raises(ValueError, match="expected an output layer"):
        reinitialise(nn.Flatten(), seed=0)


def test_reinitialise_leaves_the_global_generator() -> None:
    """The new head is drawn from its seed alone."""
    model = copy.deepcopy(clean_model("digits_mlp"))
    state = torch.get_rng_state()
    reinitialise(model.head, seed=3)
    first = model.head.weight.detach().clone()
    torch.manual_seed(99)
    reinitialise(model.head, seed=3)

    assert torch.equal(first, model.head.weight)
    assert torch.equal(torch.random.get_rng_state(), torch.Generator().manual_seed(99).get_state())
    torch.set_rng_state(state)


def test_original_head_still_fits() -> None:
    """Retraining the head alone leaves the features: with the old head plugged back the victim is restored."""
    victim = marked("digits_cnn", MARKED_TASK)
    attack = FineTune(variant="rtll", epochs=1, bn_mode="eval")
    suspect = attack(victim.model, granted_view(attack, victim))
    suspect.head.load_state_dict(victim.model.head.state_dict())

    assert not changed_tensors(victim.model, suspect)
