"""What a task offers to schemes and attacks."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from wmarena.experiments.workloads.images.cifar import Cifar10ResNet18
from wmarena.experiments.workloads.images.digits import DigitsCnn, DigitsMlp
from wmarena.experiments.workloads.images.mnist import FashionLeNet5, MnistLeNet5
from wmarena.experiments.workloads.images.mnist_resnet import FashionResNet18, MnistResNet18
from wmarena.orchestrator.worker.workload import BoundWorkload
from wmarena.schemes.base import Suspect

CPU = torch.device("cpu")
DIGITS = {"cnn": DigitsCnn(train_size=200), "mlp": DigitsMlp(train_size=200)}


@pytest.fixture(scope="module", params=["cnn", "mlp"])
def bound(request: pytest.FixtureRequest) -> BoundWorkload:
    """Both digits workloads."""
    return DIGITS[request.param].bind(CPU, None)


@pytest.fixture(scope="module")
def inputs(bound: BoundWorkload) -> Tensor:
    """Twelve normalised images."""
    return next(bound.val.in_order(12))[0]


def test_networks_are_seeded_and_leave_the_global_generator_alone(bound: BoundWorkload) -> None:
    """Equal seeds, equal weights; the global generator's next number is what it would have been."""
    state = torch.get_rng_state()
    one, two, other = (bound.task.network(seed).state_dict() for seed in (1, 1, 2))

    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])
    assert bound.task.network(0).training


def test_the_last_tap_feeds_the_head(bound: BoundWorkload, inputs: Tensor) -> None:
    """Taps and predictions share their code: changing the last tap's layer changes the logits."""
    model = bound.task.network(0).eval()
    taps = bound.task.stages(model, inputs)

    assert len(taps) == len(bound.task.stage_names(model)) == 3
    assert all(len(tap) == 12 for tap in taps)
    torch.testing.assert_close(bound.task.head(model)(model.features(taps[-1])), model(inputs))


def test_stages_with_a_state_are_the_stages_of_a_model_with_that_state(bound: BoundWorkload, inputs: Tensor) -> None:
    """Given tensors replace the model's own for the call; names left out come from the model, which keeps its own."""
    model, other = bound.task.network(0).eval(), bound.task.network(1).eval()
    before = bound.task.stages(model, inputs)
    whole = bound.task.stages(model, inputs, dict(other.state_dict()))
    name = next(iter(model.state_dict()))
    partial = bound.task.stages(model, inputs, {name: other.state_dict()[name]})

    for mine, theirs in zip(whole, bound.task.stages(other, inputs), strict=True):
        assert torch.equal(mine, theirs)
    for one, two, three in zip(before, partial, bound.task.stages(model, inputs), strict=True):
        assert not torch.equal(one, two)
        assert torch.equal(one, three)


def test_gradients_reach_the_given_state(bound: BoundWorkload, inputs: Tensor) -> None:
    """A copy shifted along a direction is differentiable in that direction, as numerical differences confirm."""
    model = bound.task.network(0).double().eval()
    own = {name: p.detach() for name, p in model.named_parameters()}
    name = next(iter(own))
    direction = torch.ones_like(own[name])
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def summed(by: Tensor) -> Tensor:
        state = {**own, name: own[name] + by * direction}
        return sum((tap.mean() for tap in bound.task.stages(model, inputs.double(), state)), torch.zeros(()))

    (slope,) = torch.autograd.grad(summed(shift), shift)
    step = torch.tensor(1e-7, dtype=torch.float64)
    assert float(slope) == pytest.approx(float((summed(step) - summed(-step)) / (2 * step)), rel=1e-3)
    assert abs(float(slope)) > 1e-6
    assert all(p.grad is None for p in model.parameters())


def test_stages_refuse_unknown_names(bound: BoundWorkload, inputs: Tensor) -> None:
    """A misspelt tensor would otherwise be ignored silently."""
    with pytest.raises(ValueError, match=r"'nothing\.weight'"):
        bound.task.stages(bound.task.network(0), inputs, {"nothing.weight": torch.zeros(1)})


def test_a_foreign_network_is_refused(bound: BoundWorkload, inputs: Tensor) -> None:
    """Without taps there is nothing to read."""
    with pytest.raises(TypeError, match="got Flatten"):
        bound.task.stages(nn.Flatten(), inputs)


def test_the_architecture_is_json_and_fits_its_own_model(bound: BoundWorkload) -> None:
    """A model matches its own architecture; another head does not, and the difference is named."""
    model = bound.task.network(0)
    architecture = bound.task.architecture(model)

    assert architecture["head.weight"] == [10, 64]
    assert Suspect(model, bound.task).mismatch(architecture) is None
    wider = {**architecture, "head.bias": [11]}
    assert "head.bias" in (Suspect(model, bound.task).mismatch(wider) or "")


def test_prediction_is_in_eval_mode_and_leaves_flags_and_statistics(bound: BoundWorkload) -> None:
    """Predicting in train mode gives the eval mode's labels; batch-norm statistics do not move."""
    model = bound.task.network(0)
    raw = torch.randint(0, 256, (30, 1, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    labels = bound.task.predict(model, raw)

    assert model.training
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        expected = model.eval()(bound.task.to_inputs(raw)).argmax(dim=1)
    assert labels.dtype == torch.int64
    assert torch.equal(labels, expected)


def test_predictions_can_be_training_targets(bound: BoundWorkload) -> None:
    """Labels from ``predict`` are ordinary tensors: a loss against them is differentiable."""
    model = bound.task.network(0)
    raw = bound.task.encode_integers(range(8))
    loss = bound.task.loss(model, bound.task.to_inputs(raw), bound.task.predict(model, raw))
    torch.autograd.backward(loss)

    assert bound.task.head(model).weight.grad is not None


def test_evaluation_agrees_with_score_and_predict(bound: BoundWorkload) -> None:
    """The score is the fraction of answers that equal the targets, in sample order."""
    model = bound.task.network(0)
    evaluation = bound.task.evaluate(model, bound.test)
    targets = torch.cat([labels for _, labels in bound.test.in_order()])

    assert evaluation.predicted is not None
    assert evaluation.targets is not None
    assert evaluation.predicted.dtype == evaluation.targets.dtype == torch.int16
    assert torch.equal(evaluation.targets, targets.to(torch.int16))
    right = int((evaluation.predicted == evaluation.targets).sum())
    assert evaluation.score == bound.task.score(model, bound.test) == right / len(targets)


def test_inputs_of_another_type_or_shape_are_refused(bound: BoundWorkload) -> None:
    """Floats would be normalised twice, other sizes would fail deep inside."""
    for raw in (torch.zeros(2, 1, 24, 24), torch.zeros(2, 1, 28, 28, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"expected uint8 images \(n, 1, 24, 24\)"):
            bound.task.to_inputs(raw)


def test_a_task_without_data_equals_the_bound_task(bound: BoundWorkload) -> None:
    """Judging needs no data set: same networks, same inputs, same predictions."""
    alone = DIGITS[bound.task.name.removeprefix("digits_")].task(CPU)
    raw = alone.encode_integers(range(9))

    assert alone.recipe == bound.task.recipe
    assert torch.equal(alone.to_inputs(raw), bound.task.to_inputs(raw))
    assert torch.equal(alone.predict(alone.network(4), raw), bound.task.predict(bound.task.network(4), raw))


def test_lenet_is_caffe_s() -> None:
    """431,080 parameters; taps after both pools and after the rectified dense layer."""
    task = FashionLeNet5().task(CPU)
    model = task.network(0)
    taps = task.stages(model, task.to_inputs(task.encode_integers([1, 2])))

    assert sum(p.numel() for p in model.parameters()) == 431_080
    assert [tuple(tap.shape[1:]) for tap in taps] == [(20, 12, 12), (50, 4, 4), (500,)]
    assert float(taps[0].detach().min()) < 0 <= float(taps[2].detach().min())


@pytest.mark.data
@pytest.mark.parametrize("workload", [MnistLeNet5, FashionLeNet5, MnistResNet18, FashionResNet18, Cifar10ResNet18])
def test_workloads_on_files_train_a_few_steps(workload: type, data_root: Path) -> None:
    """Bound to real files, two steps of the own recipe on 32 images leave finite weights and a score."""
    if not workload.available(data_root):
        pytest.skip(f"needs {workload.source.name} under the data root")
    bound: BoundWorkload = workload(train_size=32, val_size=10, test_size=20, batch_size=16, epochs=1).bind(
        CPU, data_root
    )
    model = bound.task.network(0)
    taps = bound.task.stages(model, bound.task.to_inputs(bound.task.encode_integers([5, 6])))
    bound.task.fit(model, bound.train, replace(bound.task.recipe, steps=2), seed=0)

    assert len(taps) == 3
    assert all(bool(torch.isfinite(t).all()) for t in model.state_dict().values() if t.is_floating_point())
    assert 0 <= bound.task.score(model, bound.test) <= 1
