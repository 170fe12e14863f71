"""Plugin classes by name: built-in tables and entry points of installed packages."""

import importlib
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from wmarena.attacks import ATTACKS
from wmarena.attacks.base import Attack
from wmarena.schemes import SCHEMES
from wmarena.schemes.base import Scheme
from wmarena.schemes.params import ConfigError, Configurable


class UnknownName(LookupError):
    """No plugin has that name; the message suggests the nearest name and lists all."""


_TABLES: dict[str, Mapping[str, str]] = {"scheme": SCHEMES, "attack": ATTACKS, "workload": {}}
_GROUPS = {"scheme": "wmarena.schemes", "attack": "wmarena.attacks", "workload": "wmarena.workloads"}


def use_workloads(table: Mapping[str, str]) -> None:
    """Register the built-in workloads in this process (their package is above this one)."""
    if _TABLES["workload"] != table:
        _TABLES["workload"] = dict(table)  # a copy: the caller may change its table
        names.cache_clear()


@cache
def names(kind: str) -> dict[str, str]:
    """Return name -> "module:Class" of every scheme, attack or workload, built-in or installed."""
    found = {e.name: e.value for e in entry_points(group=_GROUPS[kind])}
    return {**found, **_TABLES[kind]}


def plugin_class(kind: str, name: str) -> type[Configurable]:
    """Return the class of a plugin name.

    Raises:
        UnknownName: with the nearest known name.
    """
    table = names(kind)
    if name not in table:
        near = get_close_matches(str(name), table, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UnknownName(f"unknown {kind} {name!r}.{hint} Known: {', '.join(sorted(table))}.")
    module, _, attribute = table[name].partition(":")
    cls: type[Configurable] = getattr(importlib.import_module(module), attribute)
    return cls


def build(kind: str, config: Mapping[str, Any]) -> Configurable:
    """Build the plugin of ``config`` (with "name"); nested plugins are built first.

    Nested: ``scheme`` inside an attack, ``attacks`` inside a chain.

    Raises:
        UnknownName: no plugin has that name.
        ConfigError: the plugin does not accept these fields.
    """
    fields = _named(kind, config)
    if kind == "attack" and isinstance(fields.get("scheme"), Mapping):
        fields["scheme"] = build("scheme", fields["scheme"])
    if kind == "attack" and isinstance(fields.get("attacks"), list | tuple):
        fields["attacks"] = tuple(a if isinstance(a, Attack) else build("attack", a) for a in fields["attacks"])
    return plugin_class(kind, fields.pop("name")).from_config(fields)


def _named(kind: str, config: object) -> dict[str, Any]:
    """Return the fields of a configuration; checked, because it may come from an untrusted key file."""
    if not isinstance(config, Mapping) or not isinstance(config.get("name"), str):
        raise ConfigError([("name", f"expected a configuration with the name of a {kind}, got {config!r:.200}")])
    return dict(config)


def build_scheme(config: Mapping[str, Any]) -> Scheme:
    """Build a scheme from its configuration."""
    scheme = build("scheme", config)
    if not isinstance(scheme, Scheme):
        raise TypeError(f"expected a subclass of wmarena.schemes.base.Scheme, got {type(scheme).__qualname__}")
    return scheme


def build_attack(config: Mapping[str, Any]) -> Attack:
    """Build an attack from its configuration."""
    attack = build("attack", config)
    if not isinstance(attack, Attack):
        raise TypeError(f"expected a subclass of wmarena.attacks.base.Attack, got {type(attack).__qualname__}")
    return attack
