"""The watermark's own classifier: secret inputs, secret labels, and a head over the network's stages.

    f(x)  = concat_s mean_space(stage_s(x))         (n, d)   pooled features
    z(x)  = (f(x) - mean f) / std f                 (n, d)   standardised over the inputs that are judged together
    c(x)  = W2 relu(W1 z(x) + b1) + b2              (n, 2)   the head c_WM
    D_WM  = {(map(pi_i), l_i)}, i = 1..N                     pi distinct below 2^m, l uniform bits

Source: Li, Yang, Wang, Liew, "Leveraging Multi-task Learning for Unambiguous and Flexible Deep Neural Network
Watermarking" (SafeAI at AAAI 2022), key generation and network. The paper leaves pooling and widths open: here every
stage is averaged over space, so that the head does not depend on the input's size. Standardising is ours: the secret
inputs are similar, so their features differ by a few per cent of their size, and fine-tuning moves the common part
most. Mean and deviation are taken on the suspect, over N inputs in verification and a mini-batch in training: no label
is read, so p stays exact, and no stored statistics exist that a forger could choose.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from wmarena.schemes.base import Workload, evaluating
from wmarena.schemes.keys import Key
from wmarena.schemes.prf import Prf, as_tensor

Head = Mapping[str, Tensor]
"""c_WM as tensors: "0.weight" (hidden, d), "0.bias" (hidden,), "2.weight" (2, hidden), "2.bias" (2,)."""

MAX_BITS = 30
"""Workloads turn integers below 2^30 into inputs."""

_CHUNK = 200
"""Inputs per forward pass over all triggers; fixed, so that statistics do not depend on a batch size."""

_VARIANCE_FLOOR = 1e-8
"""Added to variances: a feature that is constant over the triggers becomes 0, not amplified rounding noise."""


def integer_bits(n: int) -> int:
    """Return m = min(3 ceil(log2 n), 30): bits of a secret integer, so that two keys practically never share one."""
    return min(3 * math.ceil(math.log2(n)), MAX_BITS)


def secret_integers(prf: Prf, n: int) -> list[int]:
    """Draw pi: n distinct integers below 2^m."""
    return [int(i) for i in prf.distinct_integers("pi", n, 2 ** integer_bits(n))]


def secret_labels(prf: Prf, n: int) -> Tensor:
    """Draw l (n,) int64 uniform bits, not balanced: matches of a constant answer are then Binomial(n, 1/2)."""
    return as_tensor(prf.bits("labels", n))


def trigger_data(task: Workload, key: Key, n: int) -> tuple[Tensor, Tensor]:
    """Return D_WM on the device: normalised inputs (n, *input_shape), read-only, and labels (n,) int64."""

    def drawn() -> tuple[Tensor, Tensor]:
        inputs = task.to_inputs(task.encode_integers(secret_integers(key.prf, n)))
        return inputs, secret_labels(key.prf, n).to(task.device)

    return key.cached(("triggers", task.name, str(task.device), n), drawn)


def random_head(key: Key, d: int, hidden: int, scale: float) -> Head:
    """Draw a Gaussian c_WM whose logits on standardised features have standard deviation of about ``scale``."""

    def drawn() -> Head:
        prf = key.prf
        first = prf.normal("head.0.weight", (hidden, d)) * math.sqrt(2 / d)
        second = prf.normal("head.2.weight", (2, hidden)) * scale / math.sqrt(hidden)
        zeros = {"0.bias": torch.zeros(hidden), "2.bias": torch.zeros(2)}
        return {"0.weight": as_tensor(first), "2.weight": as_tensor(second), **zeros}

    return key.cached(("head", d, hidden, scale), drawn)


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One key's data set and head, on a workload's device.

    Attributes:
        inputs: (N, *input_shape) normalised; labels: (N,) int64 in {0, 1}.
        head: c_WM.
    """

    task: Workload
    inputs: Tensor
    labels: Tensor
    head: Head

    @property
    def n_features(self) -> int:
        """d: features that the head reads."""
        return self.head["0.weight"].shape[1]

    @property
    def n_hidden(self) -> int:
        """Width of the head."""
        return self.head["0.weight"].shape[0]

    def with_trainable_head(self) -> "Mark":
        """Return this mark with a copy of the head whose tensors require gradients."""
        return replace(self, head={n: t.detach().clone().requires_grad_() for n, t in self.head.items()})

    def features(
        self, model: nn.Module, chosen: Tensor | None = None, state: Mapping[str, Tensor] | None = None
    ) -> Tensor:
        """Return (n, d) pooled features in eval mode, of all inputs or of those with indices ``chosen`` (n,).

        ``state`` replaces tensors of the model for this call, differentiably.
        """
        inputs = self.inputs if chosen is None else self.inputs[chosen]
        with evaluating(model):
            return pooled_features(self.task, model, inputs, state)

    def logits(self, features: Tensor) -> Tensor:
        """Return (n, 2) of the head for pooled features (n, d), standardised over these n inputs."""
        variance, mean = torch.var_mean(features, dim=0, correction=0)
        standard = (features - mean) * torch.rsqrt(variance + _VARIANCE_FLOOR)
        hidden = functional.relu(functional.linear(standard, self.head["0.weight"], self.head["0.bias"]))
        return functional.linear(hidden, self.head["2.weight"], self.head["2.bias"])

    def loss(self, model: nn.Module, chosen: Tensor | None = None, state: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the mean cross-entropy (scalar) over all inputs, or over those with indices ``chosen`` (n,)."""
        labels = self.labels if chosen is None else self.labels[chosen]
        return functional.cross_entropy(self.logits(self.features(model, chosen, state)), labels)

    @torch.no_grad()
    def accuracy(self, model: nn.Module, state: Mapping[str, Tensor] | None = None) -> float:
        """Return the share of all N labels that the head answers on ``model``."""
        hits = self.logits(self.features(model, state=state)).argmax(dim=1) == self.labels
        return float(hits.float().mean())


def pooled_features(
    task: Workload, model: nn.Module, inputs: Tensor, state: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Return (n, d): every stage averaged over space, concatenated in the stages' order."""
    parts = []
    for chunk in torch.split(inputs, _CHUNK):
        stages = task.stages(model, chunk, state)
        parts.append(torch.cat([s.float().flatten(2).mean(dim=2) if s.dim() > 2 else s.float() for s in stages], dim=1))
    return torch.cat(parts)
