"""Images in one folder per class, as PNG files: ``<data root>/my_images/{train,test}/<class>/*.png``.

The data set's size and shape are declared, so that an incomplete copy is detected. A network needs named taps, which
white-box schemes read, and a linear ``head``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import Tensor, nn
from torch.nn import functional

from wmarena.experiments.workloads.data import Container, DamagedData, Dataset, DataSource, Images
from wmarena.experiments.workloads.images.base import ImageWorkload, preset
from wmarena.experiments.workloads.networks.base import Network


@dataclass(frozen=True)
class ClassFolders(Container):
    """A folder with ``train`` and ``test``, each with a folder of PNG files per class."""

    folder: Path

    def __str__(self) -> str:
        return f"{self.folder}/{{train,test}}/<class>/*.png"

    def present(self) -> bool:
        return all((self.folder / part).is_dir() for part in ("train", "test"))

    def read(self) -> Dataset:
        return Dataset(read_part(self.folder / "train"), read_part(self.folder / "test"))


def read_part(folder: Path) -> Images:
    """Read all images below ``folder``; classes and files in the order of their names."""
    from PIL import Image  # imported here, so that Pillow is needed for these images only

    files = sorted(folder.glob("*/*.png"))
    if not files:
        raise DamagedData(f"expected {folder}/<class>/*.png, got no such file; unpack the data set there")
    classes = {name: label for label, name in enumerate(sorted({f.parent.name for f in files}))}
    pixels = np.stack([np.asarray(Image.open(f).convert("L")) for f in files])[:, None]
    return Images(pixels, np.array([classes[f.parent.name] for f in files], dtype=np.int64))


MY_IMAGES = DataSource(
    name="my images",
    input_shape=(1, 24, 24),
    n_train=600,
    n_test=200,
    in_root=lambda root: (ClassFolders(root / "my_images"),),
    hint="ask our archive for my_images.zip",
)


class TwoStages(Network):
    """Two convolutions with pooling, global average pool, linear output layer."""

    stage_names = ("conv1", "conv2")

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.head = nn.Linear(32 * 6 * 6, 10)

    def taps(self, inputs: Tensor) -> tuple[Tensor, ...]:
        first = functional.max_pool2d(functional.relu(self.conv1(inputs)), 2)
        return first, functional.max_pool2d(functional.relu(self.conv2(first)), 2)

    def features(self, last: Tensor) -> Tensor:
        return last.flatten(1)


@dataclass(frozen=True, kw_only=True)
class MyImages(ImageWorkload):
    """Grey images of ten classes, 24x24, with a network of two convolutions."""

    name: ClassVar[str] = "my_images"
    source: ClassVar[DataSource] = MY_IMAGES
    mean: ClassVar[tuple[float, ...]] = (0.305,)
    std: ClassVar[tuple[float, ...]] = (0.331,)

    epochs: int = preset("epochs", 8)
    batch_size: int = preset("batch_size", 50)
    val_size: int = preset("val_size", 100)

    def build(self) -> Network:
        return TwoStages()
