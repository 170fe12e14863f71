"""Short names that tell the entries of one spec apart: a field is named only where siblings differ in it."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from wmarena.attacks.base import Attack
from wmarena.orchestrator.plan.identity import canonical

PluginConfig = dict[str, Any]


def telling(names: Sequence[str], configs: Sequence[PluginConfig]) -> list[str]:
    """For each entry its name, with ``[field=value,...]`` for fields in which entries of that name differ."""
    groups: dict[str, list[PluginConfig]] = defaultdict(list)
    for name, config in zip(names, configs, strict=True):
        groups[name].append(config)
    shown = {name: differing(group) for name, group in groups.items()}
    out: list[str] = []
    for name, config in zip(names, configs, strict=True):
        named = (f for f in shown[name] if f in config or _plugin_of(f) is None)
        detail = ",".join(f"{f}={short(config.get(f))}" for f in named)
        out.append(f"{name}[{detail}]" if detail else name)
    return out


def differing(configs: Sequence[PluginConfig]) -> list[str]:
    """Fields that take two values, in order of appearance; those of nested plugins, among plugins of one name.

    An adversary's ``scheme.lr`` tells nothing where ``scheme.name`` tells the two apart already.
    """
    return [f for f in dict.fromkeys(f for config in configs for f in config) if _differs(f, configs)]


def _differs(field: str, configs: Sequence[PluginConfig]) -> bool:
    values: dict[str, set[str]] = defaultdict(set)
    plugin = _plugin_of(field)
    for config in configs:
        values[canonical(config.get(plugin)) if plugin else ""].add(canonical(config.get(field)))
    return any(len(found) > 1 for found in values.values())


def _plugin_of(field: str) -> str | None:
    """The field that names the nested plugin which ``field`` belongs to; None for a name, or one that is not nested."""
    prefix, _, last = field.rpartition(".")
    return f"{prefix}.name" if prefix and last != "name" else None


def short(value: Any) -> str:
    """A value in a label: numbers as people write them, the name of a plugin, lists joined by +."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return str(value.get("name", canonical(value)))
    if isinstance(value, list):
        return "+".join(map(short, value)) or "none"
    return "none" if value is None else str(value)


def table_name(attack: Attack) -> str:
    """Return an attack's name in tables and measures: a chain is called by its parts."""
    return attack.label if attack.family == "chain" else attack.name


def strength_path(attack: Attack) -> str | None:
    """Where in ``flat(attack.config())`` the strength stands: a field, or that of a chain's last part that has one."""
    if attack.strength is None:
        return None
    own = attack.strength_field()
    if own is not None:
        return own
    parts = [p for p in attack.plugins() if isinstance(p, Attack)]
    last = max((i for i, part in enumerate(parts) if part.strength is not None), default=None)
    return None if last is None else f"attacks.{last}.{parts[last].strength_field()}"


def flat(config: PluginConfig, prefix: str = "") -> PluginConfig:
    """Nested plugins as dotted fields: ``attacks.1.epochs``."""
    out: PluginConfig = {}
    for name, value in config.items():
        inner = dict(enumerate(value)) if isinstance(value, list) else value
        if isinstance(inner, dict) and inner and all(isinstance(v, dict) for v in inner.values()):
            out |= flat({f"{name}.{i}": v for i, v in inner.items()}, prefix)
        elif isinstance(value, dict):
            out |= flat(value, f"{prefix}{name}.")
        else:
            out[prefix + name] = value
    return out
