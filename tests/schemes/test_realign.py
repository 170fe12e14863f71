"""Realigning: rewrites are undone to the bit, fine-tuned suspects to the channel, and strangers stay strangers."""

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.channel_networks import NETWORKS, largest_change, network, noisy, rewritten, some_inputs
from tests.victims import Victim, clean_model, marked
from wmarena.schemes.commitment import model_digest
from wmarena.schemes.symmetry.groups import channel_groups, ensure_equivalent
from wmarena.schemes.symmetry.realign import realign
from wmarena.schemes.uchida import Uchida

SMALL = [name for name in NETWORKS if name != "resnet18"]


@pytest.fixture
def victim() -> Victim:
    """A network whose mark is read from the second convolution's mean filter."""
    return marked("digits_cnn", Uchida(bits=32))


def few_inputs(victim: Victim) -> Tensor:
    """(8, 1, 24, 24) normalised validation images."""
    return next(iter(victim.arena.val.in_order(8)))[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_permutation_is_undone_to_the_bit(name: str) -> None:
    """A network of any kind that was only permuted comes back with every weight as it was."""
    model, inputs = network(name), some_inputs(name, 8)
    aligned, cosine = realign(rewritten(model, inputs), model, inputs)

    assert model_digest(model.state_dict()) == model_digest(aligned.state_dict())
    assert cosine == pytest.approx(1.0)


@pytest.mark.parametrize("factor", [1.1, 10.0])
@pytest.mark.parametrize("name", SMALL)
def test_scales_are_undone(name: str, factor: float) -> None:
    """Permuted and scaled by up to ``factor``, every weight comes back within a few rounding errors."""
    model, inputs = network(name), some_inputs(name, 8)
    suspect = rewritten(model, inputs, factor=factor)
    aligned, cosine = realign(suspect, model, inputs)

    assert largest_change(model, suspect) > 0.1
    assert largest_change(model, aligned) < 1e-6
    assert cosine == pytest.approx(1.0)


@pytest.mark.parametrize("name", SMALL)
def test_order_is_found_after_small_changes(name: str) -> None:
    """Weights moved by 5 % of their deviation, then rewritten: realigned as if they had not been rewritten."""
    model, inputs = network(name), some_inputs(name, 8)
    tuned = noisy(model, 0.05)
    expected, _ = realign(tuned, model, inputs)
    found, cosine = realign(rewritten(tuned, inputs, factor=10), model, inputs)

    assert largest_change(expected, found) < 1e-5
    assert largest_change(expected, tuned) < 0.5
    assert 0.99 < cosine < 1


@pytest.mark.parametrize("name", SMALL)
def test_function_stays(name: str) -> None:
    """Whatever the suspect is, even an unrelated network, realigning changes none of its answers."""
    suspect, inputs = network(name, seed=5), some_inputs(name)
    aligned, cosine = realign(suspect, network(name), inputs)

    assert largest_change(suspect, aligned) > 0.1
    assert cosine < 0.9
    ensure_equivalent(suspect, aligned, inputs)


def test_suspect_and_reference_are_untouched() -> None:
    """Both networks keep weights and training flags; the copy shares no tensor with the suspect."""
    model, inputs = network("bottleneck"), some_inputs("bottleneck", 8)
    suspect = rewritten(model, inputs).train()
    before = [model_digest(m.state_dict()) for m in (suspect, model)]
    aligned, _ = realign(suspect, model, inputs)

    assert before == [model_digest(m.state_dict()) for m in (suspect, model)]
    assert all(m.training for m in suspect.modules())
    assert not any(m.training for m in model.modules())
    assert not {t.data_ptr() for t in aligned.parameters()} & {t.data_ptr() for t in suspect.parameters()}


def test_realigning_again_changes_nothing() -> None:
    """A realigned suspect is at its best place: a second time finds the same weights."""
    model, inputs = network("digits_mlp"), some_inputs("digits_mlp", 8)
    once, first = realign(rewritten(noisy(model, 0.3), inputs, factor=3), model, inputs)
    twice, second = realign(once, model, inputs)

    assert largest_change(once, twice) < 1e-5
    assert first == pytest.approx(second)


def test_equal_channels_may_come_back_in_any_order() -> None:
    """Duplicated and dead channels are ties: the weights come back all the same."""
    model, inputs = network("digits_mlp"), some_inputs("digits_mlp", 8)
    group = channel_groups(model, inputs)[1]
    with torch.no_grad():
        for slot in group.slots:
            rows = slot.tensor.movedim(slot.dim, 0)
            rows[1], rows[2] = rows[0], rows[0]
            rows[3:6] = 0
    aligned, _ = realign(rewritten(model, inputs), model, inputs)

    assert model_digest(model.state_dict()) == model_digest(aligned.state_dict())


def test_pruned_channels_are_no_obstacle() -> None:
    """A suspect without a tenth of its channels is still put in order: what was left of them is in its place."""
    model, inputs = network("digits_cnn"), some_inputs("digits_cnn", 8)
    pruned = copy.deepcopy(model)
    with torch.no_grad():
        for group in channel_groups(pruned, inputs):
            for gain in group.gains:
                for slot in gain.multiplied:
                    slot.tensor[: group.width // 10] = 0
    expected, _ = realign(pruned, model, inputs)
    found, _ = realign(rewritten(pruned, inputs), model, inputs)

    assert largest_change(expected, found) < 1e-6


def test_dying_channels_are_not_blown_up() -> None:
    """A channel that weight decay has all but erased in the reference is matched, and its scale is left alone."""
    suspect, inputs = network("digits_mlp"), some_inputs("digits_mlp", 8)
    model = network("digits_mlp", seed=5)
    for gain in (gain for group in channel_groups(model, inputs) for gain in group.gains):
        with torch.no_grad():
            for slot in gain.multiplied:
                slot.tensor[:3] *= 1e-39
    aligned, _ = realign(suspect, model, inputs)

    assert all(bool(torch.isfinite(p).all()) for p in aligned.parameters())
    ensure_equivalent(suspect, aligned, inputs)


def test_replaced_head_does_not_count() -> None:
    """A suspect with an output layer of another size is realigned by the layers that are left."""
    model, inputs = network("bottleneck"), some_inputs("bottleneck", 8)
    suspect = copy.deepcopy(model)
    suspect.head = nn.Linear(24, 3)
    aligned, cosine = realign(rewritten(suspect, inputs), model, inputs)

    assert model_digest(suspect.state_dict()) == model_digest(aligned.state_dict())
    assert cosine == pytest.approx(1.0)


def test_another_architecture_is_an_error() -> None:
    """Networks whose channels differ cannot be matched: said with the tensor where they part."""
    deep, inputs = network("plain_residual"), some_inputs("plain_residual", 8)
    shallow = copy.deepcopy(deep)
    shallow.blocks = nn.ModuleList([nn.Linear(16, 16)])

    with pytest.raises(
        ValueError, match=r"expected a suspect with the reference's channels .*, got 16 .* of blocks\.1"
    ):
        realign(deep, shallow, inputs)


def test_network_without_hidden_channels_is_an_error() -> None:
    """A linear classifier has nothing to match."""
    with pytest.raises(ValueError, match="expected a network with channels that can be permuted"):
        realign(nn.Linear(4, 3), nn.Linear(4, 3), torch.randn(2, 4))


def test_ruined_weights_are_an_error() -> None:
    """NaN in the suspect is named, not matched."""
    model, inputs = network("digits_mlp"), some_inputs("digits_mlp", 8)
    suspect = copy.deepcopy(model)
    suspect.hidden2.weight.data[0, 0] = torch.nan

    with pytest.raises(FloatingPointError, match="expected finite weights"):
        realign(suspect, model, inputs)


def test_unrewritten_victim_is_judged_as_before(victim: Victim) -> None:
    """Realigning the marked model to itself changes no bit of it."""
    aligned, cosine = realign(victim.model, victim.model, few_inputs(victim))

    assert model_digest(victim.model.state_dict()) == model_digest(aligned.state_dict())
    assert cosine == pytest.approx(1.0)


@pytest.mark.parametrize("seed", [1, 2])
def test_strangers_are_still_refused(victim: Victim, seed: int) -> None:
    """An independent network that was realigned to the marked one is not taken for it, and its cosine is low."""
    aligned, cosine = realign(clean_model("digits_cnn", seed), victim.model, few_inputs(victim))

    assert victim.judge(victim.model).verdict
    assert not victim.judge(aligned).verdict
    assert cosine < 0.6
