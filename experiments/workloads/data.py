"""Sources of image data sets: the user's folder, the system's, a cache, a download; decoded once per process.

A data set is identified by its content (pixels and labels), never by its path or container, so the same images have
the same fingerprint in idx files, in Parquet and in a distribution's package.
"""

import hashlib
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from wmarena.orchestrator.worker.workload import MissingData

CACHE_ROOT = Path("~/.cache/wmarena")
"""Folder of downloads if no existing data root is given."""

_CONNECT_TIMEOUT_S = 20.0


class DamagedData(ValueError):
    """A file exists but its content is invalid; the message names it."""


@dataclass(frozen=True)
class Images:
    """Pixels (n, c, h, w) uint8 and labels (n,) int64.

    ``groups`` (n,) int64 numbers sets of near-identical images (frames of one scene); splits keep a group together.
    """

    pixels: np.ndarray
    labels: np.ndarray
    groups: np.ndarray | None = None


@dataclass(frozen=True)
class Dataset:
    """A decoded data set with its official splits."""

    train: Images
    test: Images

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over shapes, pixels, labels and groups of both splits, hex."""
        digest = hashlib.sha256()
        for images in (self.train, self.test):
            groups = () if images.groups is None else (images.groups.astype("<i8"),)
            for array in (images.pixels, images.labels.astype("<i8"), *groups):
                digest.update(f"{array.shape}{array.dtype.str}".encode())
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


class Container(ABC):
    """Files that hold one data set; ``str()`` names them in messages."""

    @abstractmethod
    def present(self) -> bool:
        """True if all files exist; their content is not read."""

    @abstractmethod
    def read(self) -> Dataset:
        """Decode without writing anything. Raises DamagedData."""


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """Locations and sizes of one data set.

    Attributes:
        name: used in messages and MLflow inputs.
        input_shape: (c, h, w) of one image.
        n_train, n_test: images in a complete copy.
        in_root: possible containers under a data root, in order of preference.
        in_system: containers at fixed paths.
        download: downloads into a folder, whose ``in_root`` containers are then read; None if bundled.
        hint: another way to get the data; a clause of the error message.
    """

    name: str
    input_shape: tuple[int, int, int]
    n_train: int
    n_test: int
    in_root: Callable[[Path], tuple[Container, ...]] = lambda root: ()
    in_system: tuple[Container, ...] = ()
    download: Callable[[Path], None] | None = None
    hint: str = ""

    def local(self, data_root: Path | None) -> Iterator[Container]:
        """Containers on this machine, in the order of search."""
        if data_root is not None:
            yield from self.in_root(data_root.expanduser())
        yield from self.in_system
        if self.download is not None:
            yield from self.in_root(CACHE_ROOT.expanduser())

    def available(self, data_root: Path | None) -> bool:
        """True if the data set can be read without the network."""
        return any(container.present() for container in self.local(data_root))

    def load(self, data_root: Path | None) -> Dataset:
        """Return the decoded data set, cached per process.

        Raises:
            MissingData: not found; the message lists every path tried and the ways to get the data.
            DamagedData: found, but incomplete or unreadable.
        """
        key = (self, data_root.expanduser().resolve() if data_root is not None else None)
        if key not in _LOADED:
            _LOADED[key] = self._checked(self._find(data_root))
        return _LOADED[key]

    def _find(self, data_root: Path | None) -> Container:
        tried: list[str] = []
        for container in self.local(data_root):
            if container.present():
                return container
            tried.append(str(container))
        if self.download is not None:
            # A data root that does not exist is more likely a typo than a request to create it.
            target = (data_root if data_root is not None and data_root.is_dir() else CACHE_ROOT).expanduser()
            try:
                with _connect_timeout():
                    self.download(target)
            except (OSError, RuntimeError) as error:
                reason = " ".join(str(error).split())
                tried.append(f"download into {target} ({reason})")
            else:
                return next(container for container in self.in_root(target) if container.present())
        places = f"nothing at any of: {'; '.join(tried)}" if tried else "no folder to look in"
        raise MissingData(
            f"expected the data set {self.name}, got {places}. Set WMARENA_DATA or "
            f"--data-root to a folder that holds it{self.hint and ', or ' + self.hint}"
        )

    def _checked(self, container: Container) -> Dataset:
        dataset = container.read()
        for images, n in ((dataset.train, self.n_train), (dataset.test, self.n_test)):
            if images.pixels.shape != (n, *self.input_shape) or images.labels.shape != (n,):
                raise DamagedData(
                    f"expected {n} images of shape {self.input_shape} with a label each in {container}, got "
                    f"{images.pixels.shape} and {images.labels.shape}; get {self.name} afresh"
                )
        return dataset


_LOADED: dict[tuple[DataSource, Path | None], Dataset] = {}


@contextmanager
def _connect_timeout() -> Iterator[None]:
    """Limit the time of connection attempts, so that a machine without a network fails early."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_CONNECT_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def torchvision_download(name: str) -> Callable[[Path], None]:
    """Return a function that downloads ``torchvision.datasets.NAME`` into a folder."""

    def download(root: Path) -> None:
        # Imported here: loading torchvision takes a second, and only a download needs it.
        from torchvision import datasets

        getattr(datasets, name)(str(root), download=True)

    return download
