"""Ambiguity: claim a model with a key that was never embedded in it.

    level 0   draw random keys, claim the best: measures the false-positive rate of the owner's test
    level 1   grind: the same with so many keys that the best one looks like evidence (p must be multiplied by G)
    level 2   optimise a key against the frozen model, if the scheme can (``Scheme.forge``)

The claim carries the number of keys that were tried. Level 2 succeeds against nearly every scheme whose keys are not
committed to before the model is published: that is a finding about the protocol, not about the statistics.

A drawn key is completed with the adversary's own data (``Scheme.with_holder_data``), without which a key of an image
scheme proves nothing. In schemes whose test needs a trained side network, the key has the untrained one of
``keygen``.
"""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import nn

from wmarena.attacks.base import Attack, AttackView, Claim, Family
from wmarena.attacks.knowledge import Knowledge
from wmarena.schemes.base import Scheme, Suspect, TaskInfo
from wmarena.schemes.keys import Key
from wmarena.schemes.params import ConfigError, Json, param
from wmarena.schemes.statistics import clopper_pearson

DEFAULT_KEYS = {0: 200, 1: 2000, 2: 1}
"""Keys tried at each level unless ``n_keys`` says otherwise."""


@dataclass(frozen=True, kw_only=True)
class Ambiguity(Attack):
    """Present a key that was drawn or optimised, not embedded."""

    name: ClassVar[str] = "ambiguity"
    family: ClassVar[Family] = "ambiguity"
    knows: ClassVar[frozenset[Knowledge]] = frozenset({"weights", "algorithm"})
    paper: ClassVar[str] = "Fan et al. 2019, Rethinking DNN Ownership Verification"

    level: int = param(0, doc="0: random keys, 1: grinding, 2: an optimised key", stage="attack", low=0, high=2)
    n_keys: int | None = param(None, doc="keys to try at levels 0 and 1; none = 200 and 2,000", stage="attack", low=1)

    @property
    def label(self) -> str:
        return f"{self.name}-l{self.level}"

    @property
    def makes(self) -> frozenset[Literal["model", "claim"]]:
        return frozenset({"claim"})

    def resolved(self, victim: Scheme) -> "Ambiguity":
        return dataclasses.replace(self, n_keys=self.n_tried)

    @property
    def n_tried(self) -> int:
        """Number of keys that are drawn."""
        return DEFAULT_KEYS[self.level] if self.n_keys is None or self.level == 2 else self.n_keys

    def applicable(self, victim: Scheme, info: TaskInfo) -> str | None:
        if self.level == 2 and type(victim).forge is Scheme.forge:
            return f"{victim.name} has no way to optimise a key (forge)"
        return None

    def run(self, model: nn.Module, view: AttackView) -> Claim:
        return self._forged(model, view) if self.level == 2 else self._drawn(model, view)

    def _forged(self, model: nn.Module, view: AttackView) -> Claim:
        key = view.scheme.keygen(view.task, view.prf.child("forge"))
        forged = view.scheme.forge(model, view.as_owner("forge"), key)
        if forged is None:
            raise ConfigError(
                [("level", f"expected a scheme that can forge, got {view.scheme.name}; use level 0 or 1")]
            )
        return Claim(forged)

    def _drawn(self, model: nn.Module, view: AttackView) -> Claim:
        """Draw ``n_tried`` keys, each a function of its number alone; claim the best."""
        suspect = Suspect(model, view.task)
        rows: list[_Row] = []
        found = view.checkpoints.latest(self.n_tried)
        if found is not None:
            rows = [(log10_p, statistic, bool(passed)) for log10_p, statistic, passed in found[1]["rows"].tolist()]
        for number in range(len(rows), self.n_tried):
            verdict = view.scheme.judge(suspect, _key(view, number))
            rows.append((verdict.log10_p, verdict.statistic, verdict.verdict))
            view.checkpoints.offer(len(rows), lambda: {"rows": torch.tensor(rows, dtype=torch.float64)})
        best = max(range(len(rows)), key=lambda number: (-rows[number][0], rows[number][1]))
        return Claim(_key(view, best), n_tried=len(rows), details=_summary(rows))


_Row = tuple[float, float, bool]
"""(log10 p, statistic, verdict) of one key."""


def _key(view: AttackView, number: int) -> Key:
    drawn = view.scheme.keygen(view.task, view.prf.child(f"ambiguity/{number}"))
    return view.scheme.with_holder_data(view.as_owner("ambiguity"), drawn)


def _summary(rows: list[_Row]) -> dict[str, Json]:
    """Summarise the statistics of all keys and how many pass, with a 95 % interval of that rate."""
    statistics = np.array([statistic for _, statistic, _ in rows])
    n_passing = sum(passed for _, _, passed in rows)
    low, high = clopper_pearson(n_passing, len(rows))
    return {
        "mean": float(statistics.mean()),
        "sd": float(statistics.std()),
        "max": float(statistics.max()),
        "n_passing": n_passing,
        "false_positive_low": low,
        "false_positive_high": high,
    }
