"""Bits in the signs of single weights.

The owner chooses T positions of one weight tensor by key and trains the weights there to have secret signs.

    L = L_task + lambda1 mean_j [-b_j log y_j - (1 - b_j) log(1 - y_j)],  y_j = sigmoid(w_j / s)
    b'_j = [w_j >= 0],  verdict: P[Binomial(T, 1/2) >= matches] <= 1e-6, exact because b is uniform and independent of
    the places and of any model that was trained without it

    w  (T,)  weights at the secret places        b  (T,)  secret bits, uniform        s  their scale

An example of a scheme in one file; no paper proposes exactly this.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from wmarena.schemes.base import Access, Carrier, Owner, Recipe, Scheme, Suspect, Verdict, Workload, lists
from wmarena.schemes.keys import Key
from wmarena.schemes.params import param
from wmarena.schemes.prf import Prf


@dataclass(frozen=True, kw_only=True)
class Signs(Scheme):
    """Secret bits in the signs of secretly chosen weights."""

    name: ClassVar[str] = "signs"
    access: ClassVar[Access] = "white"
    paper: ClassVar[str] = "none: an example"
    threat_model: ClassVar[str] = "the adversary holds the weights and knows the algorithm, neither places nor bits"

    bits: int = param(64, doc="T, number of bits; at least 20, or no reading reaches p <= 1e-6", stage="key", low=20)
    lambda1: float = param(10.0, doc="weight of the bits' mean loss", stage="embed", low=0)
    size: float = param(0.02, doc="s, a weight twice as large is safe", stage="embed", low=0, low_open=True)
    epochs: int = param(10, doc="passes over the training data", stage="embed", low=1)
    lr: float = param(3e-3, doc="peak rate of Adam's one cycle", stage="embed", low=0, low_open=True)

    def keygen(self, task: Workload, prf: Prf) -> Key:
        layer, shape = largest_weight(task)
        if math.prod(shape) < self.bits:
            raise ValueError(f"expected {self.bits} weights in {layer}, got {math.prod(shape)}; lower bits")
        public = {"config": self.config(until="key"), "workload": task.name, "layer": layer, "shape": lists(shape)}
        return Key(self.name, prf.stream("seed", 32), {**public, "bits": self.bits})

    def embed(self, model: nn.Module, owner: Owner, key: Key) -> tuple[nn.Module, Key]:
        def penalty(trained: nn.Module) -> Tensor:
            return self.lambda1 * self.mark_loss(trained, owner.task, key)

        recipe = self.twin_recipe(owner.task, len(owner.train))
        owner.task.fit(
            model,
            owner.train,
            recipe,
            seed=owner.seed,
            penalty=penalty,
            log=owner.log,
            checkpoints=owner.checkpoints,
        )
        return model.eval(), key

    def verify(self, suspect: Suspect, key: Key) -> Verdict:
        n, q = self.trials(key)
        read = marked_weights(suspect.model, key) >= 0
        matches = int((read.cpu() == secret_bits(key).bool()).sum())
        return Verdict.binomial(matches, n, q, access=self.access, paper=matches == n)

    def randomise_key(self, key: Key, prf: Prf) -> Key:
        return replace(key, seed=prf.stream("seed", 32))

    def incompatible(self, suspect: Suspect, key: Key) -> str | None:
        return suspect.mismatch({str(key.public["layer"]): key.public["shape"]})

    def trials(self, key: Key) -> tuple[int, float]:
        return len(secret_bits(key)), 0.5

    def twin_recipe(self, task: Workload, n_train: int) -> Recipe:
        """Return the training of ``embed``, without the mark: WMArena gives the clean twin the same."""
        own = task.recipe
        return Recipe(
            optimiser="adam",
            lr=self.lr,
            batch_size=own.batch_size,
            epochs=self.epochs,
            steps=self.epochs * math.ceil(n_train / own.batch_size),
            schedule="one_cycle",
            augment=own.augment,
        )

    def for_epochs(self, epochs: int, n_train: int) -> "Signs":
        return replace(self, epochs=epochs)

    def mark_loss(self, model: nn.Module, task: Workload, key: Key, labels: Tensor | None = None) -> Tensor:
        weights = marked_weights(model, key)
        bits = secret_bits(key) if labels is None else labels
        return functional.binary_cross_entropy_with_logits(weights / self.size, bits.to(weights))

    def carriers(self, model: nn.Module, key: Key) -> list[Carrier]:
        layer = str(key.public["layer"])
        weight = model.get_parameter(layer)
        mask = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
        mask[places(key).to(weight.device)] = True
        return [Carrier(layer, mask.view(weight.shape))]


def largest_weight(task: Workload) -> tuple[str, torch.Size]:
    """Return name and shape of the largest weight outside the output layer, which attackers replace."""
    network = task.network(seed=0)
    output = {id(p) for p in task.head(network).parameters()}
    inner = {name: p.shape for name, p in network.named_parameters() if p.dim() > 1 and id(p) not in output}
    return max(inner.items(), key=lambda found: math.prod(found[1]))


def places(key: Key) -> Tensor:
    """Return (T,) int64 positions in the flattened weight, drawn from the key's seed."""
    n_weights = math.prod(int(str(s)) for s in lists(key.public["shape"]))
    return torch.from_numpy(key.prf.permutation("places", n_weights)[: len(secret_bits(key))])


def secret_bits(key: Key) -> Tensor:
    """Return b (T,) uint8, drawn from the key's seed."""
    return torch.from_numpy(key.prf.bits("bits", int(str(key.public["bits"]))))


def marked_weights(model: nn.Module, key: Key) -> Tensor:
    """Return w (T,), differentiable."""
    weight = model.get_parameter(str(key.public["layer"])).flatten()
    return weight[places(key).to(weight.device)]
