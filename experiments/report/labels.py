"""Short names for what a plan resolved in full: a parameter is shown only where it tells two entries apart."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from wmarena.experiments.results.rows import (
    Params,
    attack_params,
    budget,
    flat,
    has_original_head,
    is_realigned,
    victim_of,
    workload_params,
)
from wmarena.experiments.spec.labels import differing
from wmarena.orchestrator.plan.identity import canonical

Groups = dict[tuple[str | None, ...], dict[str, Params]]
"""(plugin name, what its entries are compared within) -> configurations by their text."""


@dataclass(frozen=True)
class PluginLabel:
    """A plugin's name and what distinguishes this configuration of it from its siblings ('' if nothing does)."""

    name: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.detail}".strip()


@dataclass(frozen=True)
class Victim:
    """A configured scheme on a workload: one line of every table, which says so where its controls fired."""

    workload: str
    scheme: PluginLabel
    params: str
    ambiguous: bool = False

    def __str__(self) -> str:
        return f"{self.scheme} (ambiguous)" if self.ambiguous else str(self.scheme)


@dataclass(frozen=True)
class AttackLabel:
    """A configured attack without its strength: one line of the survival matrix.

    Attributes:
        original_head: True if the verdict was taken with the owner's output layer plugged back in.
        realigned: True if it was taken after the owner undid a rearrangement of the weights.
    """

    attack: PluginLabel
    strength_name: str | None
    original_head: bool
    realigned: bool = False

    @property
    def judged(self) -> str:
        """What the owner did before judging; '' if nothing."""
        done = [*(["owner's head"] if self.original_head else []), *(["after realign"] if self.realigned else [])]
        return ", ".join(done)

    @property
    def detail(self) -> str:
        """Everything behind the attack's name."""
        return ", ".join(part for part in (self.attack.detail, self.judged) if part)

    def __str__(self) -> str:
        return ", ".join(part for part in (str(self.attack), self.judged) if part)


class Labels:
    """Names for the rows of one table.

    A scheme's parameter is part of its name if one workload was marked with two values of it; an attack's, if one
    marked model was attacked with two values of it. What only follows from the victim (resolved defaults) is not.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        workloads: Groups = defaultdict(dict)
        schemes: Groups = defaultdict(dict)
        attacks: Groups = defaultdict(dict)
        for row in rows:
            if row["workload_params"] is not None:
                workloads[(row["workload"],)][row["workload_params"]] = workload_params(row)
            place = row["scheme"], row["workload"], row["workload_params"]
            schemes[place][row["scheme_params"]] = flat(json.loads(row["scheme_params"]))
            if row["control"] is None:
                params = _granted(row)
                attacks[(row["attack"], *victim_of(row))][canonical(params)] = params
        self._workloads, self._schemes, self._attacks = _telling(workloads), _telling(schemes), _telling(attacks)

    def workload(self, row: Mapping[str, Any]) -> str:
        """The row's workload."""
        detail = _detail(workload_params(row), self._workloads[row["workload"]])
        return str(PluginLabel(row["workload"], detail))

    def victim(self, row: Mapping[str, Any]) -> Victim:
        """The row's scheme on its workload."""
        detail = _detail(flat(json.loads(row["scheme_params"])), self._schemes[row["scheme"]])
        return Victim(
            self.workload(row), PluginLabel(row["scheme"], detail), row["scheme_params"], "ambiguous" in row["caveats"]
        )

    def assault(self, row: Mapping[str, Any]) -> AttackLabel:
        """The row's attack without its strength."""
        detail = _detail(_granted(row), self._attacks[row["attack"]])
        return AttackLabel(
            PluginLabel(row["attack"], detail), row["strength_name"], has_original_head(row), is_realigned(row)
        )


def _granted(row: Mapping[str, Any]) -> Params:
    """Attack and budget, flat, without the strength."""
    return attack_params(row) | {f"adversary.{key}": value for key, value in budget(row).items()}


def _telling(groups: Groups) -> dict[str | None, list[str]]:
    """Plugin name -> parameters that take two values within one group, in order of appearance."""
    shown: dict[str | None, dict[str, None]] = defaultdict(dict)
    for (name, *_), variants in groups.items():
        shown[name] |= dict.fromkeys(differing(list(variants.values())))
    return defaultdict(list, {name: list(keys) for name, keys in shown.items()})


def _detail(params: Params, shown: Iterable[str]) -> str:
    return ", ".join(_setting(key, params[key]) for key in shown if key in params)


def _setting(key: str, value: Any) -> str:
    """``ftal`` for a word, ``epochs=5`` for a number: words speak for themselves."""
    short = key.rsplit(".", 1)[-1]
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return short if value else f"not {short}"
    return f"{short}={value:g}" if isinstance(value, float) else f"{short}={canonical(value)}"
