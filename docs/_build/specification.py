"""The reference of specs, from the JSON Schema that ``wmarena schema`` prints."""

from collections.abc import Mapping
from typing import Any

from docs._build.tables import table, value
from wmarena.experiments.spec.schema import json_schema

_HEAD = """# Spec reference

Generated from `wmarena schema`, which editors can use: put `# yaml-language-server: $schema=spec.schema.json` on the
first line of a spec. A list where a scalar is expected is a grid. An unknown field is an error that names the nearest
known field; all errors are reported at once, with line numbers. `--set PATH=VALUE` overrides any field.
"""

_ELSEWHERE = {
    "workloads": "entries: see the [catalogue](../catalogue/workloads.md)",
    "schemes": "entries: see the [catalogue](../catalogue/schemes.md)",
    "attacks": "entries: see the [catalogue](../catalogue/attacks.md)",
}

Schema = Mapping[str, Any]


def page(schema: Schema | None = None) -> str:
    """The whole reference."""
    schema = json_schema() if schema is None else schema
    definitions = schema["$defs"]
    parts = [_HEAD, "## Top level {#top}", _fields(schema, definitions)]
    for name, field in schema["properties"].items():
        inner = _resolved(field, definitions)
        if "properties" in inner and name not in _ELSEWHERE:
            parts += [f"## {name} {{#{name}}}", str(inner.get("description", "")), _fields(inner, definitions)]
    strength = _strength(definitions)
    parts += [
        "## strength {#strength}",
        "An attack's `strength`: " + str(strength["description"]) + ", instead of a list of values.",
        _fields(strength, definitions),
        "## Other forms of entries {#forms}",
        "- `chain: [attack, attack, …]`: " + _form(definitions["attack"], "chain")["description"] + ".",
        "- `first_available: [workload, workload, …]`: "
        + _form(definitions["workload"], "first_available")["properties"]["first_available"]["description"]
        + ".",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _fields(schema: Schema, definitions: Schema) -> str:
    required = set(schema.get("required", ()))
    rows = []
    for name, field in schema["properties"].items():
        inner = _resolved(field, definitions)
        default = "required" if name in required else value(inner["default"]) if "default" in inner else ""
        meaning = field.get("description") or inner.get("description") or ""
        links = [_ELSEWHERE[name]] if name in _ELSEWHERE else []
        links += [f"see [below](#{name})"] if "properties" in inner and name not in _ELSEWHERE else []
        rows.append([f"`{name}`", _allowed(inner), default, "; ".join(filter(None, [meaning, *links]))])
    return table(["Field", "Type", "Default", "Meaning"], rows)


def _resolved(field: Schema, definitions: Schema) -> Schema:
    """The definition that a field refers to; null and grids beside it are left aside."""
    if "$ref" in field:
        return {**definitions[field["$ref"].rpartition("/")[2]], **{k: v for k, v in field.items() if k != "$ref"}}
    return field


def _allowed(field: Schema) -> str:
    """Type and range in words."""
    if "anyOf" in field:
        # The second form of a grid repeats the first one's type.
        forms = [_allowed(form) for form in field["anyOf"]]
        return " or ".join(dict.fromkeys(f for f in forms if f != f"list of {forms[0]}"))
    if "enum" in field or "const" in field:
        return ", ".join(f"`{v}`" for v in field.get("enum", [field.get("const")]))
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    kind = str(field.get("type", "any"))
    if kind == "array":
        return f"list of {_allowed(field.get('items', {}))}"
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {field[name]:g}" for name, sign in bounds.items() if name in field]
    return f"{kind} {', '.join(limits)}".strip()


def _strength(definitions: Schema) -> Schema:
    for form in definitions["attack"]["anyOf"]:
        found: Schema | None = form.get("properties", {}).get("strength")
        if found is not None and "properties" in found:
            return found
    raise LookupError("expected an attack whose entry takes `strength`, got none in the schema")


def _form(entries: Schema, name: str) -> Schema:
    return next(form for form in entries["anyOf"] if name in form.get("properties", {}))
