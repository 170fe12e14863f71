"""A picture in secret places of a network's weights: where its values lie, how they are written and read.

    s_i   = 2 pixel_i / 255 - 1, in [-1, 1]                    the picture, row by row, channels innermost
    w_p(i) = a s_i,  a = 2 sd of the tensor that p(i) is in    as it is written
    s~_i  = w_p(i) / a                                         as it is read

p(1), p(2), ... are distinct scalars, uniform over all weights of all layers, hence a layer is hit in proportion to
its size; they are drawn from the key, and their order is as secret as they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from wmarena.schemes.base import lists
from wmarena.schemes.keys import Key
from wmarena.schemes.params import Json

_SIGNIFICANT_DIGITS = 6


@dataclass(frozen=True)
class LockedPart:
    """The locked scalars of one tensor.

    Attributes:
        name: of the parameter.
        places: (k,) int64, which of the picture's values each scalar holds.
        index: one (k,) int64 a dimension of the parameter; works whatever its memory layout.
        values: (k,) float32, what the scalars hold.
        amplitude: a, the weight that stands for a white pixel.
    """

    name: str
    places: Tensor
    index: tuple[Tensor, ...]
    values: Tensor
    amplitude: float

    def to(self, device: torch.device) -> "LockedPart":
        """The same on ``device``."""
        index = tuple(i.to(device) for i in self.index)
        return LockedPart(self.name, self.places.to(device), index, self.values.to(device), self.amplitude)

    def mask(self, parameter: Tensor) -> Tensor:
        """Boolean, of the parameter's shape and device: True where a scalar is locked."""
        found = torch.zeros(parameter.shape, dtype=torch.bool, device=parameter.device)
        found[tuple(i.to(parameter.device) for i in self.index)] = True
        return found


@dataclass(frozen=True)
class Payload:
    """What a key writes into a network, and where.

    Attributes:
        parts: the locked scalars, tensor by tensor.
        signal: (n,) float64, s.
    """

    parts: tuple[LockedPart, ...]
    signal: np.ndarray

    @classmethod
    def of(cls, key: Key) -> "Payload":
        """What ``key`` says, drawn once per key object. Raises ValueError if the key is not one of this scheme."""
        return key.cached("payload", lambda: cls._drawn(key))

    @classmethod
    def _drawn(cls, key: Key) -> "Payload":
        layers = layers_of(key)
        signal = 2.0 * image_of(key).flatten() / 255 - 1
        ends = np.cumsum([layer.size for layer in layers])
        chosen = key.prf.distinct_integers("positions", len(signal), int(ends[-1]))
        owner = np.searchsorted(ends, chosen, side="right")
        parts = []
        for number, layer in enumerate(layers):
            places = np.flatnonzero(owner == number)
            if len(places):
                local = np.unravel_index(chosen[places] - (ends[number] - layer.size), layer.shape)
                index = tuple(torch.from_numpy(axis.astype(np.int64)) for axis in local)
                values = torch.from_numpy((signal[places] * layer.amplitude).astype(np.float32))
                parts.append(LockedPart(layer.name, torch.from_numpy(places), index, values, layer.amplitude))
        return cls(tuple(parts), signal)

    def to(self, device: torch.device) -> "Payload":
        """The same with its tensors on ``device``."""
        return Payload(tuple(part.to(device) for part in self.parts), self.signal)

    def read(self, model: nn.Module) -> np.ndarray:
        """s~ (n,) float64, on the CPU: the same on every device."""
        found = np.empty(len(self.signal))
        for part in self.parts:
            weights = model.get_parameter(part.name).detach()
            values = weights[tuple(i.to(weights.device) for i in part.index)]
            found[part.places.cpu().numpy()] = values.cpu().double().numpy() / part.amplitude
        return found

    @torch.no_grad()
    def write(self, model: nn.Module) -> None:
        """Set the locked scalars, exactly; index tensors must be on the model's device."""
        for part in self.parts:
            model.get_parameter(part.name)[part.index] = part.values

    @torch.no_grad()
    def intact(self, model: nn.Module) -> bool:
        """True if every locked scalar holds its value, exactly."""
        return all(torch.equal(model.get_parameter(p.name)[p.index], p.values) for p in self.parts)


@dataclass(frozen=True)
class PayloadLayer:
    """One weight tensor that may be chosen, as a key's public part describes it."""

    name: str
    shape: tuple[int, ...]
    amplitude: float

    @property
    def size(self) -> int:
        """Number of scalars."""
        return int(np.prod(self.shape))

    def described(self) -> dict[str, Json]:
        """For the public part of a key."""
        return {"name": self.name, "shape": lists(list(self.shape)), "amplitude": self.amplitude}

    @classmethod
    def read(cls, text: Json) -> Self:
        """What ``described`` gave. Raises TypeError or KeyError for anything else."""
        if not isinstance(text, dict) or not isinstance(text["shape"], list):
            raise TypeError(f"expected the description of a layer, got {text!r}")
        return cls(str(text["name"]), tuple(int(str(n)) for n in text["shape"]), float(str(text["amplitude"])))


def weight_layers(network: nn.Module) -> list[PayloadLayer]:
    """The weights of all layers, output layer included, with a = 2 sd of each.

    Biases and normalisation are left out: they have no spread before training that a value could hide in.
    """
    return [
        PayloadLayer(name, tuple(parameter.shape), _amplitude(parameter))
        for name, parameter in network.named_parameters()
        if parameter.dim() >= 2
    ]


def _amplitude(parameter: Tensor) -> float:
    """Rounded, so that another order of summation gives the same key."""
    deviation = float(np.std(parameter.detach().cpu().double().numpy()))
    return float(f"{2 * deviation:.{_SIGNIFICANT_DIGITS}g}")


def layers_of(key: Key) -> list[PayloadLayer]:
    """The layers that a key may write to. Raises ValueError if it names none."""
    described = key.public.get("layers")
    if not isinstance(described, list) or not described:
        raise ValueError(f"expected a key with layers, got {key!r}; draw it with keygen")
    return [PayloadLayer.read(text) for text in described]


def image_of(key: Key) -> np.ndarray:
    """(h, w, channels) uint8, the picture that a key writes. Raises ValueError if it has none."""
    if "image" not in key.secret:
        raise ValueError(f"expected a key with an image, got {key!r}; draw it with keygen")
    return key.secret["image"].numpy()


def as_pixels(signal: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """``shape`` uint8: the picture of s or s~ (n,), values beyond [-1, 1] cut off."""
    pixels: np.ndarray = np.round((np.clip(signal, -1, 1) + 1) * 127.5).astype(np.uint8)
    return pixels.reshape(tuple(shape))
