"""Training on a GPU in bf16: repeatable, resumable, with the start and augmentation of a CPU."""

from dataclasses import replace

import pytest
import torch

from tests.experiments.workloads.memory import MemoryCheckpoints
from wmarena.experiments.workloads.images.digits import DigitsCnn
from wmarena.orchestrator.worker.workload import BoundWorkload
from wmarena.schemes.base import Cancelled

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CONFIG = DigitsCnn(train_size=300, precision="bf16", crop=2, flip=True, optimiser="sgd", lr=0.05, epochs=3)


@pytest.fixture(scope="module")
def gpu() -> BoundWorkload:
    """Digits with batch norm and augmentation on the GPU."""
    return CONFIG.bind(torch.device("cuda"), None)


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_training_repeats_and_resumes_bit_for_bit(gpu: BoundWorkload, optimiser: str) -> None:
    """Twice the same bits; interrupted after the first epoch and continued, the same again."""
    recipe = replace(gpu.task.recipe, optimiser=optimiser)
    checkpoints = MemoryCheckpoints(stop_after=1)
    first, second, resumed = (gpu.task.network(seed) for seed in (0, 0, 7))
    gpu.task.fit(first, gpu.train, recipe, seed=0)
    gpu.task.fit(second, gpu.train, recipe, seed=0)
    with pytest.raises(Cancelled):
        gpu.task.fit(gpu.task.network(0), gpu.train, recipe, seed=0, checkpoints=checkpoints)
    gpu.task.fit(resumed, gpu.train, recipe, seed=0, checkpoints=checkpoints)

    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_start_and_batches_are_the_cpu_s(gpu: BoundWorkload) -> None:
    """Initial weights and augmented inputs do not depend on the device."""
    cpu = CONFIG.bind(torch.device("cpu"), None)
    here, there = cpu.task.network(0).state_dict(), gpu.task.network(0).state_dict()

    assert all(torch.equal(here[name], there[name].cpu()) for name in here)
    for (mine, labels), (theirs, targets) in zip(
        cpu.train.batches(64, seed=1, epoch=2), gpu.train.batches(64, seed=1, epoch=2), strict=True
    ):
        assert torch.equal(labels, targets.cpu())
        torch.testing.assert_close(mine, theirs.cpu(), rtol=1e-6, atol=1e-6)


def test_evaluation_is_in_full_precision(gpu: BoundWorkload) -> None:
    """A model trained in bf16 answers on the GPU as on the CPU, but for ties in rounding."""
    model = gpu.task.network(0)
    gpu.task.fit(model, gpu.train, gpu.task.recipe, seed=0)
    cpu = CONFIG.bind(torch.device("cpu"), None)
    copy = cpu.task.network(1)
    copy.load_state_dict(model.state_dict())

    assert cpu.task.score(copy, cpu.test) == pytest.approx(gpu.task.score(model, gpu.test), abs=0.003)
