"""ALL-CNN-C and ResNet-32: the papers' shapes and sizes, and workloads that train them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from wmarena.experiments.workloads.images.base import ImageWorkload
from wmarena.experiments.workloads.images.cifar10_allcnn import Cifar10AllCnn
from wmarena.experiments.workloads.images.cifar10_resnet32 import Cifar10ResNet32
from wmarena.experiments.workloads.networks.allcnn import AllCnnC
from wmarena.experiments.workloads.networks.resnet32 import PaddedBlock, ResNet32

CPU = torch.device("cpu")
WORKLOADS = [Cifar10AllCnn(), Cifar10ResNet32()]
both = pytest.mark.parametrize("workload", WORKLOADS, ids=lambda w: w.name)


def images(n: int) -> Tensor:
    """(n, 3, 32, 32) normal noise."""
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("workload", "parameters", "shapes"),
    [
        (Cifar10AllCnn(), 1_369_738, [(96, 16, 16), (192, 8, 8), (192, 6, 6)]),
        (Cifar10ResNet32(), 464_154, [(16, 32, 32), (32, 16, 16), (64, 8, 8)]),
    ],
    ids=["cifar10_allcnn", "cifar10_resnet32"],
)
def test_networks_have_the_papers_size(workload: ImageWorkload, parameters: int, shapes: list[tuple[int, ...]]) -> None:
    """1.37 and 0.46 million parameters; three taps whose maps shrink as the papers' tables say."""
    task = workload.task(CPU)
    model = task.network(0)
    taps = task.stages(model, images(2))

    assert sum(p.numel() for p in model.parameters()) == parameters
    assert [tuple(tap.shape[1:]) for tap in taps] == shapes
    assert model(images(2)).shape == (2, 10)


@both
def test_parts_make_the_whole(workload: ImageWorkload) -> None:
    """Extractor and predictor, one after the other, are the network; the head is its linear output layer."""
    task = workload.task(CPU)
    model = task.network(0).eval()
    for at in ("dense", "head"):
        extractor, predictor = task.split(model, at)
        assert torch.equal(predictor(extractor(images(3))), model(images(3)))
    assert isinstance(task.head(model), nn.Linear)


def test_depths_are_the_papers() -> None:
    """Eight convolutions and a linear layer; 31 convolutions and a linear layer."""
    counts = [
        [sum(isinstance(m, kind) for m in network.modules()) for kind in (nn.Conv2d, nn.Linear, nn.BatchNorm2d)]
        for network in (AllCnnC(), ResNet32())
    ]

    assert counts == [[8, 1, 0], [31, 1, 31]]


def test_pooling_first_is_the_papers_last_layer() -> None:
    """The head on pooled maps equals a 1x1 convolution to the classes with pooling behind it, its ReLU left out."""
    network = AllCnnC().eval()
    with torch.no_grad():
        last = network.taps(images(4))[-1]
        maps = F.conv2d(last, network.head.weight[:, :, None, None], network.head.bias)

        torch.testing.assert_close(network.head(network.features(last)), maps.mean(dim=(2, 3)))


def test_dropout_acts_in_training_alone() -> None:
    """A fifth of the inputs and half of either strided convolution's maps; none when the network is judged."""
    network = AllCnnC()
    rates = [m.p for m in network.modules() if isinstance(m, nn.Dropout)]
    with torch.no_grad():
        trained = [network(images(2)) for _ in range(2)]
        network.eval()
        judged = [network(images(2)) for _ in range(2)]

    assert rates == [0.2, 0.5, 0.5]
    assert not torch.equal(*trained)
    assert torch.equal(*judged)


def test_signal_keeps_its_size() -> None:
    """Nine layers without normalisation keep the scale of the signal."""
    network = AllCnnC().eval()
    with torch.no_grad():
        sizes = [float(tap.square().mean().sqrt()) for tap in network.taps(images(8))]

    assert all(0.3 < size < 3 for size in sizes)


def test_shortcut_pads_channels_and_skips_pixels() -> None:
    """Option A: every second pixel, zero channels on both sides, no parameters; the identity where nothing changes."""
    inputs = torch.arange(2 * 16 * 4 * 4, dtype=torch.float32).view(2, 16, 4, 4)
    narrowed = PaddedBlock(16, 32).shortcut(inputs)

    assert narrowed.shape == (2, 32, 2, 2)
    assert torch.equal(narrowed[:, 8:24], inputs[:, :, ::2, ::2])
    assert not narrowed[:, :8].any()
    assert not narrowed[:, 24:].any()
    assert PaddedBlock(16, 16).shortcut(inputs) is inputs


@both
def test_a_few_steps_fit_a_batch(workload: ImageWorkload) -> None:
    """Eight steps on eight random images lower their loss, batch norm in train mode, dropout left out."""
    task = workload.task(CPU)
    model = task.network(0)
    inputs, targets = images(8), torch.arange(8)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for module in model.modules():
        module.training = not isinstance(module, nn.Dropout)
    before = float(task.loss(model, inputs, targets).detach())
    for _ in range(8):
        optimiser.zero_grad()
        loss = task.loss(model, inputs, targets)
        torch.autograd.backward(loss)
        optimiser.step()

    assert float(task.loss(model, inputs, targets).detach()) < before


@both
def test_recipes_end_with_their_last_milestone_behind_them(workload: ImageWorkload) -> None:
    """SGD with weight decay, divided by ten in steps that all lie within the training; crops and mirroring."""
    recipe = workload.recipe

    assert (recipe.optimiser, recipe.schedule, recipe.batch_size) == ("sgd", "step", 128)
    assert list(recipe.milestones) == sorted(recipe.milestones)
    assert 0 < recipe.milestones[-1] < recipe.epochs
    assert recipe.weight_decay > 0
    assert (workload.crop, workload.flip) == (4, True)


@pytest.mark.data
@pytest.mark.parametrize("workload", [Cifar10AllCnn, Cifar10ResNet32])
def test_workloads_on_files_train_a_few_steps(workload: type[ImageWorkload], data_root: Path) -> None:
    """Bound to real files, two steps of the own recipe on 32 images leave finite weights and a score."""
    if not workload.available(data_root):
        pytest.skip(f"needs {workload.source.name} under the data root")
    bound = workload(train_size=32, val_size=10, test_size=20, batch_size=16, epochs=350).bind(CPU, data_root)
    model = bound.task.network(0)
    bound.task.fit(model, bound.train, replace(bound.task.recipe, steps=2), seed=0)

    assert all(bool(torch.isfinite(t).all()) for t in model.state_dict().values() if t.is_floating_point())
    assert 0 <= bound.task.score(model, bound.test) <= 1
