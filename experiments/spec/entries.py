"""Expands one entry of a spec (``{name: mtlsign, lambda2: [0.0, 0.1]}``) to plugins.

A list in place of a scalar is a grid, and so is a list of lists in place of a list. All problems are collected, one
for each grid element, so that a user can correct the whole entry at once.
"""

import itertools
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, TypeGuard, TypeVar

from wmarena.attacks.base import Attack
from wmarena.attacks.knowledge import Budget
from wmarena.experiments.spec.problems import Path, Problem, dotted, unknown
from wmarena.orchestrator.plan.plugins import UnknownName, names, plugin_class
from wmarena.schemes.base import Scheme
from wmarena.schemes.params import ConfigError, Configurable, coerce

MAX_VARIANTS = 10_000
"""Configurations that one entry may expand to."""

EMPTY_GRID = "expected at least one value, got an empty grid; leave the field out for its default"

P = TypeVar("P", bound=Configurable)

_BASES: dict[str, type[Configurable]] = {"scheme": Scheme, "attack": Attack, "workload": Configurable}


@dataclass(frozen=True)
class Bisection:
    """A search for the strength at which the verdict flips (the attacker's cost).

    Attributes:
        field: the attack's field that is searched.
        low, high: its range, both ends included.
        steps: strengths tried between the ends, at most.
        whole: the field takes integers.
    """

    field: str
    low: float
    high: float
    steps: int = 6
    whole: bool = False

    def middle(self, low: float, high: float) -> float | None:
        """Return the next strength between two: their geometric mean over a decade or more; None if there is none."""
        logarithmic = low > 0 and high / low >= 10
        found = math.sqrt(low * high) if logarithmic else (low + high) / 2
        if self.whole:
            found = round(found)
        return found if low < found < high else None


@dataclass(frozen=True)
class AttackEntry:
    """An attack and its adversary's budget; ``search`` if its strength is an end of a bisection."""

    attack: Attack
    budget: Budget
    search: Bisection | None = None


@dataclass
class EntryReader:
    """Converts raw entries to plugins; collects ``problems`` and ``notes`` (choices made for the user)."""

    data_root: FilePath | None = None
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def variants(self, kind: str, raw: Any, path: Path) -> list[Configurable]:
        """Return all configurations of one scheme, attack or workload entry; [] after a problem."""
        if isinstance(raw, _BASES[kind]):
            return [raw]
        if kind == "workload" and isinstance(raw, Mapping) and "first_available" in raw:
            return self._first_available(raw, path)
        fields = self._fields(kind, raw, path)
        if fields is None:
            return []
        try:
            cls = plugin_class(kind, str(fields["name"]))
        except UnknownName as error:
            return self._wrong((*path, "name"), str(error))
        return self.configured(cls, {k: v for k, v in fields.items() if k != "name"}, path)

    def _first_available(self, raw: Mapping[str, Any], path: Path) -> list[Configurable]:
        """Return the first workload whose data set is on this machine; check every choice."""
        for other in [k for k in raw if k != "first_available"]:
            self._wrong((*path, other), f"expected nothing beside `first_available:`, got {other!r}")
        choices = raw["first_available"]
        if not isinstance(choices, list) or not choices:
            return self._wrong((*path, "first_available"), f"expected a list of workloads, got {choices!r}")
        found = [self.variants("workload", c, (*path, "first_available", i)) for i, c in enumerate(choices)]
        if not all(found):
            return []
        for i, workloads in enumerate(found):
            if all(_available(w, self.data_root) for w in workloads):
                missing = ", ".join(w[0].name for w in found[:i])
                why = f"no data for {missing} here" if missing else "the first choice"
                self.notes.append(f"workload {workloads[0].name}: {why}")
                return workloads
        tried = ", ".join(w[0].name for w in found)
        return self._wrong(path, f"expected the data of one of {tried}, got none; set WMARENA_DATA or --data-root")

    def attacks(self, raw: Any, path: Path, adversary: Mapping[str, Any]) -> list[AttackEntry]:
        """Return all attacks with budgets of one entry; ``adversary`` holds the spec's own defaults."""
        if isinstance(raw, AttackEntry):
            return [raw]
        granted: dict[str, Any] = {}
        places: dict[str, Path] = {}
        if isinstance(raw, Mapping):
            raw = dict(raw)
            nested = raw.pop("adversary", {})
            if not isinstance(nested, Mapping):
                self._wrong((*path, "adversary"), f"expected fields of the adversary, got {nested!r}")
                nested = {}
            inner = {str(k): (v, (*path, "adversary", str(k))) for k, v in nested.items()}
            own = self._own_fields(raw)
            outer = {k: (raw.pop(k), (*path, k)) for k in list(raw) if k in Budget.parameters() and k not in own}
            for name in sorted(inner.keys() & outer.keys()):
                self._wrong(inner[name][1], f"expected it once, got it also at {dotted(outer[name][1])}")
            for name, (value, place) in (inner | outer).items():
                granted[name], places[name] = value, place
        search = self._search(raw, path)
        if isinstance(raw, dict) and search is not None:
            raw = {k: v for k, v in raw.items() if k != "strength"} | {search.field: [search.low, search.high]}
        attacks = self.variants("attack", raw, path)
        budgets = self.configured(Budget, {**adversary, **granted}, (*path, "adversary"), places)
        return [AttackEntry(a, b, search) for a in attacks for b in budgets if isinstance(a, Attack)]

    def _search(self, raw: Any, path: Path) -> Bisection | None:
        """Read the bisection of ``strength: {bisect: FIELD, low: A, high: B}``; None if there is none."""
        wanted = raw.get("strength") if isinstance(raw, Mapping) else None
        if not isinstance(wanted, Mapping) or "bisect" not in wanted:
            return None
        place = (*path, "strength")
        for extra in sorted(set(wanted) - {"bisect", "low", "high", "steps"}):
            self._wrong((*place, extra), unknown(str(extra), ("bisect", "low", "high", "steps")))
        name, known = raw.get("name"), names("attack")
        if not isinstance(name, str) or name not in known:
            self._wrong(place, "expected a search on a named attack, got one on something else; name the attack")
            return None
        cls = plugin_class("attack", str(name))
        field = str(wanted["bisect"])
        numeric = [n for n, a in cls.annotations().items() if {int, float} & {a, *typing.get_args(a)}]
        if field not in numeric:
            options = ", ".join(numeric) or "nothing: it has no number"
            self._wrong((*place, "bisect"), f"expected a number of {cls.name}, got {field!r}; one of {options}")
            return None
        if field in raw:
            self._wrong((*path, field), f"expected `{field}` once, got it beside the search over it; leave it out")
        low, high, steps = wanted.get("low"), wanted.get("high"), wanted.get("steps", 6)
        if not is_number(low) or not is_number(high) or not low < high:
            self._wrong(place, f"expected numbers low < high, got low: {low!r}, high: {high!r}")
            return None
        if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= 30:
            self._wrong((*place, "steps"), f"expected 1 to 30 steps, got {steps!r}")
            return None
        annotation = cls.annotations()[field]
        whole = int in (annotation, *typing.get_args(annotation))
        return Bisection(field=field, low=low, high=high, steps=steps, whole=whole)

    def configured(
        self, cls: type[P], fields: Mapping[str, Any], path: Path, places: Mapping[str, Path] | None = None
    ) -> list[P]:
        """Build every ``cls`` in the product of its fields' grids. ``places``: fields with another path."""
        before = len(self.problems)
        known, annotations = cls.parameters(), cls.annotations()
        where = {name: (*path, name) for name in [*fields, *known]} | dict(places or {})
        if issubclass(cls, Attack) and "chain" in fields and "attacks" in known:
            fields = {**fields, "attacks": fields["chain"]}
            where["attacks"] = (*path, "chain")
        grids: dict[str, Sequence[Any]] = {}
        for name, value in fields.items():
            if name in known:
                grids[name] = self._grid(cls, name, annotations[name], value, where[name])
            elif name != "chain" or "attacks" not in known:
                self._unknown_field(cls, name, value, where[name])
        for name in known:
            if name not in fields and name not in cls.defaults():
                self._wrong(where[name], f"expected a value, got nothing; {known[name].doc}")
        if len(self.problems) > before or not self._affordable(grids, path):
            return []
        return list(self._built(cls, grids, path))

    def _built(self, cls: type[P], grids: Mapping[str, Sequence[Any]], path: Path) -> Iterator[P]:
        reported: set[tuple[str, str]] = set()  # one problem may concern many elements of the grid
        for values in itertools.product(*grids.values()):
            try:
                yield cls(**dict(zip(grids, values, strict=True)))
            except ConfigError as error:
                for name, text in error.problems:
                    if (name, text) not in reported:
                        self._wrong((*path, name), text)
                    reported.add((name, text))

    def _fields(self, kind: str, raw: Any, path: Path) -> Mapping[str, Any] | None:
        """Return the entry as a mapping with a name, or None."""
        known = ", ".join(sorted(names(kind)))
        if isinstance(raw, str):
            return {"name": raw}
        if not isinstance(raw, Mapping):
            self._wrong(path, f"expected {{name: ...}} or the name of {_article(kind)}, got {raw!r}. Known: {known}")
            return None
        if kind == "attack" and "chain" in raw and "name" not in raw:
            return {"name": "chain", **raw}
        name = raw.get("name")
        if not isinstance(name, str):
            shown = "nothing" if name is None else repr(name)
            near = [k for k in raw if k != "name"]
            hint = f"; fields here: {', '.join(map(str, near))}" if near else ""
            self._wrong(path, f"expected `name:` with the name of {_article(kind)}, got {shown}{hint}. Known: {known}")
            return None
        return raw

    def _grid(self, cls: type[Configurable], name: str, annotation: Any, value: Any, path: Path) -> Sequence[Any]:
        """Return the values of one field; [] after a problem."""
        kind, many = nested_kind(annotation)
        if kind is not None and value is not None and not isinstance(value, Configurable):
            return self._sequences(value, path) if many else self._nested(kind, value, path)
        if not isinstance(value, list) or list_depth(value) <= tuple_depth(annotation):
            return self._checked(cls, name, annotation, value, path)
        if not value:
            return self._wrong(path, EMPTY_GRID)
        found = []
        for i, item in enumerate(value):
            found += self._checked(cls, name, annotation, item, (*path, i))
        return found if len(found) == len(value) else []

    def _checked(self, cls: type[Configurable], name: str, annotation: Any, value: Any, path: Path) -> list[Any]:
        try:
            plain = coerce(annotation, value)
        except TypeError as error:
            return self._wrong(path, str(error))
        info = cls.parameters()[name]
        for item in plain if isinstance(plain, tuple) else (plain,):
            why = info.problem(item)
            if why is not None:
                return self._wrong(path, why)
        return [plain]

    def _nested(self, kind: str, value: Any, path: Path) -> list[Configurable]:
        """Return the plugins of a nested entry; a list is a grid of them."""
        if not isinstance(value, list):
            return self.variants(kind, value, path)
        if not value:
            return self._wrong(path, EMPTY_GRID)
        parts = [self.variants(kind, item, (*path, i)) for i, item in enumerate(value)]
        return [plugin for part in parts for plugin in part] if all(parts) else []

    def _sequences(self, value: Any, path: Path) -> list[tuple[Configurable, ...]]:
        """Return the chains of a list of attack entries: grids inside the elements multiply."""
        if not isinstance(value, list):
            return self._wrong(path, f"expected a list of attacks, got {value!r}")
        parts: list[list[Configurable]] = []
        for i, item in enumerate(value):
            granted = [k for k in item if k in ("adversary", *Budget.parameters())] if isinstance(item, Mapping) else []
            for name in granted:
                self._wrong((*path, i, name), "expected the adversary's fields beside `chain:`, got them inside it")
            parts.append([] if granted else self.variants("attack", item, (*path, i)))
        affordable = self._affordable({str(i): part for i, part in enumerate(parts)}, path)
        return list(itertools.product(*parts)) if affordable else []

    def _own_fields(self, raw: Mapping[str, Any]) -> set[str]:
        """Return the attack's own fields, which take precedence over the adversary's of the same name."""
        name = raw.get("name")
        known = isinstance(name, str) and name in names("attack")
        return set(plugin_class("attack", str(name)).parameters()) if known else set()

    def _unknown_field(self, cls: type[Configurable], name: str, value: Any, path: Path) -> None:
        granted = ("adversary", *Budget.parameters()) if issubclass(cls, Attack) else ()
        self._wrong(path, unknown(name, (*cls.parameters(), *granted)))

    def _affordable(self, grids: Mapping[str, Sequence[Any]], path: Path) -> bool:
        count = math.prod(len(g) for g in grids.values())
        if count > MAX_VARIANTS:
            self._wrong(path, f"expected at most {MAX_VARIANTS} configurations in one entry, got a grid of {count}")
        return count <= MAX_VARIANTS

    def _wrong(self, path: Path, message: str) -> list[Any]:
        self.problems.append(Problem(message, path))
        return []


def is_number(value: Any) -> TypeGuard[float]:
    """Return True for int and float, not for bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _article(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


def _available(workload: Configurable, data_root: FilePath | None) -> bool:
    """Ask the plugin whether its data are present; a plugin without ``available`` fails when it is bound."""
    available = getattr(workload, "available", None)
    return available is None or bool(available(data_root))


def nested_kind(annotation: Any) -> tuple[str | None, bool]:
    """Return ("scheme" | "attack", whether a field holds a list of them), or (None, False) without plugins."""
    for option in _options(annotation):
        many = typing.get_origin(option) is tuple
        inner = typing.get_args(option)[0] if many else option
        for kind in ("scheme", "attack"):
            if isinstance(inner, type) and issubclass(inner, _BASES[kind]):
                return kind, many
    return None, False


def tuple_depth(annotation: Any) -> int:
    """Count the levels of lists in one value of this type."""
    depths = [1 + tuple_depth(typing.get_args(o)[0]) for o in _options(annotation) if typing.get_origin(o) is tuple]
    return max(depths, default=0)


def list_depth(value: Any) -> int:
    """Count the levels of lists in ``value``; an empty list has one."""
    return 1 + max(map(list_depth, value), default=0) if isinstance(value, list) else 0


def _options(annotation: Any) -> tuple[Any, ...]:
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if union else (annotation,)
