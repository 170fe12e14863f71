"""Base class of image workloads: the fields of a spec, and binding to a device."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch

from wmarena.experiments.workloads.data import DataSource, Images
from wmarena.experiments.workloads.images.pixels import Pixels
from wmarena.experiments.workloads.images.samples import ImageSamples
from wmarena.experiments.workloads.images.task import ImageTask, Precision
from wmarena.experiments.workloads.networks.base import Network
from wmarena.experiments.workloads.splits import split
from wmarena.orchestrator.worker.workload import BoundWorkload
from wmarena.schemes.base import Recipe, TaskInfo
from wmarena.schemes.params import Configurable, param


@dataclass(frozen=True, kw_only=True)
class ImageWorkload(Configurable, ABC):
    """Classification of small images; implements ``WorkloadConfig``; subclasses set defaults.

    Every field affects training, so every field is part of a task's identity. Splits depend on these fields and the
    data set alone: all seeds share them.
    """

    source: ClassVar[DataSource]
    num_classes: ClassVar[int] = 10
    mean: ClassVar[tuple[float, ...]]
    std: ClassVar[tuple[float, ...]]
    pad: ClassVar[int] = 0
    """Width of the black border around the network's inputs, in pixels."""

    epochs: int = param(6, doc="passes over the training data", stage="train", low=1)
    lr: float = param(2e-3, doc="peak learning rate", stage="train", low=0, low_open=True)
    batch_size: int = param(100, doc="images a step", stage="train", low=1)
    weight_decay: float = param(0.0, doc="L2 weight, added to gradients", stage="train", low=0)
    optimiser: str = param("adam", doc="adam, or SGD with momentum 0.9", stage="train", choices=("adam", "sgd"))
    schedule: str = param(
        "one_cycle",
        doc="learning rate: constant, one cosine cycle, or x0.1 at milestones",
        stage="train",
        choices=("constant", "one_cycle", "step"),
    )
    milestones: tuple[int, ...] = param((), doc="epochs at which schedule `step` divides by 10", stage="train", low=1)
    crop: int = param(0, doc="augmentation: random crop after padding, pixels; 0 = none", stage="train", low=0, high=8)
    flip: bool = param(False, doc="augmentation: mirror half of the images", stage="train")
    precision: str = param(
        "float32", doc="training's forward pass on CUDA; float32 on a CPU", stage="train", choices=("float32", "bf16")
    )
    train_size: int | None = param(
        None, doc="class-stratified part of the training set, reserve included; null = all", stage="train", low=10
    )
    val_size: int = param(5000, doc="validation images held out of the training set", stage="train", low=10)
    reserve: float = param(
        0.0, doc="fraction of the training part that the owner never sees", stage="train", low=0, high=0.9
    )
    test_size: int | None = param(None, doc="class-stratified part of the test set; null = all", stage="train", low=10)

    @abstractmethod
    def build(self) -> Network:
        """Create a network on the CPU, initialised from torch's global generator."""

    def problems(self) -> Iterable[tuple[str, str]]:
        n_left = self.source.n_train - self.val_size
        if n_left < (self.train_size or self.num_classes):
            yield "train_size", f"expected at most {n_left} (val_size is {self.val_size}), got {self.train_size}"
        n_part = self.train_size or n_left
        if self.reserve > 0 and n_part - round(self.reserve * n_part) < self.num_classes:
            yield "reserve", f"expected to leave {self.num_classes} of {n_part} training images, got {self.reserve}"
        if self.test_size is not None and self.test_size > self.source.n_test:
            yield "test_size", f"expected at most {self.source.n_test}, got {self.test_size}"
        if self.schedule != "step" and self.milestones:
            yield "milestones", f"expected none with schedule {self.schedule!r}, got {list(self.milestones)}"

    @property
    def info(self) -> TaskInfo:
        """Kind, number of classes and raw input shape."""
        return TaskInfo(kind="classification", num_classes=self.num_classes, input_shape=self.source.input_shape)

    @property
    def data_set(self) -> str:
        """Name of the data set."""
        return self.source.name

    @property
    def recipe(self) -> Recipe:
        """Training recipe of the workload."""
        return Recipe(
            optimiser=cast(Any, self.optimiser),
            lr=self.lr,
            batch_size=self.batch_size,
            epochs=self.epochs,
            weight_decay=self.weight_decay,
            schedule=cast(Any, self.schedule),
            milestones=self.milestones,
        )

    @classmethod
    def available(cls, data_root: Path | None) -> bool:
        """True if the data set is on this machine; nothing is downloaded or decoded."""
        return cls.source.available(data_root)

    def fingerprint(self, data_root: Path | None) -> str:
        """Hex digest of the data set's pixels and labels. Raises MissingData that lists every path tried."""
        return self.source.load(data_root).fingerprint

    def task(self, device: torch.device) -> ImageTask:
        """Create the task without its data; enough to evaluate a model."""
        if device.type == "cuda":
            _reproducible_cuda()
        pixels = Pixels(mean=self.mean, std=self.std, device=device, pad=self.pad, crop=self.crop, flip=self.flip)
        return ImageTask(
            name=self.name,
            info=self.info,
            device=device,
            recipe=self.recipe,
            pixels=pixels,
            build=self.build,
            precision=cast(Precision, self.precision),
        )

    def bind(self, device: torch.device, data_root: Path | None) -> BoundWorkload:
        """Load the data onto ``device``. Raises MissingData that lists every path tried."""
        dataset = self.source.load(data_root)
        task = self.task(device)
        parts = split(
            dataset.train.labels,
            dataset.test.labels,
            train_size=self.train_size,
            val_size=self.val_size,
            reserve=self.reserve,
            test_size=self.test_size,
            groups=dataset.train.groups,
        )
        return BoundWorkload(
            task=task,
            train=_samples(dataset.train, parts.train, task.pixels),
            val=_samples(dataset.train, parts.val, task.pixels),
            test=_samples(dataset.test, parts.test, task.pixels),
            reserve=_samples(dataset.train, parts.reserve, task.pixels) if len(parts.reserve) else None,
        )


def preset(name: str, default: Any) -> Any:
    """Return the inherited field ``name`` with another default; meaning and range stay."""
    return field(default=default, metadata={"param": ImageWorkload.parameters()[name]})


def _samples(images: Images, index: np.ndarray, pixels: Pixels) -> ImageSamples:
    return ImageSamples(torch.from_numpy(images.pixels[index]), torch.from_numpy(images.labels[index]), pixels)


def _reproducible_cuda() -> None:
    """Fix the choice of kernels and use full float32, for the whole process: plugins run their own passes."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
