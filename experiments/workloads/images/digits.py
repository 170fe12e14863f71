"""scikit-learn's bundled digits: 1,797 scans of 8x8, no download, seconds of training on one CPU thread.

Images are up-sampled to 24x24 so that a version-1 QR code fits. Bilinear interpolation by three has weights in
thirds, so it is computed in integers and is the same on every machine.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from wmarena.experiments.workloads.data import Container, Dataset, DataSource, Images
from wmarena.experiments.workloads.images.base import ImageWorkload, preset
from wmarena.experiments.workloads.networks.base import Network
from wmarena.experiments.workloads.networks.small import SmallCnn, SmallMlp
from wmarena.experiments.workloads.splits import stratified
from wmarena.schemes.prf import Prf

_N_TEST = 497
_FACTOR = 3
_GREYS = 16


class _Bundled(Container):
    """The copy bundled with scikit-learn."""

    def __str__(self) -> str:
        return "scikit-learn's load_digits"

    def present(self) -> bool:
        return True

    def read(self) -> Dataset:
        # Imported here: scikit-learn is slow to load and only digits need it.
        from sklearn.datasets import load_digits

        bunch = load_digits()
        labels = bunch.target.astype(np.int64)
        pixels = enlarge(bunch.images.astype(np.int64))[:, None]
        # scikit-learn defines no official split.
        test = stratified(labels, _N_TEST, Prf(b"wmarena: test set of digits"))
        train = np.setdiff1d(np.arange(len(labels)), test)
        return Dataset(Images(pixels[train], labels[train]), Images(pixels[test], labels[test]))


def enlarge(values: np.ndarray) -> np.ndarray:
    """Enlarge (n, 8, 8) integers 0..16 to (n, 24, 24) uint8: bilinear, pixel centres aligned, edges repeated."""
    side = values.shape[-1]
    # Weights in thirds: 2 for the pixel's own source, 1 for the nearest neighbour (the source itself in the centre).
    weights = np.zeros((_FACTOR * side, side), dtype=np.int64)
    for pixel in range(_FACTOR * side):
        own, offset = divmod(pixel, _FACTOR)
        neighbour = min(max(own + offset - 1, 0), side - 1)
        weights[pixel, own] += 2
        weights[pixel, neighbour] += 1
    scaled = np.einsum("ai,nij,bj->nab", weights, values, weights)
    full = _GREYS * _FACTOR**2
    pixels: np.ndarray = ((scaled * 255 + full // 2) // full).astype(np.uint8)
    return pixels


DIGITS = DataSource(name="digits", input_shape=(1, 24, 24), n_train=1300, n_test=_N_TEST, in_system=(_Bundled(),))


@dataclass(frozen=True, kw_only=True)
class _Digits(ImageWorkload):
    source: ClassVar[DataSource] = DIGITS
    mean: ClassVar[tuple[float, ...]] = (0.305,)
    std: ClassVar[tuple[float, ...]] = (0.331,)

    val_size: int = preset("val_size", 150)


@dataclass(frozen=True, kw_only=True)
class DigitsMlp(_Digits):
    """scikit-learn's digits with a perceptron of three hidden layers: seconds on a CPU."""

    name: ClassVar[str] = "digits_mlp"

    epochs: int = preset("epochs", 12)
    batch_size: int = preset("batch_size", 50)

    def build(self) -> Network:
        return SmallMlp(n_inputs=24 * 24)


@dataclass(frozen=True, kw_only=True)
class DigitsCnn(_Digits):
    """scikit-learn's digits with a small convolutional network with batch norm: seconds on a CPU."""

    name: ClassVar[str] = "digits_cnn"

    epochs: int = preset("epochs", 8)
    lr: float = preset("lr", 1e-2)
    batch_size: int = preset("batch_size", 50)

    def build(self) -> Network:
        return SmallCnn()
