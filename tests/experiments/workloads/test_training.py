"""The training loop on digits: repeatable, resumable, limited to trainable parameters."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.experiments.workloads.memory import MemoryCheckpoints, MemoryLog
from wmarena.experiments.workloads.images.digits import DigitsCnn, DigitsMlp
from wmarena.experiments.workloads.images.task import ImageTask
from wmarena.experiments.workloads.networks.small import SmallMlp
from wmarena.experiments.workloads.training import learning_rate
from wmarena.orchestrator.worker.workload import BoundWorkload
from wmarena.schemes.base import Batch, Cancelled, Recipe

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cnn() -> BoundWorkload:
    """Digits with batch norm, a third of the data."""
    return DigitsCnn(train_size=300).bind(CPU, None)


def same(one: nn.Module, other: nn.Module) -> bool:
    """True if all tensors are bit-equal."""
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def trained(bound: BoundWorkload, recipe: Recipe, *, seed: int = 0) -> nn.Module:
    """A network of seed 0 after one undisturbed fit."""
    model = bound.task.network(0)
    bound.task.fit(model, bound.train, recipe, seed=seed)
    return model


def test_default_recipes_learn_digits() -> None:
    """The shipped recipes reach 95 % (perceptron) and 97 % (convolutions) of test accuracy."""
    for config, least in ((DigitsMlp(), 0.95), (DigitsCnn(), 0.97)):
        bound = config.bind(CPU, None)
        model = trained(bound, bound.task.recipe)

        assert bound.task.score(model, bound.test) >= least


def test_same_seed_gives_the_same_bits_and_another_does_not(cnn: BoundWorkload) -> None:
    """Training is a function of the seed."""
    recipe = replace(cnn.task.recipe, epochs=2)
    first = trained(cnn, recipe, seed=3)
    torch.manual_seed(99)

    assert same(first, trained(cnn, recipe, seed=3))
    assert not same(first, trained(cnn, recipe, seed=4))


@pytest.mark.parametrize(
    "change",
    [
        {"optimiser": "adam", "schedule": "one_cycle"},
        {"optimiser": "sgd", "lr": 0.05, "schedule": "step", "milestones": (1, 2), "weight_decay": 5e-4},
        {"optimiser": "adam", "schedule": "constant", "bn_mode": "eval"},
    ],
    ids=["adam-one_cycle", "sgd-step", "adam-constant-bn_eval"],
)
def test_resumed_training_equals_an_undisturbed_one(cnn: BoundWorkload, change: dict[str, object]) -> None:
    """Interrupted after the first epoch and continued in another network object: the same bits, the same losses."""
    recipe = replace(cnn.task.recipe, epochs=3, **change)
    whole, parts = MemoryLog(), MemoryLog()
    undisturbed = cnn.task.network(0)
    cnn.task.fit(undisturbed, cnn.train, recipe, seed=0, log=whole)

    checkpoints = MemoryCheckpoints(stop_after=1)
    with pytest.raises(Cancelled):
        cnn.task.fit(cnn.task.network(0), cnn.train, recipe, seed=0, log=parts, checkpoints=checkpoints)
    resumed = cnn.task.network(7)
    cnn.task.fit(resumed, cnn.train, recipe, seed=0, log=parts, checkpoints=checkpoints)

    assert same(undisturbed, resumed)
    assert whole.rows == parts.rows


class Dropping(SmallMlp):
    """The perceptron with half of its inputs dropped in training; ``seen`` holds what was left of every batch."""

    def __init__(self) -> None:
        super().__init__(24 * 24)
        self.dropout = nn.Dropout(0.5)
        self.seen: list[Tensor] = []

    def taps(self, inputs: Tensor) -> tuple[Tensor, ...]:
        kept = self.dropout(torch.ones_like(inputs))
        if self.training:
            self.seen.append(kept[0])
        return super().taps(inputs * kept)


@pytest.fixture(scope="module")
def dropping() -> BoundWorkload:
    """Digits for a network with dropout."""
    bound = DigitsMlp(train_size=300).bind(CPU, None)
    assert isinstance(bound.task, ImageTask)
    return replace(bound, task=replace(bound.task, build=Dropping))


def test_a_network_with_dropout_resumes_bit_equal(dropping: BoundWorkload) -> None:
    """Dropout masks depend on seed and epoch, not on earlier draws of the process: equal bits and losses."""
    recipe = replace(dropping.task.recipe, epochs=3)
    whole, parts = MemoryLog(), MemoryLog()
    undisturbed = dropping.task.network(0)
    dropping.task.fit(undisturbed, dropping.train, recipe, seed=0, log=whole)

    torch.manual_seed(123)
    checkpoints = MemoryCheckpoints(stop_after=1)
    with pytest.raises(Cancelled):
        dropping.task.fit(dropping.task.network(0), dropping.train, recipe, seed=0, log=parts, checkpoints=checkpoints)
    resumed = dropping.task.network(7)
    dropping.task.fit(resumed, dropping.train, recipe, seed=0, log=parts, checkpoints=checkpoints)

    assert same(undisturbed, resumed)
    assert whole.rows == parts.rows


def test_dropout_differs_between_steps_epochs_and_seeds_and_keeps_the_global_generator(dropping: BoundWorkload) -> None:
    """No mask repeats within two epochs of two seeds; the global generator is unchanged."""
    state = torch.get_rng_state()
    masks: list[Tensor] = []
    for seed in (0, 1):
        model = dropping.task.network(0)
        assert isinstance(model, Dropping)
        dropping.task.fit(model, dropping.train, replace(dropping.task.recipe, epochs=2), seed=seed)
        masks += model.seen

    assert len(masks) == 2 * 2 * math.ceil(len(dropping.train) / dropping.task.recipe.batch_size)
    assert len(torch.unique(torch.stack(masks).flatten(1), dim=0)) == len(masks)
    assert torch.equal(state, torch.get_rng_state())


def test_a_longer_constant_training_continues_a_shorter_one(cnn: BoundWorkload) -> None:
    """Without a horizon, checkpoints of one trajectory serve every strength; those beyond are not used."""
    recipe = replace(cnn.task.recipe, epochs=3, schedule="constant")
    checkpoints = MemoryCheckpoints()
    longest = cnn.task.network(0)
    cnn.task.fit(longest, cnn.train, recipe, seed=0, checkpoints=checkpoints, keep_at=[2])
    shorter = cnn.task.network(0)
    cnn.task.fit(shorter, cnn.train, replace(recipe, epochs=2), seed=0, checkpoints=checkpoints)

    assert same(shorter, trained(cnn, replace(recipe, epochs=2)))
    assert not same(shorter, longest)
    assert checkpoints.kept == [2]


def test_steps_override_epochs_and_a_cut_epoch_leaves_no_checkpoint(cnn: BoundWorkload) -> None:
    """``steps`` counts optimiser steps exactly; half an epoch is no state to continue from."""
    per_epoch = math.ceil(len(cnn.train) / cnn.task.recipe.batch_size)
    seen: list[int] = []

    def extra(step: int) -> Batch:
        seen.append(step)
        return next(cnn.val.in_order(2))

    checkpoints = MemoryCheckpoints()
    recipe = replace(cnn.task.recipe, epochs=50, steps=per_epoch + 2)
    cnn.task.fit(cnn.task.network(0), cnn.train, recipe, seed=0, extra=extra, checkpoints=checkpoints)

    assert seen == list(range(per_epoch + 2))
    assert sorted(checkpoints.states) == [1]


def test_extra_images_join_the_batch_that_batch_norm_sees(cnn: BoundWorkload) -> None:
    """Triggers are learnt with their own labels, and shift the batch's statistics."""
    raw = cnn.task.encode_integers(range(20))
    inputs, labels = cnn.task.to_inputs(raw), torch.arange(20) % 10
    recipe = replace(cnn.task.recipe, epochs=12)
    sizes: set[int] = set()

    def watch(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        sizes.add(len(args[0]))

    model = cnn.task.network(0)
    hook = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).register_forward_hook(watch)
    cnn.task.fit(model, cnn.train, recipe, seed=0, extra=lambda step: (inputs, labels))
    hook.remove()

    assert sizes == {recipe.batch_size + 20}
    assert float((cnn.task.predict(model, raw) == labels).float().mean()) >= 0.9


def test_a_penalty_acts_on_the_weights(cnn: BoundWorkload) -> None:
    """A strong L2 penalty on the head leaves it smaller than training without it."""
    recipe = replace(cnn.task.recipe, epochs=4)
    free = trained(cnn, recipe)
    held = cnn.task.network(0)
    cnn.task.fit(held, cnn.train, recipe, seed=0, penalty=lambda m: 10.0 * cnn.task.head(m).weight.square().sum())

    assert cnn.task.head(held).weight.norm() < 0.5 * cnn.task.head(free).weight.norm()


def test_only_what_requires_gradients_moves(cnn: BoundWorkload) -> None:
    """With a frozen body in eval mode, the head is all that changes, and gradients reach nothing else."""
    model = cnn.task.network(0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in cnn.task.head(model).parameters():
        parameter.requires_grad_(True)
    cnn.task.fit(model, cnn.train, replace(cnn.task.recipe, epochs=1, bn_mode="eval"), seed=0)

    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"head.weight", "head.bias"}
    assert all(p.grad is None for n, p in model.named_parameters() if not n.startswith("head."))


def test_a_frozen_model_is_refused(cnn: BoundWorkload) -> None:
    """There is nothing to train: an error, not a silent no-op."""
    model = cnn.task.network(0)
    for parameter in model.parameters():
        parameter.requires_grad_(False)

    with pytest.raises(ValueError, match="all of them frozen"):
        cnn.task.fit(model, cnn.train, cnn.task.recipe, seed=0)


def test_a_loss_that_is_not_finite_stops_training_before_a_checkpoint(cnn: BoundWorkload) -> None:
    """Divergence is an error that names the epoch; the ruined state is not kept."""
    checkpoints = MemoryCheckpoints()

    with pytest.raises(FloatingPointError, match=r"got nan in epoch 1 of 8"):
        cnn.task.fit(
            cnn.task.network(0),
            cnn.train,
            cnn.task.recipe,
            seed=0,
            penalty=lambda m: cnn.task.head(m).weight.sum() * float("nan"),
            checkpoints=checkpoints,
        )
    assert not checkpoints.states


def test_fit_leaves_training_flags_and_the_global_generator_alone(cnn: BoundWorkload) -> None:
    """An attacked model in eval mode stays in eval mode; no global randomness is drawn."""
    model = cnn.task.network(0).eval()
    state = torch.get_rng_state()
    cnn.task.fit(model, cnn.train, replace(cnn.task.recipe, epochs=1), seed=0)

    assert not any(m.training for m in model.modules())
    assert torch.equal(state, torch.get_rng_state())


def test_recalibration_restores_statistics_and_nothing_else(cnn: BoundWorkload) -> None:
    """After ruined statistics, recalibrated ones are the data's own: accuracy is back, weights are untouched."""
    model = trained(cnn, replace(cnn.task.recipe, epochs=4))
    good = cnn.task.score(model, cnn.val)
    weights = [p.clone() for p in model.parameters()]
    first = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    assert first.running_mean is not None
    first.running_mean.fill_(30.0)
    assert cnn.task.score(model, cnn.val) < good - 0.2
    cnn.task.recalibrate(model, cnn.train)

    assert cnn.task.score(model, cnn.val) >= good - 0.05
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert first.momentum == 0.1
    assert model.training


def test_recalibrated_mean_is_the_mean_over_all_samples(cnn: BoundWorkload) -> None:
    """In one batch, the running mean of the first norm is the mean of its inputs, exactly what the name says."""
    model = cnn.task.network(0)
    cnn.task.recalibrate(model, cnn.train)
    inputs = torch.cat([x for x, _ in cnn.train.in_order()])
    convolution = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    norm = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d))

    assert norm.running_mean is not None
    with torch.no_grad():
        torch.testing.assert_close(norm.running_mean, convolution(inputs).mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_recalibration_without_batch_norm_changes_nothing() -> None:
    """A perceptron has no statistics to recompute."""
    bound = DigitsMlp(train_size=100).bind(CPU, None)
    model = bound.task.network(0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    bound.task.recalibrate(model, bound.train)

    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_one_cycle_is_torch_s_cycle_without_its_state() -> None:
    """The rate of every step equals OneCycleLR's, momentum aside."""
    recipe = Recipe(optimiser="sgd", lr=0.3, batch_size=1, schedule="one_cycle")
    for n_steps in (4, 7, 50):
        optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.3, total_steps=n_steps, cycle_momentum=False)
        expected = []
        for _ in range(n_steps):
            expected.append(optimiser.param_groups[0]["lr"])
            optimiser.step()
            schedule.step()
        own = [learning_rate(recipe, step, steps_per_epoch=1, n_steps=n_steps) for step in range(n_steps)]

        assert own == pytest.approx(expected, rel=1e-9)


def test_every_short_cycle_is_finite_and_positive() -> None:
    """One to ten steps: no division by zero, no negative rate, never above the peak."""
    recipe = Recipe(optimiser="sgd", lr=1.0, batch_size=1, schedule="one_cycle")
    for n_steps in range(1, 11):
        rates = [learning_rate(recipe, step, steps_per_epoch=1, n_steps=n_steps) for step in range(n_steps)]

        assert all(0 < rate <= 1 + 1e-12 for rate in rates)


def test_the_step_schedule_divides_at_its_milestones() -> None:
    """x0.1 from the first step of each milestone's epoch on."""
    recipe = Recipe(optimiser="sgd", lr=0.1, batch_size=1, schedule="step", milestones=(2, 4))
    rates = [learning_rate(recipe, step, steps_per_epoch=5, n_steps=30) for step in (0, 9, 10, 19, 20, 29)]

    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
