"""Bits in the mean filter of one layer, written by a regulariser.

The owner projects a layer's weights, averaged over output channels, on T secret directions and trains the signs of the
projections to spell secret bits.

    L = L_task + lambda1 E_R                                                               (eq. 1)
    E_R = -sum_j [b_j log y_j + (1 - b_j) log(1 - y_j)],  y_j = sigmoid(X_j . w)           (eqs. 4, 5)
    b'_j = [X_j . w >= 0],  verdict_paper: b' = b                                          (eqs. 2, 3)
    verdict: P[Binomial(T, 1/2) >= matches] <= 1e-6, exact because b is uniform and independent of X and of any model
    that was trained without it

    w  (M,)    weight (out, in, height, width) averaged over out, then flattened row by row; (out, in) of a linear layer
    X  (T, M)  secret projection: "random" N(0, 1); "direct" one 1 a row; "diff" one 1 and one -1 a row
    b  (T,)    secret bits, uniform

Source: Uchida, Nagai, Sakazawa, Satoh, "Embedding Watermarks into Deep Neural Networks", ICMR 2017,
section 3 (fine-tune-to-embed).
Differs from the paper: bits are random (the authors' code writes all ones, which any constant offset matches); no
position serves two bits in "direct" and "diff"; training continues from the clean network by Adam on a one-cycle
schedule, for at least ``MIN_STEPS`` steps.

X and b are drawn from the seed at each use and never stored. So a forger cannot choose an X that reads the wanted bits
from a frozen network, only try seeds, for which ``log10_p_adj`` corrects.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from wmarena.schemes.base import Access, Carrier, Owner, Recipe, Scheme, Suspect, Verdict, Workload, lists
from wmarena.schemes.keys import Key
from wmarena.schemes.params import Json, param
from wmarena.schemes.prf import Prf, as_tensor

MIN_STEPS = 200
"""Optimiser steps that 128 bits need on small training sets, where one pass is too short."""


@dataclass(frozen=True, kw_only=True)
class Uchida(Scheme):
    """Weight regulariser that writes bits into a layer's mean filter (Uchida et al. 2017)."""

    name: ClassVar[str] = "uchida"
    access: ClassVar[Access] = "white"
    paper: ClassVar[str] = "Uchida et al., Embedding Watermarks into Deep Neural Networks, ICMR 2017"
    threat_model: ClassVar[str] = "the adversary holds the weights and knows the algorithm, neither projection nor bits"

    bits: int = param(128, doc="T, number of bits; at least 20, or no reading reaches p <= 1e-6", stage="key", low=20)
    projection: Literal["random", "direct", "diff"] = param("random", doc="kind of secret directions X", stage="key")
    layer: str | None = param(
        None, doc="weight that carries the bits; none: the first convolution (else linear layer) with room", stage="key"
    )
    lambda1: float = param(0.03, doc="weight of E_R, a sum over bits", stage="embed", low=0)
    epochs: int | None = param(
        None, doc="passes over the training data; none: one, and at least 200 steps", stage="embed", low=1
    )
    lr: float | None = param(
        None,
        doc="peak rate of Adam's cycle; none: half the workload's, 1e-3 for SGD",
        stage="embed",
        low=0,
        low_open=True,
    )
    batch_size: int = param(100, doc="images in a batch", stage="embed", low=1)

    def twin_recipe(self, task: Workload, n_train: int) -> Recipe:
        return self._recipe(task, n_train)

    def for_epochs(self, epochs: int, n_train: int) -> "Uchida":
        return replace(self, epochs=epochs)

    def keygen(self, task: Workload, prf: Prf) -> Key:
        """Draw a seed and choose a layer. Raises ValueError: no layer, or not the one named, has room for the bits."""
        layer, shape = self._choose_layer(task)
        public: dict[str, Json] = {
            "config": self.config(until="key"),
            "workload": task.name,
            "bits": self.bits,
            "projection": self.projection,
            "layer": layer,
            "shape": lists(shape),
            "reading": "mean over dimension 0, flattened row by row",
        }
        return Key(self.name, prf.stream("seed", 32), public)

    def embed(self, model: nn.Module, owner: Owner, key: Key) -> tuple[nn.Module, Key]:
        task, mark = owner.task, _Mark.of(key)
        directions, bits = mark.tensors(task.device)

        def penalty(trained: nn.Module) -> Tensor:
            return self.lambda1 * mark.n_bits * _bit_loss(mark.mean_filter(trained), directions, bits)

        recipe = self._recipe(task, len(owner.train))
        task.fit(
            model, owner.train, recipe, seed=owner.seed, penalty=penalty, log=owner.log, checkpoints=owner.checkpoints
        )
        return model.eval(), key

    def verify(self, suspect: Suspect, key: Key) -> Verdict:
        mark = _Mark.of(key)
        # In float64 on the CPU the bits are the same on every device.
        read = mark.directions() @ mark.mean_filter(suspect.model).detach().cpu().double().numpy() >= 0
        matches = int((read == mark.bits()).sum())
        details: dict[str, Json] = {"layer": mark.layer, "bit_error_rate": 1 - matches / mark.n_bits}
        exact = matches == mark.n_bits
        return Verdict.binomial(matches, mark.n_bits, 0.5, access=self.access, paper=exact, details=details)

    def randomise_key(self, key: Key, prf: Prf) -> Key:
        return replace(key, seed=prf.stream("seed", 32))

    def incompatible(self, suspect: Suspect, key: Key) -> str | None:
        mark = _Mark.of(key)
        return suspect.mismatch({mark.layer: lists(mark.shape)})

    def trials(self, key: Key) -> tuple[int, float]:
        return _Mark.of(key).n_bits, 0.5

    def mark_loss(self, model: nn.Module, task: Workload, key: Key, labels: Tensor | None = None) -> Tensor:
        """Return E_R / T: as a mean it does not grow with T and is comparable to other schemes' mark losses."""
        mark = _Mark.of(key)
        directions, bits = mark.tensors(task.device)
        return _bit_loss(mark.mean_filter(model), directions, bits if labels is None else labels.to(bits))

    def carriers(self, model: nn.Module, key: Key) -> list[Carrier]:
        return [Carrier(_Mark.of(key).layer)]

    def _recipe(self, task: Workload, n_train: int) -> Recipe:
        steps_per_epoch = math.ceil(n_train / self.batch_size)
        steps = max(steps_per_epoch, MIN_STEPS) if self.epochs is None else self.epochs * steps_per_epoch
        return task.recipe.continued(lr=self.lr, sgd_lr=1e-3, batch_size=self.batch_size, steps=steps, n_train=n_train)

    def _choose_layer(self, task: Workload) -> tuple[str, torch.Size]:
        """Return name and shape of the weight ``layer``; by default the first convolution with M >= 2T, else the
        largest that has room, else the same among linear layers. Never the output layer: attackers replace it."""
        network = task.network(seed=0)
        output = set(task.head(network).modules())
        inner = [(f"{name}.weight", m) for name, m in network.named_modules() if m not in output]
        convolutions = [(name, m.weight.shape) for name, m in inner if isinstance(m, _CONVOLUTIONS)]
        linear = [(name, m.weight.shape) for name, m in inner if isinstance(m, nn.Linear)]
        if self.layer is not None:
            wanted = (self.layer, f"{self.layer}.weight")
            kinds = [[(name, shape) for name, shape in convolutions + linear if name in wanted]]
        else:
            kinds = [convolutions, linear]
        for kind in kinds:
            room = [(name, shape) for name, shape in kind if _inputs(shape) >= self._needed]
            roomy = [(name, shape) for name, shape in room if _inputs(shape) >= 2 * self.bits]
            if room:
                return roomy[0] if roomy else max(room, key=lambda found: _inputs(found[1]))
        sizes = ", ".join(f"{name} (M = {_inputs(shape)})" for name, shape in convolutions + linear)
        raise ValueError(
            f"expected {self.layer or 'a layer'} of {task.name} with M >= {self._needed} for {self.bits} bits in "
            f"projection {self.projection!r}, got {sizes or 'no layer'}; lower bits or name another layer"
        )

    @property
    def _needed(self) -> int:
        """Smallest M that T bits fit into: T independent directions."""
        return 2 * self.bits if self.projection == "diff" else self.bits


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class _Mark:
    """The mark of a key; directions and bits are drawn from the seed at each use."""

    prf: Prf
    layer: str
    shape: tuple[int, ...]
    n_bits: int
    projection: str

    @classmethod
    def of(cls, key: Key) -> "_Mark":
        """Read a key. Raises ValueError if it is not one of this scheme."""
        layer, shape = key.public.get("layer"), key.public.get("shape")
        n_bits, projection = key.public.get("bits"), key.public.get("projection")
        if isinstance(layer, str) and isinstance(shape, list) and isinstance(n_bits, int):
            return cls(key.prf, layer, tuple(int(str(s)) for s in shape), n_bits, str(projection))
        raise ValueError(f"expected a key with layer, shape and bits, got {key!r}; draw it with keygen")

    def mean_filter(self, model: nn.Module) -> Tensor:
        """Return w (M,), differentiable."""
        return model.get_parameter(self.layer).mean(dim=0).flatten()

    def directions(self) -> np.ndarray:
        """Return X (T, M) float64."""
        m = _inputs(self.shape)
        if self.projection == "random":
            return self.prf.normal("matrix", (self.n_bits, m))
        rows, places = np.arange(self.n_bits), self.prf.permutation("positions", m)
        x = np.zeros((self.n_bits, m))
        x[rows, places[: self.n_bits]] = 1
        if self.projection == "diff":
            x[rows, places[self.n_bits : 2 * self.n_bits]] = -1
        return x

    def bits(self) -> np.ndarray:
        """Return b (T,) uint8."""
        return self.prf.bits("bits", self.n_bits)

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return (X (T, M), b (T,)) float32 on the device."""
        return as_tensor(self.directions(), device), as_tensor(self.bits(), device).float()


def _inputs(shape: Sequence[int]) -> int:
    """Return M: weights that feed one output channel."""
    return math.prod(shape[1:])


def _bit_loss(mean_filter: Tensor, directions: Tensor, bits: Tensor) -> Tensor:
    """Return E_R / T (scalar) for w (M,), X (T, M), b (T,) float."""
    return functional.binary_cross_entropy_with_logits(directions @ mean_filter, bits)
