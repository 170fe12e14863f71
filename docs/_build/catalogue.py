"""The catalogue: every scheme, attack and workload with its docstring and its parameters."""

import importlib
import inspect
from typing import Any

from docs._build.tables import table, value
from wmarena.experiments.commands.catalogue import describe
from wmarena.experiments.workloads import WORKLOADS
from wmarena.orchestrator.plan.plugins import names, plugin_class, use_workloads

_INTRODUCTION = {
    "scheme": "A scheme is a watermark: `keygen` draws a key, `embed` marks a model, `verify` judges a suspect. A "
    "field acts at its stage, and is part of the identity of tasks from that stage on: changing a `verify` field does "
    "not embed again.",
    "attack": "An attack changes a marked model, or claims it. *Knows* is what the adversary must be granted. A search "
    "for the attacker's cost varies the field marked **strength**. Every attack also takes the fields of "
    "[adversary](../reference/spec.md#adversary).",
    "workload": "A workload is what is protected: data set, network, training recipe, metric. All fields act on "
    "training.",
}
_FACTS = {
    "access": "Access",
    "p_method": "P-value",
    "family": "Family",
    "knows": "Knows",
    "threat_model": "Threat model",
    "paper": "Source",
}


def page(kind: str) -> str:
    """The catalogue of one kind: an overview, then a section for each plugin."""
    use_workloads(WORKLOADS)
    found = [describe(name, plugin_class(kind, name)) for name in sorted(names(kind))]
    overview = table([kind.capitalize(), "Summary"], [[f"[`{p['name']}`](#{p['name']})", p["summary"]] for p in found])
    parts = [f"# {kind.capitalize()}s", _INTRODUCTION[kind], overview]
    told: dict[str, str] = {}
    for plugin in found:
        parts += _section(plugin, told)
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(plugin: dict[str, Any], told: dict[str, str]) -> list[str]:
    """One plugin; a module's docstring stands where its first plugin does (``told``: module -> that plugin)."""
    facts = [f"- **{title}:** {_said(plugin[fact])}" for fact, title in _FACTS.items() if fact in plugin]
    module = plugin["module"]
    if module in told:
        background = f"Idea and equations: see [`{told[module]}`](#{told[module]})."
    else:
        told[module] = plugin["name"]
        background = f"```text\n{inspect.getdoc(importlib.import_module(module)) or ''}\n```"
    return [
        f"## {plugin['name']} {{#{plugin['name']}}}",
        plugin["summary"],
        "\n".join(facts),
        table(["Field", "Default", "Allowed", "Stage", "Meaning"], [_row(p) for p in plugin["parameters"]]),
        background,
    ]


def _row(parameter: dict[str, Any]) -> list[str]:
    allowed = parameter["range"] or ", ".join(parameter["choices"] or ()) or parameter["type"]
    default = "required" if parameter["required"] else value(parameter["default"])
    strength = " **(strength)**" if parameter["strength"] else ""
    return [f"`{parameter['name']}`", default, allowed, parameter["stage"], parameter["doc"] + strength]


def _said(found: Any) -> str:
    return ", ".join(found) if isinstance(found, list) else str(found).replace("_", " ")
