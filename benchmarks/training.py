"""Training throughput: our resident-data loop against a conventional loop around torch's DataLoader.

Both sides train the same network, from the same weights, on the same images, with the same batch, optimiser,
schedule and precision. The conventional side is as in public implementations: a PIL image per sample, torchvision
transforms, a DataLoader (in the process, or with worker processes kept alive), ``loss.item()`` left out. Repetitions
are interleaved, so that a drift of the machine's speed affects all sides equally; medians are printed. On CUDA also the
training's FLOP/s as a fraction of the card's measured bf16 matmul rate.

    python -m benchmarks.training [--workload NAME] [--images N] [--repetitions R] [--workers 0 2]
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

from wmarena.experiments.workloads.images.base import ImageWorkload
from wmarena.experiments.workloads.images.cifar import Cifar10ResNet18
from wmarena.experiments.workloads.images.digits import DigitsCnn, DigitsMlp
from wmarena.experiments.workloads.images.mnist import FashionLeNet5, MnistLeNet5
from wmarena.experiments.workloads.images.mnist_resnet import FashionResNet18, MnistResNet18
from wmarena.experiments.workloads.images.pixels import Pixels
from wmarena.experiments.workloads.images.samples import ImageSamples
from wmarena.schemes.base import Batch, Recipe, Workload

WORKLOADS: dict[str, type[ImageWorkload]] = {
    w.name: w
    for w in (
        FashionLeNet5,
        DigitsCnn,
        DigitsMlp,
        MnistLeNet5,
        FashionResNet18,
        MnistResNet18,
        Cifar10ResNet18,
    )
}
_TRAINING_FLOPS_PER_FORWARD = 3
_MATMUL_SIDE = 8192


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Common configuration of both sides."""

    config: ImageWorkload
    task: Workload
    recipe: Recipe
    pixels: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Side:
    """One implementation: an epoch of data loading alone, and an epoch of training."""

    name: str
    load: Callable[[], None]
    train: Callable[[], None]


class PilImages(Dataset[tuple[Tensor, int]]):
    """Images as in torchvision's data sets: a PIL image and its transforms, one sample per call."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, transform: Callable[[Image.Image], Tensor]) -> None:
        self._pixels = pixels.transpose(0, 2, 3, 1)
        self._labels = labels.tolist()
        self._transform = transform

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels = self._pixels[index]
        image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        return self._transform(image), self._labels[index]


def conventional_transform(config: ImageWorkload) -> Callable[[Image.Image], Tensor]:
    """Build the recipe's augmentation and normalisation from torchvision transforms."""
    side = config.source.input_shape[1]
    steps: list[Callable[[object], object]] = []
    if config.crop:
        steps.append(transforms.RandomCrop(side, padding=config.crop))
    if config.flip:
        steps.append(transforms.RandomHorizontalFlip())
    if config.pad:
        steps.append(transforms.Pad(config.pad))
    steps += [transforms.ToTensor(), transforms.Normalize(config.mean, config.std)]
    transform: Callable[[Image.Image], Tensor] = transforms.Compose(steps)
    return transform


def ours(setting: Setting) -> Side:
    """Prepare our side: data on the device, batches by gather, ``task.fit``."""
    config, task, recipe = setting.config, setting.task, setting.recipe
    pixels = Pixels(
        mean=config.mean, std=config.std, device=task.device, pad=config.pad, crop=config.crop, flip=config.flip
    )
    samples = ImageSamples(torch.from_numpy(setting.pixels), torch.from_numpy(setting.labels), pixels)
    model = task.network(0)
    return Side(
        name="this project",
        load=lambda: _consume(samples.batches(recipe.batch_size, seed=0, epoch=0)),
        train=lambda: task.fit(model, samples, recipe, seed=0),
    )


def conventional(setting: Setting, n_workers: int) -> Side:
    """Prepare a DataLoader with ``n_workers`` processes and the loop of torch's tutorials."""
    images = PilImages(setting.pixels, setting.labels, conventional_transform(setting.config))
    device = setting.task.device
    loader = DataLoader(
        images,
        batch_size=setting.recipe.batch_size,
        shuffle=True,
        num_workers=n_workers,
        persistent_workers=n_workers > 0,
        pin_memory=device.type == "cuda",
    )
    model = setting.task.network(0).to(memory_format=torch.contiguous_format)

    def batches() -> Iterator[Batch]:
        for inputs, targets in loader:
            yield inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)

    return Side(
        name=f"DataLoader, {n_workers} workers",
        load=lambda: _consume(batches()),
        train=lambda: conventional_epoch(setting, model, batches(), len(loader)),
    )


def conventional_epoch(setting: Setting, model: nn.Module, batches: Iterable[Batch], n_steps: int) -> None:
    """Train one epoch with torch's optimiser defaults and scheduler."""
    recipe = setting.recipe
    optimiser: torch.optim.Optimizer
    if recipe.optimiser == "adam":
        optimiser = torch.optim.Adam(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    else:
        optimiser = torch.optim.SGD(
            model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.lr, total_steps=n_steps, cycle_momentum=False)
    model.train()
    for inputs, targets in batches:
        loss = setting.task.loss(model, inputs, targets)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()


def _consume(batches: Iterable[Batch]) -> None:
    for _ in batches:
        pass


def seconds(work: Callable[[], None], device: torch.device) -> float:
    """Measure wall seconds of ``work``, including GPU kernels."""
    _synchronise(device)
    start = time.perf_counter()
    work()
    _synchronise(device)
    return time.perf_counter() - start


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(sides: list[Side], repetitions: int, device: torch.device) -> dict[str, tuple[float, float]]:
    """Measure name -> median seconds of (data alone, training) per epoch; the first round is warm-up."""
    times: dict[str, tuple[list[float], list[float]]] = {side.name: ([], []) for side in sides}
    for repetition in range(repetitions + 1):
        for side in sides:
            found = seconds(side.load, device), seconds(side.train, device)
            if repetition:
                for kept, value in zip(times[side.name], found, strict=True):
                    kept.append(value)
    return {name: (statistics.median(load), statistics.median(train)) for name, (load, train) in times.items()}


def matmul_rate(device: torch.device) -> float:
    """Measure bf16 FLOP/s of a large square matrix product, the practical peak of the GPU."""
    a, b = (torch.randn(_MATMUL_SIDE, _MATMUL_SIDE, device=device, dtype=torch.bfloat16) for _ in range(2))

    def work() -> None:
        for _ in range(20):
            torch.mm(a, b)

    work()
    return 20 * 2 * _MATMUL_SIDE**3 / min(seconds(work, device) for _ in range(3))


def training_flops(setting: Setting) -> float:
    """Count FLOP per image of a training step: a forward pass, and twice that for the backward pass."""
    model = setting.task.network(0).eval()
    shape = setting.task.info.input_shape
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(setting.task.to_inputs(torch.zeros(1, *shape, dtype=torch.uint8)))
    return float(_TRAINING_FLOPS_PER_FORWARD * counter.get_total_flops())


def prepare(arguments: argparse.Namespace) -> Setting:
    """Prepare the selected workload on the selected device with its first images."""
    name = arguments.workload or ("fashion_lenet5" if FashionLeNet5.available(arguments.data_root) else "digits_cnn")
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    config = WORKLOADS[name]()
    images = config.source.load(arguments.data_root).train
    recipe = replace(config.recipe, epochs=1, schedule="one_cycle", milestones=())
    return Setting(
        config=config,
        task=config.task(device),
        recipe=replace(recipe, batch_size=arguments.batch_size or recipe.batch_size),
        pixels=images.pixels[: arguments.images].copy(),
        labels=images.labels[: arguments.images].copy(),
    )


def show(setting: Setting, found: dict[str, tuple[float, float]]) -> None:
    """Print images/s and our speed-up."""
    n = len(setting.labels)
    own_load, own_train = found["this project"]
    device = setting.task.device
    print(f"{setting.config.name}, {n} images, batch {setting.recipe.batch_size}, {device.type}, one epoch, medians\n")
    print(f"{'':<24}{'data alone':>14}{'ours is':>10}{'training':>14}{'ours is':>10}")
    print(f"{'':<24}{'images/s':>14}{'':>10}{'images/s':>14}")
    for name, (load, train) in found.items():
        print(f"{name:<24}{n / load:>14,.0f}{load / own_load:>9.1f}x{n / train:>14,.0f}{train / own_train:>9.2f}x")
    if device.type == "cuda":
        rate, peak = training_flops(setting) * n / own_train, matmul_rate(device)
        print(f"\nbf16 matmul {peak / 1e12:.0f} TFLOP/s; training {rate / 1e12:.1f} TFLOP/s, {rate / peak:.1%} of it")


def main() -> None:
    """Parse options, measure, print."""
    root = os.environ.get("WMARENA_DATA")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument(
        "--workload", choices=WORKLOADS, help="default: fashion_lenet5 if its data are here, else digits"
    )
    parser.add_argument("--data-root", type=Path, default=Path(root) if root else None, help="default: $WMARENA_DATA")
    parser.add_argument("--images", type=int, default=3000, help="images an epoch")
    parser.add_argument("--batch-size", type=int, help="default: the recipe's")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 2], help="DataLoader workers to compare with")
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")
    parser.add_argument("--threads", type=int, default=1, help="computing threads of the training process")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    setting = prepare(arguments)
    sides = [ours(setting), *(conventional(setting, n) for n in arguments.workers)]
    show(setting, measure(sides, arguments.repetitions, setting.task.device))


if __name__ == "__main__":
    main()
