"""Short names of workloads, schemes and attacks: a parameter is shown only if it distinguishes two entries."""

from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

from wmarena.experiments.results.calibration import Calibration
from wmarena.experiments.results.rows import Params, ResultRow
from wmarena.experiments.spec.labels import differing, flat
from wmarena.orchestrator.plan.identity import canonical

Groups = dict[tuple[str | None, ...], dict[Hashable, Params]]
"""(plugin name, scope of the comparison) -> distinct configurations."""


@dataclass(frozen=True)
class PluginLabel:
    """A plugin's name and the parameters that distinguish this configuration from others ('' if none do)."""

    name: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.detail}".strip()


@dataclass(frozen=True)
class Victim:
    """A configured scheme on a workload; ``ambiguous`` if its negative controls fired."""

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
        original_head: True if the suspect was judged with the owner's output layer.
        realigned: True if the owner undid a rearrangement of the weights before judging.
    """

    attack: PluginLabel
    strength_name: str | None
    original_head: bool
    realigned: bool = False

    @property
    def name(self) -> str:
        """Name of the attack plugin."""
        return self.attack.name

    @property
    def judged(self) -> str:
        """Changes that the owner made before judging; '' if none."""
        done = [*(["owner's head"] if self.original_head else []), *(["after realign"] if self.realigned else [])]
        return ", ".join(done)

    @property
    def detail(self) -> str:
        """Everything after the attack's name."""
        return ", ".join(part for part in (self.attack.detail, self.judged) if part)

    def __str__(self) -> str:
        return ", ".join(part for part in (str(self.attack), self.judged) if part)


class Labels:
    """Names for the rows of one table.

    A scheme's parameter is part of its name if it has two values on one workload; an attack's parameter, if it has two
    values on one marked model. Defaults that are resolved from the victim are not.
    """

    def __init__(self, rows: Iterable[ResultRow]) -> None:
        workloads: Groups = defaultdict(dict)
        schemes: Groups = defaultdict(dict)
        attacks: Groups = defaultdict(dict)
        for row in rows:
            place = row.scheme, row.workload, row.workload_params
            if row.workload_params is not None and row.workload_params not in workloads[(row.workload,)]:
                workloads[(row.workload,)][row.workload_params] = flat(row.workload_config)
            if row.scheme_params not in schemes[place]:
                schemes[place][row.scheme_params] = flat(row.scheme_config)
            if row.control is None and row.setting not in attacks[(row.attack, *row.victim)]:
                attacks[(row.attack, *row.victim)][row.setting] = _granted(row)
        self._workloads, self._schemes, self._attacks = map(_distinguishing, (workloads, schemes, attacks))
        self._victims: dict[tuple[tuple[str | None, ...], bool], Victim] = {}

    def workload(self, row: ResultRow | Calibration) -> str:
        """Name the row's workload."""
        return str(PluginLabel(row.workload, _detail(flat(row.workload_config), self._workloads[row.workload])))

    def victim(self, row: ResultRow | Calibration) -> Victim:
        """Name the row's scheme on its workload."""
        key = row.victim, isinstance(row, ResultRow) and "ambiguous" in row.caveats
        if key not in self._victims:
            detail = _detail(flat(row.scheme_config), self._schemes[row.scheme])
            scheme = PluginLabel(row.scheme, detail)
            self._victims[key] = Victim(self.workload(row), scheme, row.scheme_params, ambiguous=key[1])
        return self._victims[key]

    def attack_label(self, row: ResultRow) -> AttackLabel:
        """Name the row's attack without its strength."""
        label = PluginLabel(row.attack, _detail(_granted(row), self._attacks[row.attack]))
        return AttackLabel(label, row.strength_name, row.has_original_head, row.is_realigned)


def _granted(row: ResultRow) -> Params:
    """Flatten attack and budget, without the strength."""
    return row.variant | {f"adversary.{key}": value for key, value in row.granted.items()}


def _distinguishing(groups: Groups) -> dict[str | None, list[str]]:
    """Map each plugin name to the parameters with two values in one group, in order of appearance."""
    shown: dict[str | None, dict[str, None]] = defaultdict(dict)
    for (name, *_), variants in groups.items():
        shown[name] |= dict.fromkeys(differing(list(variants.values())))
    return defaultdict(list, {name: list(keys) for name, keys in shown.items()})


def _detail(params: Params, shown: Iterable[str]) -> str:
    return ", ".join(_setting(key, params[key]) for key in shown if key in params)


def _setting(key: str, value: Any) -> str:
    """Format ``ftal`` for a string, ``epochs=5`` for a number."""
    short = key.rsplit(".", 1)[-1]
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return short if value else f"not {short}"
    return f"{short}={value:g}" if isinstance(value, float) else f"{short}={canonical(value)}"
