"""Channel groups: complete, exact under permuting and scaling, and silent where a network is not understood."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from tests.channel_networks import NETWORKS, MixedNet, largest_change, network, rewritten, some_inputs
from wmarena.schemes.commitment import model_digest
from wmarena.schemes.symmetry.groups import Group, channel_groups, ensure_equivalent, logit_difference

SMALL = [name for name in NETWORKS if name != "resnet18"]


def logits(model: nn.Module, inputs: Tensor) -> Tensor:
    """Outputs in eval mode, without gradients."""
    with torch.no_grad():
        return copy.deepcopy(model).eval()(inputs)


def group_of(model: nn.Module, inputs: Tensor, name: str, dim: int = 0) -> Group | None:
    """The group that runs over ``dim`` of tensor ``name``, or None if it is pinned."""
    return next((group for group in channel_groups(model, inputs) if group.covers(name, dim)), None)


class Gated(nn.Module):
    """Two hidden layers; a softmax over the first one's channels, which no handler knows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, 3)."""
        return self.head(F.relu(self.second(torch.softmax(self.first(inputs), dim=1))))


class Chained(nn.Module):
    """Three hidden layers of equal size; subclasses differ in how the second is called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 7)
        self.head = nn.Linear(7, 3)

    def middle(self, x: Tensor) -> Tensor:
        """(n, 6)."""
        return F.relu(self.second(x))

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, 3)."""
        return self.head(F.relu(self.third(self.middle(F.relu(self.first(inputs))))))


class CalledTwice(Chained):
    """The second layer is applied twice."""

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.second(x))))


class ReadDirectly(Chained):
    """The second layer's weight is also used by itself."""

    def middle(self, x: Tensor) -> Tensor:
        return F.linear(F.relu(self.second(x)), self.second.weight)


class Hooked(Chained):
    """The second layer's output is changed by a hook."""

    def __init__(self) -> None:
        super().__init__()
        self.second.register_forward_hook(lambda module, args, output: output * torch.arange(6.0))


class Reparametrised(Chained):
    """The second layer's weight is computed from others."""

    def __init__(self) -> None:
        super().__init__()
        weight_norm(self.second)


class GroupedConvolution(nn.Module):
    """A convolution in two groups between two ordinary ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.grouped = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 3, groups=2)
        self.last, self.head = nn.Conv2d(8, 6, 1), nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, 3)."""
        return self.head(F.relu(self.last(F.relu(self.grouped(F.relu(self.first(inputs)))))).mean(dim=[2, 3]))


class Branching(nn.Module):
    """Decides by the values of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, 3)."""
        return self.head(inputs) if inputs.sum() > 0 else self.head(-inputs)


@pytest.mark.parametrize("name", NETWORKS)
def test_groups_are_all_that_may_move(name: str) -> None:
    """Every kind of network has exactly the groups that its drawing shows, by width."""
    widths = [group.width for group in channel_groups(network(name), some_inputs(name))]

    assert sorted(widths) == sorted(NETWORKS[name][2])


@pytest.mark.parametrize("name", NETWORKS)
def test_permuting_keeps_every_answer(name: str) -> None:
    """With all groups permuted the weights are others and 64 inputs' logits the same, in float32 too."""
    model, inputs = network(name), some_inputs(name)
    other = rewritten(model, inputs)

    assert largest_change(model, other) > 0.1
    assert ensure_equivalent(model, other, inputs) < 1e-9 * (1 + logits(model, inputs).abs().max())
    difference, size = logit_difference(model, other, inputs, torch.float32)
    assert difference < 1e-4 * max(1.0, size)


@pytest.mark.parametrize("name", NETWORKS)
def test_scaling_keeps_every_answer(name: str) -> None:
    """With all gains spread over two decades the weights are others and 64 inputs' logits the same, in float32 too."""
    model, inputs = network(name), some_inputs(name)
    other = rewritten(model, inputs, factor=10, permuted=False)

    assert largest_change(model, other) > 0.1
    ensure_equivalent(model, other, inputs)
    difference, size = logit_difference(model, other, inputs, torch.float32)
    assert difference < 1e-4 * max(1.0, size)


@pytest.mark.parametrize("name", SMALL)
def test_gains_are_independent(name: str) -> None:
    """Each gain can be moved alone."""
    model, inputs = network(name), some_inputs(name)
    generator = torch.Generator().manual_seed(3)
    gains = [gain for group in channel_groups(model, inputs) for gain in group.gains]

    assert gains
    for gain in gains:
        before = copy.deepcopy(model)
        gain.scale(10 ** (2 * torch.rand(gain.width, generator=generator, dtype=torch.float64) - 1))
        assert largest_change(before, model) > 0.1
        ensure_equivalent(before, model, inputs)


@pytest.mark.parametrize("name", SMALL)
def test_identity_changes_no_bit(name: str) -> None:
    """The identity permutation and factors of one leave every tensor as it was."""
    model, inputs = network(name), some_inputs(name)
    other = copy.deepcopy(model)
    for group in channel_groups(other, inputs):
        group.permute(torch.arange(group.width))
        group.scale(torch.ones(group.width))

    assert model_digest(model.state_dict()) == model_digest(other.state_dict())


@pytest.mark.parametrize("name", SMALL)
def test_finding_groups_changes_nothing(name: str) -> None:
    """Weights, statistics, training flags and the random state are as before, in train mode too."""
    model, inputs = network(name).train(), some_inputs(name)
    before, state = model_digest(model.state_dict()), torch.get_rng_state()
    channel_groups(model, inputs)

    assert model_digest(model.state_dict()) == before
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_inverse_permutation_restores_the_bits() -> None:
    """Permuting there and back is the identity."""
    model, inputs = network("digits_cnn"), some_inputs("digits_cnn")
    other = copy.deepcopy(model)
    for group in channel_groups(other, inputs):
        order = torch.randperm(group.width, generator=torch.Generator().manual_seed(1))
        group.permute(order)
        group.permute(order.argsort())

    assert model_digest(model.state_dict()) == model_digest(other.state_dict())


def test_channel_takes_the_place_that_the_order_names() -> None:
    """After ``permute(order)`` channel i is what channel order[i] was: rows, batch norm and columns."""
    model, inputs = network("digits_cnn"), some_inputs("digits_cnn")
    old = copy.deepcopy(model).state_dict()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(2))
    group = group_of(model, inputs, "stage1.0.weight")
    assert group is not None
    group.permute(order)
    new = model.state_dict()

    for name in ("0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var"):
        assert torch.equal(new[f"stage1.{name}"], old[f"stage1.{name}"][order])
    assert torch.equal(new["stage2.0.weight"], old["stage2.0.weight"][:, order])


def test_residual_stream_is_one_group() -> None:
    """Stem, last convolutions, norms, shortcuts and all readers of a stage share one permutation; inner ones do not."""
    model, inputs = network("resnet18"), some_inputs("resnet18", 2)
    stream = group_of(model, inputs, "conv1.weight")
    inner = group_of(model, inputs, "layer1.0.conv1.weight")
    last = group_of(model, inputs, "layer4.0.shortcut.0.weight")

    assert stream is not None
    assert inner is not None
    assert last is not None
    for name in ("layer1.0.conv2.weight", "layer1.0.bn2.running_var", "layer1.1.conv2.weight", "bn1.weight"):
        assert stream.covers(name, 0)
    for name in ("layer1.0.conv1.weight", "layer1.1.conv1.weight", "layer2.0.conv1.weight"):
        assert stream.covers(name, 1)
    assert stream.covers("layer2.0.shortcut.0.weight", 1)
    assert {(slot.name, slot.dim) for slot in inner.slots if "num" not in slot.name} == {
        ("layer1.0.conv1.weight", 0),
        ("layer1.0.bn1.weight", 0),
        ("layer1.0.bn1.bias", 0),
        ("layer1.0.bn1.running_mean", 0),
        ("layer1.0.bn1.running_var", 0),
        ("layer1.0.conv2.weight", 1),
    }
    assert last.covers("head.weight", 1)


def test_flattened_channel_owns_a_block_of_columns() -> None:
    """After flattening 4x4 maps a channel's permutation moves 16 neighbouring columns of the dense layer."""
    group = group_of(network("lenet5"), some_inputs("lenet5"), "conv2.weight")
    assert group is not None
    columns = next(slot for slot in group.slots if slot.name == "fc1.weight")

    assert (columns.dim, columns.width, columns.block) == (1, 50, 16)


def test_padded_shortcut_pins_the_streams() -> None:
    """With an option-A shortcut only the inner channels move: stem, last convolution and head inputs stand still."""
    model, inputs = network("option_a"), some_inputs("option_a")

    assert group_of(model, inputs, "conv1.weight") is not None
    assert group_of(model, inputs, "stem.weight") is None
    assert group_of(model, inputs, "conv2.weight") is None
    assert group_of(model, inputs, "head.weight", dim=1) is None


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_and_inputs_are_pinned(name: str) -> None:
    """No group runs over the classes, nor over what the first layer reads."""
    model, inputs = network(name), some_inputs(name)
    weights = [n for n, p in model.named_parameters() if p.dim() > 1]

    assert group_of(model, inputs, "head.weight", dim=0) is None
    assert group_of(model, inputs, "head.bias", dim=0) is None
    assert group_of(model, inputs, weights[0], dim=1) is None


def test_what_lies_before_a_batch_norm_is_not_scaled() -> None:
    """A gain before batch norm moves scale and shift and the readers' columns, never the convolution or statistics."""
    group = group_of(network("digits_cnn"), some_inputs("digits_cnn"), "stage1.0.weight")
    assert group is not None
    (gain,) = group.gains

    assert [slot.name for slot in gain.multiplied] == ["stage1.1.weight", "stage1.1.bias"]
    assert [slot.name for slot in gain.divided] == ["stage2.0.weight"]


def test_sigmoid_ends_scaling_and_not_permuting() -> None:
    """Channels that pass a sigmoid can be reordered; there is no gain to move."""
    group = group_of(network("mixed"), some_inputs("mixed"), "hidden1.weight")

    assert group is not None
    assert group.gains == ()


def test_depthwise_convolution_starts_another_gain() -> None:
    """The channels before and after a depthwise convolution are one group with two independent scales."""
    group = group_of(network("mixed"), some_inputs("mixed"), "left.weight")

    assert group is not None
    assert group.covers("depthwise.weight", 0)
    assert len(group.gains) == 2


def test_unknown_operation_pins_what_it_touches_only() -> None:
    """A softmax over channels pins the layer before it; the layer after it stays free."""
    model, inputs = Gated(), torch.randn(8, 4)

    assert [group.width for group in channel_groups(model, inputs)] == [8]


@pytest.mark.parametrize("kind", [CalledTwice, ReadDirectly, Hooked, Reparametrised])
def test_entangled_layers_are_left_alone(kind: type[Chained]) -> None:
    """A layer called twice, read directly, hooked or reparametrised pins both its sides, and the rest is exact."""
    model, inputs = kind(), torch.randn(8, 4)
    other = copy.deepcopy(model)
    groups = channel_groups(other, inputs)
    for group in groups:
        group.permute(torch.arange(group.width).flip(0))

    assert [group.width for group in groups] == [7]
    ensure_equivalent(model, other, inputs)


def test_unentangled_layers_move() -> None:
    """The same network without the entanglement has three groups: the test above is not passed by pinning all."""
    assert [group.width for group in channel_groups(Chained(), torch.randn(8, 4))] == [6, 6, 7]


def test_grouped_convolution_pins_both_sides() -> None:
    """Channels that a grouped convolution reads or writes stand still; those after it move."""
    assert [group.width for group in channel_groups(GroupedConvolution(), torch.randn(2, 1, 8, 8))] == [6]


def test_untraceable_network_is_an_error() -> None:
    """A forward pass that branches on values is refused with the way out."""
    with pytest.raises(ValueError, match="expected a traceable network, got Branching"):
        channel_groups(Branching(), torch.randn(2, 4))


@pytest.mark.parametrize("order", [[0, 1], [0] * 16, list(range(1, 17))])
def test_wrong_order_is_an_error(order: list[int]) -> None:
    """Too short, repeated or out of range: no permutation."""
    group = channel_groups(network("digits_cnn"), some_inputs("digits_cnn"))[0]

    with pytest.raises(ValueError, match=r"expected each of 0\.\.15 once"):
        group.permute(torch.tensor(order))


@pytest.mark.parametrize("factor", [0.0, -1.0, float("inf"), float("nan")])
def test_wrong_factor_is_an_error(factor: float) -> None:
    """Only positive finite factors commute with rectifiers."""
    group = channel_groups(network("digits_cnn"), some_inputs("digits_cnn"))[0]

    with pytest.raises(ValueError, match="expected 16 positive finite factors"):
        group.scale(torch.tensor([1.0] * 15 + [factor]))


def test_changed_function_is_noticed() -> None:
    """One weight that moved by itself is no rewrite; NaN is named as such."""
    model, inputs = network("mixed"), some_inputs("mixed")
    assert isinstance(model, MixedNet)
    other, broken = copy.deepcopy(model), copy.deepcopy(model)
    other.mix.weight.data[0, 0] += 1
    broken.mix.weight.data[0, 0] = torch.nan

    with pytest.raises(RuntimeError, match="expected an unchanged function"):
        ensure_equivalent(model, other, inputs)
    with pytest.raises(FloatingPointError, match="expected finite logits"):
        ensure_equivalent(model, broken, inputs)
