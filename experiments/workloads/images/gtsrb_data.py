"""GTSRB: 39,209 and 12,630 colour images of 43 traffic signs at 32x32 [stallkamp2012], in Parquet.

The official training set consists of tracks: about 30 near-identical frames of one physical sign. A track is a group,
so validation data show signs that are not in the training data; splitting by frame would leak them.

torchvision is not used: it downloads another training set (26,640 images), with images of many sizes.
"""

from dataclasses import dataclass, replace

import numpy as np

from wmarena.experiments.workloads.data import DamagedData, Dataset, DataSource
from wmarena.experiments.workloads.images.encoded import ParquetPair

GTSRB_STATISTICS = ((0.3394, 0.3116, 0.3205), (0.2749, 0.2642, 0.2705))
"""Mean and standard deviation of the training pixels in [0, 1], per channel."""

_TRACKS_PER_CLASS = 1000
"""Upper bound for any class."""


@dataclass(frozen=True)
class TrackedPair(ParquetPair):
    """A ``ParquetPair`` whose training file has a third column, ``track``, numbered within each class."""

    def read(self) -> Dataset:
        dataset = super().read()
        groups = dataset.train.labels * _TRACKS_PER_CLASS + self._tracks(len(dataset.train.labels))
        return Dataset(replace(dataset.train, groups=groups), dataset.test)

    def _tracks(self, n: int) -> np.ndarray:
        """(n,) int64."""
        # Imported here: pyarrow is slow to load and only Parquet needs it.
        import pyarrow
        import pyarrow.parquet

        path = self._file("train")
        try:
            column = pyarrow.parquet.read_table(path, columns=["track"]).column("track")
            if column.null_count or not pyarrow.types.is_integer(column.type):
                raise TypeError(f"it holds {column.type} with {column.null_count} values missing")
            tracks: np.ndarray = column.to_numpy().astype(np.int64)
        except (KeyError, TypeError, ValueError, pyarrow.ArrowException) as error:
            raise DamagedData(
                f"expected a column `track` of {n} integers beside the images, got {path}: {error}; get it afresh"
            ) from None
        least, most = int(tracks.min()), int(tracks.max())
        if least < 0 or most >= _TRACKS_PER_CLASS:
            raise DamagedData(
                f"expected tracks in [0, {_TRACKS_PER_CLASS}), got {least} to {most} in {path}; get it afresh"
            )
        return tracks


GTSRB = DataSource(
    name="GTSRB",
    input_shape=(3, 32, 32),
    n_train=39_209,
    n_test=12_630,
    in_root=lambda root: (TrackedPair(root / "gtsrb", "gtsrb"),),
    hint=(
        "resize the official images (benchmark.ini.rub.de) to 32x32 and put gtsrb/gtsrb-{train,test}.parquet there: "
        "columns `image` (bytes of a JPEG or PNG file), `label` and, in the training file, `track`"
    ),
)
