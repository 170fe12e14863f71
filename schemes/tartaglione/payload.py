"""A picture at secret positions of a network's weights: drawing positions, writing and reading values.

    s_i   = 2 pixel_i / 255 - 1, in [-1, 1]                    the picture, row by row, channels innermost
    w_p(i) = a s_i,  a = 2 sd of the tensor that p(i) is in    as it is written
    s~_i  = w_p(i) / a                                         as it is read

p(1), p(2), ... are distinct scalars, uniform over all weights of all layers, so each layer holds a share in proportion
to its size; they and their order are drawn from the key and secret.
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
        index: one (k,) int64 for each dimension of the parameter, independent of memory layout.
        values: (k,) float32, the values of the scalars.
        amplitude: a, the weight that stands for a white pixel.
    """

    name: str
    places: Tensor
    index: tuple[Tensor, ...]
    values: Tensor
    amplitude: float

    def to(self, device: torch.device) -> "LockedPart":
        """Return this part on ``device``."""
        index = tuple(i.to(device) for i in self.index)
        return LockedPart(self.name, self.places.to(device), index, self.values.to(device), self.amplitude)

    def mask(self, parameter: Tensor) -> Tensor:
        """Return a mask of the parameter's shape and device: True where a scalar is locked."""
        found = torch.zeros(parameter.shape, dtype=torch.bool, device=parameter.device)
        found[tuple(i.to(parameter.device) for i in self.index)] = True
        return found


@dataclass(frozen=True)
class Payload:
    """The values that a key writes into a network, and their positions.

    Attributes:
        parts: the locked scalars, tensor by tensor.
        signal: (n,) float64, s.
    """

    parts: tuple[LockedPart, ...]
    signal: np.ndarray

    @classmethod
    def of(cls, key: Key) -> "Payload":
        """Draw the payload of ``key``, once per key object. Raises ValueError if the key is another scheme's."""
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
        """Return this payload with its tensors on ``device``."""
        return Payload(tuple(part.to(device) for part in self.parts), self.signal)

    def read(self, model: nn.Module) -> np.ndarray:
        """Read s~ (n,) float64 on the CPU: equal on every device."""
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
        """Return True if every locked scalar holds its value, exactly."""
        return all(torch.equal(model.get_parameter(p.name)[p.index], p.values) for p in self.parts)


@dataclass(frozen=True)
class PayloadLayer:
    """One weight tensor that can hold values, as a key's public part describes it."""

    name: str
    shape: tuple[int, ...]
    amplitude: float

    @property
    def size(self) -> int:
        """Number of scalars."""
        return int(np.prod(self.shape))

    def described(self) -> dict[str, Json]:
        """Describe the layer for the public part of a key."""
        return {"name": self.name, "shape": lists(list(self.shape)), "amplitude": self.amplitude}

    @classmethod
    def read(cls, text: Json) -> Self:
        """Read what ``described`` returned. Raises TypeError or KeyError for anything else."""
        if not isinstance(text, dict) or not isinstance(text["shape"], list):
            raise TypeError(f"expected the description of a layer, got {text!r}")
        return cls(str(text["name"]), tuple(int(str(n)) for n in text["shape"]), float(str(text["amplitude"])))


def weight_layers(network: nn.Module) -> list[PayloadLayer]:
    """Return the weights of all layers, output layer included, with a = 2 sd of each.

    Biases and normalisation are left out: before training they have no spread that could hide a value.
    """
    return [
        PayloadLayer(name, tuple(parameter.shape), _amplitude(parameter))
        for name, parameter in network.named_parameters()
        if parameter.dim() >= 2
    ]


def _amplitude(parameter: Tensor) -> float:
    """Return a, rounded so that another order of summation gives the same key."""
    deviation = float(np.std(parameter.detach().cpu().double().numpy()))
    return float(f"{2 * deviation:.{_SIGNIFICANT_DIGITS}g}")


def layers_of(key: Key) -> list[PayloadLayer]:
    """Return the layers that a key may write to. Raises ValueError if it names none."""
    described = key.public.get("layers")
    if not isinstance(described, list) or not described:
        raise ValueError(f"expected a key with layers, got {key!r}; draw it with keygen")
    return [PayloadLayer.read(text) for text in described]


def image_of(key: Key) -> np.ndarray:
    """Return (h, w, channels) uint8, the picture that a key writes. Raises ValueError if it has none."""
    if "image" not in key.secret:
        raise ValueError(f"expected a key with an image, got {key!r}; draw it with keygen")
    return key.secret["image"].numpy()


def as_pixels(signal: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Convert s or s~ (n,) to pixels of ``shape``, uint8; clip values to [-1, 1]."""
    pixels: np.ndarray = np.round((np.clip(signal, -1, 1) + 1) * 127.5).astype(np.uint8)
    return pixels.reshape(tuple(shape))
