"""Encoded images (JPEG, PNG) in Parquet: columns ``image`` (bytes of one file) and ``label``, one file per split."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wmarena.experiments.workloads.data import Container, DamagedData, Dataset, Images


@dataclass(frozen=True)
class ParquetPair(Container):
    """``{stem}-train.parquet`` and ``{stem}-test.parquet`` in one folder, RGB images of one size."""

    folder: Path
    stem: str

    def __str__(self) -> str:
        return f"{self.folder}/{self.stem}-{{train,test}}.parquet"

    def present(self) -> bool:
        return all(self._file(part).is_file() for part in ("train", "test"))

    def read(self) -> Dataset:
        return Dataset(read_images(self._file("train")), read_images(self._file("test")))

    def _file(self, part: str) -> Path:
        return self.folder / f"{self.stem}-{part}.parquet"


def read_images(path: Path) -> Images:
    """Decode one Parquet file.

    Raises:
        DamagedData: not Parquet, a column is missing, an image cannot be decoded, or sizes differ.
    """
    # Imported here: pyarrow and Pillow are slow to load and only Parquet needs them.
    import pyarrow
    import pyarrow.parquet
    from PIL import Image

    try:
        table = pyarrow.parquet.read_table(path, columns=["image", "label"])
        files = table.column("image").to_pylist()
        labels = table.column("label").to_numpy().astype(np.int64)
        images = [np.asarray(Image.open(io.BytesIO(raw)).convert("RGB")) for raw in files]
    except (OSError, TypeError, ValueError, pyarrow.ArrowException) as error:
        raise DamagedData(
            f"expected a Parquet file of encoded images (`image`) with labels (`label`), got {path}: {error}; "
            "get it afresh"
        ) from None
    sizes = {image.shape for image in images}
    if len(sizes) != 1:
        raise DamagedData(f"expected images of one size in {path}, got {sorted(sizes) or 'none'}; get it afresh")
    return Images(np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)), labels)
