"""MNIST's idx files, plain or gzipped, read in place: four files, two of images, two of labels [lecun1998].

Format: 4-byte magic (0, 0, type, dimensions), one big-endian 4-byte size per dimension, then the values; all four
files hold unsigned bytes.
"""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wmarena.experiments.workloads.data import Container, DamagedData, Dataset, Images

_UNSIGNED_BYTE = 0x08


@dataclass(frozen=True)
class IdxFolder(Container):
    """A folder with ``{train,t10k}-{images-idx3,labels-idx1}-ubyte``, each with or without ``.gz``."""

    folder: Path

    def __str__(self) -> str:
        return f"{self.folder} (idx files)"

    def present(self) -> bool:
        return all(self._file(part, kind) is not None for part in ("train", "t10k") for kind in ("images", "labels"))

    def read(self) -> Dataset:
        return Dataset(self._images("train"), self._images("t10k"))

    def _images(self, part: str) -> Images:
        pixels, labels = (read_idx(self._required(part, kind)) for kind in ("images", "labels"))
        if pixels.ndim != 3 or labels.ndim != 1 or len(pixels) != len(labels):
            raise DamagedData(
                f"expected images (n, h, w) with n labels in {self.folder}, got {pixels.shape} and {labels.shape} in "
                f"the {part} files; get them afresh"
            )
        return Images(pixels[:, None], labels.astype(np.int64))

    def _required(self, part: str, kind: str) -> Path:
        path = self._file(part, kind)
        if path is None:
            raise DamagedData(f"expected the {part} {kind} in {self.folder}, got no such idx file; get it afresh")
        return path

    def _file(self, part: str, kind: str) -> Path | None:
        stem = f"{part}-{kind}-idx{3 if kind == 'images' else 1}-ubyte"
        paths = (self.folder / stem, self.folder / f"{stem}.gz")
        return next((path for path in paths if path.is_file()), None)


def read_idx(path: Path) -> np.ndarray:
    """Read one idx file of unsigned bytes.

    Raises:
        DamagedData: wrong magic, truncated, or too long.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, OSError, zlib.error) as error:
        raise DamagedData(f"expected a whole gzip file, got {path}: {error}; get it afresh") from None
    n_dims = raw[3] if len(raw) >= 4 else 0
    head = 4 + 4 * n_dims
    if len(raw) < max(head, 8) or raw[:3] != bytes([0, 0, _UNSIGNED_BYTE]):
        raise DamagedData(f"expected an idx file of unsigned bytes, got {path} that begins with {raw[:4].hex()!r}")
    shape = tuple(int(size) for size in np.frombuffer(raw, dtype=">u4", count=n_dims, offset=4))
    n_values = int(np.prod(shape))
    if len(raw) - head != n_values:
        raise DamagedData(
            f"expected {n_values} values {shape} in {path}, got {len(raw) - head}: the file was cut short or "
            "altered; get it afresh"
        )
    return np.frombuffer(raw, dtype=np.uint8, offset=head).reshape(shape)
