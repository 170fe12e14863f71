"""Where image data sets come from: the user's folder, the system's, a cache, the network; decoded once a process.

A data set is known by its content (pixels and labels), never by its path or container, so the same images give the
same fingerprint from idx files, from Parquet and from a distribution's package.
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
"""Where downloads go if no data root is given, or none that exists."""


_CONNECT_TIMEOUT_S = 20.0


class DamagedData(ValueError):
    """A file was found but is not what it should be; the message names it."""


@dataclass(frozen=True)
class Images:
    """Pixels (n, c, h, w) uint8 and labels (n,) int64.

    ``groups`` (n,) int64 names what near-identical images show (frames of one scene); splits do not tear a group.
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
    """Files that hold one data set. ``str()`` is what messages call the place."""

    @abstractmethod
    def present(self) -> bool:
        """True if all files are there; their content is not looked at."""

    @abstractmethod
    def read(self) -> Dataset:
        """Decode without writing anything. Raises DamagedData."""


@dataclass(frozen=True, kw_only=True)
class DataSource:
    """All that is known about one data set's whereabouts.

    Attributes:
        name: for messages and MLflow inputs.
        input_shape: (c, h, w) of one image; with ``n_train`` and ``n_test``, what a complete copy has.
        in_root: containers that may lie under a data root, in order of preference.
        in_system: containers at fixed places.
        download: fetches the data set into a folder, whose ``in_root`` containers are then read; None if bundled.
        hint: how else a user gets the data, a clause.
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
        """Every place on this machine, in the order of search."""
        if data_root is not None:
            yield from self.in_root(data_root.expanduser())
        yield from self.in_system
        if self.download is not None:
            yield from self.in_root(CACHE_ROOT.expanduser())

    def available(self, data_root: Path | None) -> bool:
        """True if the data set can be read without the network."""
        return any(container.present() for container in self.local(data_root))

    def load(self, data_root: Path | None) -> Dataset:
        """The decoded data set; the second call in a process costs nothing.

        Raises:
            MissingData: it is nowhere; the message names every place tried and the ways to get it.
            DamagedData: it was found but is incomplete or unreadable.
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
            # A data root that does not exist is more likely a slip than a wish to have it made.
            target = (data_root if data_root is not None and data_root.is_dir() else CACHE_ROOT).expanduser()
            try:
                with _impatient():
                    self.download(target)
            except (OSError, RuntimeError) as error:
                reason = " ".join(str(error).split())
                tried.append(f"download into {target} ({reason})")
            else:
                return next(container for container in self.in_root(target) if container.present())
        raise MissingData(
            f"expected the data set {self.name}, got nothing at any of: {'; '.join(tried)}. Set WMARENA_DATA or "
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
def _impatient() -> Iterator[None]:
    """Connections made inside give up after a while, so that a machine without a network learns it soon."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_CONNECT_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
