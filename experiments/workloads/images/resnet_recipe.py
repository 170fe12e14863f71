"""ResNet-18's training recipe for all data sets: SGD, 60 epochs, learning rate divided by ten twice [he2016]."""

from dataclasses import dataclass

from wmarena.experiments.workloads.images.base import ImageWorkload, preset
from wmarena.experiments.workloads.networks.base import Network
from wmarena.experiments.workloads.networks.resnet import ResNet18


@dataclass(frozen=True, kw_only=True)
class ResNet18Workload(ImageWorkload):
    """lr 0.1 with momentum 0.9 and weight decay 5e-4, x0.1 after 20 and 40 of 60 epochs; bf16 on CUDA."""

    epochs: int = preset("epochs", 60)
    lr: float = preset("lr", 0.1)
    weight_decay: float = preset("weight_decay", 5e-4)
    optimiser: str = preset("optimiser", "sgd")
    schedule: str = preset("schedule", "step")
    milestones: tuple[int, ...] = preset("milestones", (20, 40))
    precision: str = preset("precision", "bf16")

    def build(self) -> Network:
        return ResNet18(self.source.input_shape[0], self.num_classes)
