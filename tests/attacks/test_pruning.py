"""Pruning: exactly the announced share goes, nothing else is touched, and what is pruned stays pruned."""

import pytest
import torch
from torch import nn

from tests.attack_contract import AttackContract, granted_view, make_view
from tests.victims import Victim, arena, clean_model
from wmarena.attacks.base import Attack
from wmarena.attacks.compression.channels import WEIGHTED, prunable_layers
from wmarena.attacks.compression.pruning import FinePrune, PruneNeurons, PruneWeights, share, smallest
from wmarena.experiments.workloads.networks.base import Network
from wmarena.schemes.params import ConfigError


def weights(model: nn.Module) -> list[torch.Tensor]:
    """Weights of all convolutions and linear layers."""
    return [m.weight.detach() for m in model.modules() if isinstance(m, WEIGHTED)]


def buffers_equal(first: nn.Module, second: nn.Module) -> bool:
    """Whether all batch-norm statistics agree."""
    return all(torch.equal(a, b) for a, b in zip(first.buffers(), second.buffers(), strict=True))


def dead_channels(victim: Victim, model: nn.Module) -> list[int]:
    """Per prunable layer, how many channels are zero throughout, bias and norm included."""
    inputs = next(iter(victim.arena.val.in_order(2)))
    layers = prunable_layers(model, victim.arena.task, inputs)
    rows = [torch.cat([p.reshape(x.width, -1) for p in x.parameters()], dim=1) for x in layers]
    return [int((r == 0).all(dim=1).sum()) for r in rows]


class TestPruneWeights(AttackContract):
    """On the network with batch norm."""

    workload = "digits_cnn"

    @pytest.fixture
    def attack(self) -> Attack:
        return PruneWeights(sparsity=0.2)

    def test_smallest_weights_are_zero_and_nothing_else_changed(self, attack: Attack, victim: Victim) -> None:
        """The share s of all weights is zero, each no larger than any survivor; the rest is bit-equal."""
        suspect = attack(victim.model, granted_view(attack, victim))

        before = torch.cat([w.flatten() for w in weights(victim.model)])
        after = torch.cat([w.flatten() for w in weights(suspect)])
        gone = after == 0
        assert int(gone.sum()) == share(0.2, len(before))
        assert before[gone].abs().max() <= before[~gone].abs().min()
        assert torch.equal(before[~gone], after[~gone])

    def test_buffers_biases_and_norms_are_untouched(self, attack: Attack, victim: Victim) -> None:
        """Pruning state dict entries blindly would hit batch norm's running variances."""
        suspect = attack(victim.model, granted_view(attack, victim))

        pruned = {f"{name}.weight" for name, m in victim.model.named_modules() if isinstance(m, WEIGHTED)}
        after = suspect.state_dict()
        assert len(pruned) == 4
        assert all(torch.equal(t, after[n]) for n, t in victim.model.state_dict().items() if n not in pruned)


class TestPruneWeightsAndTune(AttackContract):
    @pytest.fixture
    def attack(self) -> Attack:
        return PruneWeights(sparsity=0.6, epochs=2, lr=1e-2)

    def test_pruned_weights_stay_zero(self, attack: Attack, victim: Victim) -> None:
        """Fine-tuning moves the survivors and leaves every pruned weight at exactly zero."""
        suspect = attack(victim.model, granted_view(attack, victim))

        for mask, old, new in zip(
            smallest(weights(victim.model), 0.6), weights(victim.model), weights(suspect), strict=True
        ):
            assert torch.count_nonzero(new[mask]) == 0
            assert not torch.equal(old[~mask], new[~mask])


class TestPruneNeurons(AttackContract):
    """On the network with batch norm."""

    workload = "digits_cnn"
    min_accuracy = 0.5

    @pytest.fixture
    def attack(self) -> Attack:
        return PruneNeurons(fraction=0.1)

    def test_share_of_every_hidden_layer_is_dead(self, attack: Attack, victim: Victim) -> None:
        """A tenth of each layer's channels, batch norm's scale and shift included; statistics and head are kept."""
        suspect = attack(victim.model, granted_view(attack, victim))

        assert dead_channels(victim, victim.model) == [0, 0, 0]
        assert dead_channels(victim, suspect) == [1, 3, 6]
        assert buffers_equal(victim.model, suspect)
        assert torch.equal(victim.model.head.weight, suspect.head.weight)


class TestPruneNeuronsByNorm(AttackContract):
    min_accuracy = 0.3

    @pytest.fixture
    def attack(self) -> Attack:
        return PruneNeurons(fraction=0.3, rank="l1", epochs=2, lr=1e-2)

    def test_filters_with_the_smallest_norm_go_and_stay(self, attack: Attack, victim: Victim) -> None:
        """The filters' L1 norms decide, and fine-tuning does not revive them."""
        suspect = attack(victim.model, granted_view(attack, victim))

        for old, new in list(zip(weights(victim.model), weights(suspect), strict=True))[:-1]:
            norms = old.abs().sum(dim=1)
            count = share(0.3, len(old))
            assert set((new == 0).all(dim=1).nonzero().flatten().tolist()) == set(norms.argsort()[:count].tolist())


class TestFinePrune(AttackContract):
    """On the network with batch norm."""

    workload = "digits_cnn"
    min_accuracy = 0.5

    @pytest.fixture
    def attack(self) -> Attack:
        return FinePrune(ratio=0.5, epochs=2)

    def test_only_the_last_convolution_is_pruned(self, attack: Attack, victim: Victim) -> None:
        """Half of its channels are dead after fine-tuning too; earlier layers keep all of theirs."""
        suspect = attack(victim.model, granted_view(attack, victim))

        assert dead_channels(victim, suspect) == [0, 0, 32]


class TestFinePruneByDrop(AttackContract):
    @pytest.fixture
    def attack(self) -> Attack:
        return FinePrune(epochs=0)

    def test_pruning_ends_at_the_tolerated_drop(self, attack: Attack, victim: Victim) -> None:
        """Validation accuracy falls by at most 4 points, and one more channel would make it fall further."""
        view = granted_view(attack, victim)
        task = victim.arena.task
        suspect = attack(victim.model, view)
        dead = dead_channels(victim, suspect)
        start = task.score(victim.model, view.val)

        assert dead[:-1] == [0, 0]
        assert dead[-1] > 0
        assert start - task.score(suspect, view.val) <= 0.04
        further = FinePrune(ratio=(dead[-1] + 1) / 64, epochs=0)
        assert start - task.score(further(victim.model, view), view.val) > 0.04


def test_smallest_is_global_and_breaks_ties_by_position() -> None:
    """The smallest magnitudes over all tensors together; of equal ones the first."""
    masks = smallest([torch.tensor([3.0, -1.0]), torch.tensor([[1.0, 0.5]])], 0.5)

    assert [m.tolist() for m in masks] == [[False, True], [[False, True]]]


def test_larger_sparsity_contains_the_smaller() -> None:
    """Strength is monotone: what is pruned at 30 % is pruned at 60 %."""
    all_weights = weights(clean_model("digits_mlp"))

    for small, large in zip(smallest(all_weights, 0.3), smallest(all_weights, 0.6), strict=True):
        assert not bool((small & ~large).any())


@pytest.mark.parametrize(("fraction", "n", "count"), [(0.29, 100, 29), (0.0, 7, 0), (1.0, 7, 7), (0.5, 5, 2)])
def test_share_rounds_down_without_float_surprises(fraction: float, n: int, count: int) -> None:
    """0.29 * 100 is 28.999... in floating point and means 29."""
    assert share(fraction, n) == count


class LinearClassifier(Network):
    """No hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(24 * 24, 10)

    def taps(self, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (inputs.flatten(1),)


def test_a_network_without_hidden_channels_is_an_error() -> None:
    """Pruning channels of a linear classifier says what to do instead."""
    with pytest.raises(ValueError, match="use prune_weights"):
        PruneNeurons()(LinearClassifier(), make_view(arena("digits_mlp")))


@pytest.mark.parametrize("attack", [PruneNeurons(epochs=2), FinePrune(epochs=2)], ids=["neurons", "fine"])
def test_choosing_channels_is_no_pass_over_the_data(attack: Attack) -> None:
    """Reading activations is free: a budget of two passes is enough for two epochs of fine-tuning."""
    view = make_view(arena("digits_mlp"), max_epochs=2)
    steps: list[int] = []
    view.log = lambda step, **metrics: steps.append(step)

    attack(clean_model("digits_mlp"), view)

    assert steps == [1, 2]


def test_strengths_reach_the_published_ranges() -> None:
    """Nearly all weights, all channels, and nothing at all can be asked for; all weights cannot."""
    assert PruneWeights(sparsity=0.99).strength == 0.99
    assert PruneNeurons(fraction=1.0).strength == 1.0
    assert PruneNeurons(fraction=0.0).strength == 0.0
    with pytest.raises(ConfigError, match="sparsity"):
        PruneWeights(sparsity=1.0)
