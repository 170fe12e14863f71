"""Which channels can be removed alone is read from the autograd graph, not from names."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.victims import arena, clean_model
from wmarena.attacks.compression.channels import PrunableLayer, mean_activity, prunable_layers
from wmarena.experiments.workloads.networks.base import Network
from wmarena.experiments.workloads.networks.lenet import LeNet5
from wmarena.experiments.workloads.networks.resnet import ResNet18
from wmarena.schemes.base import Batch

TASK = arena("digits_cnn").task


class Gated(Network):
    """Hidden layers that meet in a product, in a layer used twice, and in a learnt rectifier."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.twice = (nn.Linear(4, 4) for _ in range(3))
        self.before, self.rectifier = nn.Linear(4, 4), nn.PReLU(4)
        self.plain = nn.Linear(4, 6)
        self.head = nn.Linear(6, 10)

    def taps(self, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        gated = self.left(inputs) * torch.sigmoid(self.right(inputs))
        repeated = self.twice(functional.relu(self.twice(gated)))
        return (functional.relu(self.plain(self.rectifier(self.before(repeated)))),)


def batch(*shape: int) -> Batch:
    """Two inputs with labels."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, *shape, generator=generator), torch.tensor([0, 1])


def names(model: nn.Module, *shape: int) -> list[str]:
    """Prunable layers by name."""
    return [layer.name for layer in prunable_layers(model.eval(), TASK, batch(*shape))]


def test_plain_network_is_prunable_but_for_its_head() -> None:
    """Convolutions through pooling and flattening to linear layers: all but the output layer."""
    assert names(LeNet5(), 1, 28, 28) == ["conv1", "conv2", "fc1"]


def test_residual_network_gives_up_inner_channels_only() -> None:
    """The stem, the blocks' last convolutions and the shortcuts write into sums and are left alone."""
    inner = [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3, 4) for block in (0, 1)]

    assert names(ResNet18(1), 1, 8, 8) == inner


def test_gates_and_shared_layers_are_left_alone() -> None:
    """A product of two branches, a layer used twice, and an unknown operation with parameters are not prunable."""
    assert names(Gated(), 4) == ["plain"]


def test_networks_without_gradients_are_refused() -> None:
    """A frozen layer has no place in the graph, what has no weights has no graph: the message names the way out."""
    frozen = LeNet5().eval()
    frozen.conv1.requires_grad_(False)
    for model, name in ((frozen, "Conv2d"), (nn.Flatten(), "Flatten")):
        with pytest.raises(TypeError, match=f"got {name} without; let all its parameters require them"):
            prunable_layers(model, TASK, batch(1, 28, 28))


def test_norm_belongs_to_its_layer() -> None:
    """Each convolution of the small network takes its own batch norm along, and is read by the next layer."""
    model = copy.deepcopy(clean_model("digits_cnn"))
    layers = prunable_layers(model, TASK, batch(1, 24, 24))

    assert [len(layer.norms) for layer in layers] == [1, 1, 1]
    assert [layer.consumers[0] for layer in layers] == [layers[1].module, layers[2].module, model.head]


def test_activity_is_what_the_next_layer_consumes() -> None:
    """Mean absolute value of the tap after batch norm, ReLU and pooling, per channel."""
    model = copy.deepcopy(clean_model("digits_cnn"))
    samples = arena("digits_cnn").val
    layers = prunable_layers(model, TASK, batch(1, 24, 24))

    activity = mean_activity(layers, model, TASK, samples)

    with torch.no_grad():
        taps = [TASK.stages(model, inputs) for inputs, _ in samples.in_order()]
    for index in (0, 1):
        values = torch.cat([t[index] for t in taps]).double().abs().mean(dim=(0, 2, 3))
        assert torch.allclose(activity[index], values, rtol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 6), (3, 6)])
def test_activity_between_linear_layers(shape: tuple[int, ...]) -> None:
    """The features of linear layers are the last dimension, tokens or not."""
    model = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 10))
    layer = PrunableLayer("0", model[0], (), (model[1],))
    seen = torch.arange(float(torch.tensor(shape).prod())).reshape(shape)

    class Fixed:
        """Samples whose hidden values are ``seen``."""

        def in_order(self) -> list[Batch]:
            return [(seen, torch.zeros(1))]

    class Second:
        """A task that runs the second layer alone."""

        def loss(self, network: nn.Sequential, inputs: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
            return network[1](inputs).sum()

    (activity,) = mean_activity([layer], model, Second(), Fixed())  # type: ignore[arg-type]

    assert torch.allclose(activity, seen.double().reshape(-1, 6).mean(dim=0))


def test_silenced_channels_output_zero() -> None:
    """After silencing, the consumer receives exact zeros from these channels and the same as before from others."""
    model = copy.deepcopy(clean_model("digits_cnn"))
    inputs, targets = batch(1, 24, 24)
    layer = prunable_layers(model, TASK, (inputs, targets))[0]
    with torch.no_grad():
        before = TASK.stages(model, inputs)[0]
        layer.silence(torch.tensor([2, 5]))
        after = TASK.stages(model, inputs)[0]

    others = [c for c in range(layer.width) if c not in (2, 5)]
    assert torch.count_nonzero(after[:, [2, 5]]) == 0
    assert torch.equal(before[:, others], after[:, others])
