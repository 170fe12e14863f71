"""The watermark's own classifier: secret inputs, secret labels, and a head over the network's stages.

    f(x)  = concat_s mean_space(stage_s(x))               (n, d)   pooled features
    z(x)  = f(x), or (f(x) - mean) / std over the batch    (n, d)   the head's input
    c(x)  = W2 relu(W1 z(x) + b1) + b2                     (n, 2)   the head c_WM
    D_WM  = {(map(pi_i), l_i)}, i = 1..N                            pi distinct below 2^m, l uniform bits

Source: Li, Yang, Wang, Liew, "Leveraging Multi-task Learning for Umambiguous and Flexible Deep Neural Network
Watermarking" (SafeAI at AAAI 2022), key generation and network. The paper leaves pooling and widths open: here every
stage is averaged over space, so that the head does not depend on the input's size.
"""

import functools
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from schemes.base import Workload
from schemes.prf import Prf, as_tensor

Head = Mapping[str, Tensor]
"""c_WM as tensors: "0.weight" (hidden, d), "0.bias" (hidden,), "2.weight" (2, hidden), "2.bias" (2,)."""

MAX_BITS = 30
"""Workloads turn integers below 2^30 into inputs."""

_CHUNK = 200
"""Inputs per forward pass over all triggers; fixed, so that a statistic does not depend on anybody's batch size."""

_VARIANCE_FLOOR = 1e-8
"""Added to variances: a feature that is constant over the triggers becomes 0 instead of amplified rounding noise."""


def integer_bits(n: int) -> int:
    """m = min(3 ceil(log2 n), 30): bits of a secret integer, so that two keys practically never share one."""
    return min(3 * math.ceil(math.log2(n)), MAX_BITS)


def secret_integers(prf: Prf, n: int) -> list[int]:
    """pi: n distinct integers below 2^m."""
    return [int(i) for i in prf.distinct_integers("pi", n, 2 ** integer_bits(n))]


def secret_labels(prf: Prf, n: int) -> Tensor:
    """l: n uniform bits (n,) int64; not balanced, on purpose: matches of a constant answer are Binomial(n, 1/2)."""
    return as_tensor(prf.bits("labels", n))


def trigger_data(task: Workload, seed: bytes, n: int) -> tuple[Tensor, Tensor]:
    """D_WM on the device: normalised inputs (n, *input_shape) and labels (n,) int64."""
    # Workloads hash, by value or by identity; a protocol cannot say so.
    inputs = _encoded(task, seed, n)  # type: ignore[arg-type]
    return inputs, secret_labels(Prf(seed), n).to(task.device)


@functools.lru_cache(maxsize=4)
def _encoded(task: Workload, seed: bytes, n: int) -> Tensor:
    """Inputs of a key, kept, as spoiling asks for them at every step; never changed in place."""
    return task.to_inputs(task.encode_integers(secret_integers(Prf(seed), n)))


def initial_head(prf: Prf, d: int, hidden: int) -> dict[str, Tensor]:
    """A trainable head's start: uniform on +-1/sqrt(fan-in), from the key's stream, never from a global generator."""
    shapes = {"0.weight": (hidden, d), "0.bias": (hidden,), "2.weight": (2, hidden), "2.bias": (2,)}
    head = {}
    for name, shape in shapes.items():
        bound = 1 / math.sqrt(d if name.startswith("0") else hidden)
        values = prf.uniform(f"head.{name}", math.prod(shape)).reshape(shape)
        head[name] = as_tensor(bound * (2 * values - 1))
    return head


@functools.lru_cache(maxsize=4)
def random_head(seed: bytes, d: int, hidden: int, scale: float) -> Head:
    """A fixed head: Gaussian weights such that standardised features give logits of deviation about ``scale``."""
    prf = Prf(seed)
    first = prf.normal("head.0.weight", (hidden, d)) * math.sqrt(2 / d)
    second = prf.normal("head.2.weight", (2, hidden)) * scale / math.sqrt(hidden)
    zeros = {"0.bias": torch.zeros(hidden), "2.bias": torch.zeros(2)}
    return {"0.weight": as_tensor(first), "2.weight": as_tensor(second), **zeros}


def perceptron(inputs: Tensor, head: Head) -> Tensor:
    """(n, 2) logits of c_WM for its inputs (n, d)."""
    hidden = functional.relu(functional.linear(inputs, head["0.weight"], head["0.bias"]))
    return functional.linear(hidden, head["2.weight"], head["2.bias"])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, training flags as before afterwards: trigger inputs never touch batch-norm statistics."""
    training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One key's data set and head, on a workload's device.

    Attributes:
        inputs: (N, *input_shape) normalised; labels: (N,) int64 in {0, 1}.
        head: c_WM.
        standardised: whether features are centred and scaled over the inputs of the same call.
    """

    task: Workload
    inputs: Tensor
    labels: Tensor
    head: Head
    standardised: bool

    @property
    def n_features(self) -> int:
        """d: features that the head reads."""
        return self.head["0.weight"].shape[1]

    @property
    def n_hidden(self) -> int:
        """Width of the head."""
        return self.head["0.weight"].shape[0]

    def features(
        self, model: nn.Module, chosen: Tensor | None = None, state: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """(n, d) pooled features in eval mode, of all inputs or of those with indices ``chosen`` (n,).

        ``state`` replaces tensors of the model for this call, differentiably.
        """
        inputs = self.inputs if chosen is None else self.inputs[chosen]
        with evaluating(model):
            return pooled_features(self.task, model, inputs, state)

    def logits(self, features: Tensor) -> Tensor:
        """(n, 2) of the head for pooled features (n, d)."""
        if self.standardised:
            variance, mean = torch.var_mean(features, dim=0, correction=0)
            features = (features - mean) * torch.rsqrt(variance + _VARIANCE_FLOOR)
        return perceptron(features, self.head)

    def loss(self, model: nn.Module, chosen: Tensor | None = None, state: Mapping[str, Tensor] | None = None) -> Tensor:
        """Mean cross-entropy (scalar) over all inputs, or over those with indices ``chosen`` (n,)."""
        labels = self.labels if chosen is None else self.labels[chosen]
        return functional.cross_entropy(self.logits(self.features(model, chosen, state)), labels)

    @torch.no_grad()
    def accuracy(self, model: nn.Module, state: Mapping[str, Tensor] | None = None) -> float:
        """Share of all N labels that the head answers on ``model``."""
        hits = self.logits(self.features(model, state=state)).argmax(dim=1) == self.labels
        return float(hits.float().mean())


def pooled_features(
    task: Workload, model: nn.Module, inputs: Tensor, state: Mapping[str, Tensor] | None = None
) -> Tensor:
    """(n, d): every stage averaged over space, concatenated in the stages' order."""
    parts = []
    for chunk in torch.split(inputs, _CHUNK):
        stages = task.stages(model, chunk, state)
        parts.append(torch.cat([s.float().flatten(2).mean(dim=2) if s.dim() > 2 else s.float() for s in stages], dim=1))
    return torch.cat(parts)


def memorised(features: Tensor, labels: Tensor, start: Head, *, steps: int, lr: float) -> dict[str, Tensor]:
    """A head that fits ``labels`` (n,) on constant ``features`` (n, d), trained by full-batch Adam from ``start``.

    It learns on standardised features, which is far quicker; the scaling is then folded into its first layer.
    """
    deviation, mean = torch.std_mean(features, dim=0, correction=0)
    # A feature that is constant over the triggers tells nothing: its weight becomes 0.
    inverse = torch.where(deviation > 1e-6 * mean.abs() + 1e-12, 1 / deviation, 0.0)
    inputs = (features - mean) * inverse
    head = {n: t.detach().clone().requires_grad_() for n, t in start.items()}
    optimiser = torch.optim.Adam(head.values(), lr=lr)
    with torch.enable_grad():
        for _ in range(steps):
            optimiser.zero_grad()
            loss = functional.cross_entropy(perceptron(inputs, head), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    found = {n: t.detach() for n, t in head.items()}
    found["0.weight"] = found["0.weight"] * inverse
    found["0.bias"] = found["0.bias"] - found["0.weight"] @ mean
    return found
