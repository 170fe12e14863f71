"""An image classification task on one device; implements ``wmarena.schemes.base.Workload``."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from wmarena.experiments.workloads import training
from wmarena.experiments.workloads.images.codes import qr_codes
from wmarena.experiments.workloads.images.pixels import Pixels
from wmarena.experiments.workloads.networks.base import Network
from wmarena.schemes.base import (
    Batch,
    Checkpoints,
    Evaluation,
    Log,
    Recipe,
    Samples,
    SplitAt,
    TaskInfo,
    lists,
    untouched,
)
from wmarena.schemes.params import Json
from wmarena.schemes.prf import subseed
from wmarena.schemes.training_state import seeded

Precision = Literal["float32", "bf16"]

_EVALUATION_BATCH = 1000


class _Taps(nn.Module):
    """Adapter with the taps as forward pass, because ``functional_call`` calls ``forward``."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        return self.network.taps(inputs)


@dataclass(frozen=True, kw_only=True)
class ImageTask:
    """Classification of small images, bound to a device; holds no data.

    Attributes:
        pixels: computes inputs from raw images.
        build: creates a network on the CPU, initialised from torch's global generator.
        precision: of training's forward pass on CUDA; evaluation and everything on a CPU is float32.
    """

    name: str
    info: TaskInfo
    device: torch.device
    recipe: Recipe
    pixels: Pixels
    build: Callable[[], Network]
    precision: Precision

    def network(self, seed: int) -> nn.Module:
        """Create an initialised network on the device, in train mode.

        Initialised on the CPU, so the start is equal on every device; the global generator is restored.
        Weights are in channels-last order: 1.3 to 2 times as fast for LeNet-5 on a CPU, and needed by tensor cores.
        """
        with seeded(subseed(seed, "network"), torch.device("cpu")):
            network = self.build()
        return network.to(memory_format=torch.channels_last).to(self.device)

    def architecture(self, model: nn.Module) -> dict[str, Json]:
        """Tensor name -> shape, of parameters and buffers."""
        return {name: lists(tensor.shape) for name, tensor in model.state_dict().items()}

    def to_inputs(self, raw: Tensor) -> Tensor:
        """Normalised float32 inputs on the device from uint8 images (n, *info.input_shape)."""
        if raw.dtype != torch.uint8 or tuple(raw.shape[1:]) != self.info.input_shape:
            raise ValueError(
                f"expected uint8 images (n, {', '.join(map(str, self.info.input_shape))}) for {self.name}, "
                f"got {raw.dtype} {tuple(raw.shape)}"
            )
        return self.pixels.inputs(raw)

    def encode_integers(self, values: Sequence[int]) -> Tensor:
        """(n, *info.input_shape) uint8 on the CPU: QR codes of integers in [0, 2^30)."""
        return qr_codes(values, self.info.input_shape)

    def stages(self, model: nn.Module, inputs: Tensor, state: Mapping[str, Tensor] | None = None) -> tuple[Tensor, ...]:
        """Outputs of the taps, each (n, channels[, h, w]), in the caller's precision.

        Args:
            state: tensors by state-dict name that replace the model's own, differentiably; others stay.

        Raises:
            ValueError: ``state`` has a name that is not in the model.
        """
        network = _network(model)
        if state is None:
            return network.taps(inputs)
        unknown = sorted(set(state) - set(network.state_dict()))
        if unknown:
            raise ValueError(f"expected names of the model's tensors, got {unknown[0]!r}; see `architecture`")
        own = {f"network.{name}": tensor for name, tensor in state.items()}
        taps: tuple[Tensor, ...] = functional_call(_Taps(network), own, (inputs,))
        return taps

    def stage_names(self, model: nn.Module) -> tuple[str, ...]:
        """Names of the taps."""
        return _network(model).stage_names

    def head(self, model: nn.Module) -> nn.Linear:
        """The output layer."""
        return _network(model).head

    def split(self, model: nn.Module, at: SplitAt) -> tuple[nn.Module, nn.Module]:
        """(extractor, predictor) that share the model's parameters."""
        return _network(model).split(at)

    def loss(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of a batch, in the task's precision."""
        half = self.precision == "bf16" and self.device.type == "cuda"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half):
            return F.cross_entropy(model(inputs), targets)

    def predict(self, model: nn.Module, raw: Tensor) -> Tensor:
        """(n,) int64 top-1 labels of uint8 images, in eval mode, float32, batches of 1000."""
        batches = (self.to_inputs(part) for part in torch.split(raw, _EVALUATION_BATCH))
        with untouched(model), torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return torch.cat([model(inputs).argmax(dim=1) for inputs in batches])

    def score(self, model: nn.Module, samples: Samples) -> float:
        """Top-1 accuracy in [0, 1], as computed by ``evaluate``."""
        return self.evaluate(model, samples).score

    def evaluate(self, model: nn.Module, samples: Samples) -> Evaluation:
        """Top-1 accuracy with predicted and true labels, (n,) int16 on the CPU; eval mode, float32, batches of 1000."""
        predicted: list[Tensor] = []
        expected: list[Tensor] = []
        with untouched(model), torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            for inputs, targets in samples.in_order(_EVALUATION_BATCH):
                predicted.append(model(inputs).argmax(dim=1))
                expected.append(targets)
        answers, truth = (torch.cat(parts).to("cpu", torch.int16) for parts in (predicted, expected))
        return Evaluation(score=int((answers == truth).sum()) / len(truth), predicted=answers, targets=truth)

    def fit(
        self,
        model: nn.Module,
        samples: Samples,
        recipe: Recipe,
        *,
        seed: int,
        extra: Callable[[int], Batch] | None = None,
        penalty: Callable[[nn.Module], Tensor] | None = None,
        log: Log | None = None,
        checkpoints: Checkpoints | None = None,
        keep_at: Iterable[int] = (),
    ) -> None:
        """Train ``model`` in place (``wmarena.schemes.base.Workload.fit``); leave its training flags unchanged."""
        run = training.Training(
            model=model,
            samples=samples,
            recipe=recipe,
            loss=self.loss,
            device=self.device,
            seed=seed,
            extra=extra,
            penalty=penalty,
        )
        run.run(log=log, checkpoints=checkpoints, keep_at=keep_at)

    def recalibrate(self, model: nn.Module, samples: Samples) -> None:
        """Recompute batch-norm statistics on ``samples`` (no-op without batch norm)."""
        training.recalibrate(model, samples)


def _network(model: nn.Module) -> Network:
    if not isinstance(model, Network):
        raise TypeError(
            f"expected one of the workload's networks, got {type(model).__name__}; "
            "networks with taps derive from wmarena.experiments.workloads.networks.base.Network"
        )
    return model
