"""``wmarena list`` and ``wmarena schema``: the installed plugins, and the format of specs."""

import re
import typing
from argparse import Namespace
from typing import Any

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from wmarena.experiments.commands.terminal import Terminal
from wmarena.experiments.spec.schema import json_schema
from wmarena.experiments.workloads import WORKLOADS
from wmarena.orchestrator.plan.plugins import names, plugin_class, use_workloads
from wmarena.schemes.params import Configurable

_FACTS = ("access", "p_method", "family", "knows", "threat_model", "paper")
"""Class attributes to show if a plugin has them."""


def list_plugins(terminal: Terminal, args: Namespace) -> int:
    """List every scheme, attack or workload with its parameters."""
    use_workloads(WORKLOADS)
    kind = str(args.what).removesuffix("s")
    found = [describe(name, plugin_class(kind, name)) for name in sorted(names(kind))]
    if terminal.json:
        terminal.document(found)
        return 0
    for plugin in found:
        _show(terminal, plugin)
    return 0


def describe(name: str, cls: type[Configurable]) -> dict[str, Any]:
    """Describe a plugin as JSON values."""
    defaults, annotations = cls.defaults(), cls.annotations()
    facts = {fact: _plain(getattr(cls, fact)) for fact in _FACTS if getattr(cls, fact, None)}
    parameters = [
        {
            "name": field,
            "type": _named(annotations[field]),
            "required": field not in defaults,
            "default": _plain(defaults.get(field)),
            "range": info.interval() or None,
            "choices": list(info.choices) if info.choices else None,
            "stage": info.stage,
            "strength": info.strength,
            "doc": info.doc,
        }
        for field, info in cls.parameters().items()
    ]
    return {"name": name, "summary": cls.summary(), **facts, "module": cls.__module__, "parameters": parameters}


def _named(annotation: Any) -> str:
    """Format a type without modules: ``float``, ``int | None``, ``Scheme | None``."""
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__name__
    return re.sub(r"\b[a-z_]+\.(?=[\w.])", "", str(annotation))


def _plain(value: Any) -> Any:
    if isinstance(value, frozenset | set):
        return sorted(value)
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _show(terminal: Terminal, plugin: dict[str, Any]) -> None:
    terminal.out.print(Text.assemble((plugin["name"], "bold"), "  ", plugin["summary"]))
    for fact in (f"{f.replace('_', ' ')}: {_text(plugin[f])}" for f in _FACTS if f in plugin):
        terminal.out.print(Padding(Text(fact, "dim"), (0, 0, 0, 2)))
    table = Table.grid(padding=(0, 2))
    for parameter in plugin["parameters"]:
        default = "required" if parameter["required"] else _text(parameter["default"])
        allowed = parameter["range"] or _text(parameter["choices"] or parameter["type"])
        strength = " (strength)" if parameter["strength"] else ""
        table.add_row(parameter["name"], default, Text(allowed, "dim"), Text(parameter["doc"] + strength))
    terminal.out.print(Padding(table, (0, 0, 1, 2)))


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def schema(terminal: Terminal, args: Namespace) -> int:
    """Print the JSON Schema of specs."""
    terminal.document(json_schema())
    return 0
