"""GTSRB with the network of Deep Serial Number, for a GPU; validation data consist of whole tracks."""

from dataclasses import dataclass
from typing import ClassVar

from wmarena.experiments.workloads.data import DataSource
from wmarena.experiments.workloads.images.base import ImageWorkload, preset
from wmarena.experiments.workloads.images.gtsrb_data import GTSRB, GTSRB_STATISTICS
from wmarena.experiments.workloads.networks.base import Network
from wmarena.experiments.workloads.networks.dsn import DsnGtsrb


@dataclass(frozen=True, kw_only=True)
class GtsrbDsn(ImageWorkload):
    """GTSRB with the six convolutions and two dense layers of Deep Serial Number, Adam on one cosine cycle."""

    name: ClassVar[str] = "gtsrb_dsn"
    source: ClassVar[DataSource] = GTSRB
    num_classes: ClassVar[int] = 43
    mean, std = GTSRB_STATISTICS

    epochs: int = preset("epochs", 15)
    lr: float = preset("lr", 1e-3)
    val_size: int = preset("val_size", 3900)

    def build(self) -> Network:
        return DsnGtsrb()
