"""Short labels of the entries of one spec: a label holds only fields in which entries of one name differ."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from wmarena.attacks.base import Attack
from wmarena.orchestrator.plan.identity import canonical

PluginConfig = dict[str, Any]


def telling(names: Sequence[str], configs: Sequence[PluginConfig]) -> list[str]:
    """Label each entry by its name and ``[field=value,...]`` of the fields in which entries of that name differ."""
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
    """Return the fields with two or more values, in order of appearance.

    Fields of nested plugins count only among plugins of one name: others differ by ``scheme.name`` already.
    """
    return [f for f in dict.fromkeys(f for config in configs for f in config) if _differs(f, configs)]


def _differs(field: str, configs: Sequence[PluginConfig]) -> bool:
    values: dict[str, set[str]] = defaultdict(set)
    plugin = _plugin_of(field)
    for config in configs:
        values[canonical(config.get(plugin)) if plugin else ""].add(canonical(config.get(field)))
    return any(len(found) > 1 for found in values.values())


def _plugin_of(field: str) -> str | None:
    """Return the name field of the nested plugin that holds ``field``; None for a name or a top-level field."""
    prefix, _, last = field.rpartition(".")
    return f"{prefix}.name" if prefix and last != "name" else None


def short(value: Any) -> str:
    """Format a value for a label: a plugin by its name, lists joined by +."""
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
    """Return the field of the strength in ``flat(attack.config())``; for a chain, of the last part with one."""
    if attack.strength is None:
        return None
    own = attack.strength_field()
    if own is not None:
        return own
    parts = [p for p in attack.plugins() if isinstance(p, Attack)]
    last = max((i for i, part in enumerate(parts) if part.strength is not None), default=None)
    return None if last is None else f"attacks.{last}.{parts[last].strength_field()}"


def flat(config: Mapping[str, Any], prefix: str = "") -> PluginConfig:
    """Flatten nested mappings, and lists that hold some, to dotted fields: ``attacks.1.epochs``."""
    out: PluginConfig = {}
    for name, value in config.items():
        if isinstance(value, list) and any(isinstance(v, Mapping) for v in value):
            value = {str(i): v for i, v in enumerate(value)}
        out |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return out
