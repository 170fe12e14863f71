"""The format of specs as JSON Schema (draft 2020-12), for editors: all plugins, fields, ranges and meanings."""

import inspect
import re
import types
import typing
from typing import Any, Literal

from pydantic import BaseModel

from wmarena.attacks.base import Attack
from wmarena.attacks.knowledge import Budget
from wmarena.experiments.spec.entries import nested_kind
from wmarena.experiments.spec.experiment import CalibrationSpec, ExecutorSpec, ExperimentSpec
from wmarena.orchestrator.plan.plugins import names, plugin_class
from wmarena.schemes.params import Configurable, Param

Schema = dict[str, Any]

_TYPES: dict[Any, Schema] = {
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
    Any: {},
}

_BISECTION: Schema = {
    "type": "object",
    "properties": {
        "bisect": {"type": "string", "description": "field that is searched"},
        "low": {"type": "number"},
        "high": {"type": "number"},
        "steps": {"type": "integer", "minimum": 1, "maximum": 30, "default": 6},
    },
    "required": ["bisect", "low", "high"],
    "additionalProperties": False,
    "description": "search for the strength at which the verdict flips",
}


def json_schema() -> Schema:
    """Build the schema of the whole format, with the installed plugins."""
    top = {
        "name": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9 ._-]{0,99}$", "description": "MLflow experiment"},
        "description": {"type": "string", "description": "the question, one line: above reports and in MLflow"},
        "workloads": _listed(_ref("workload"), "what the watermark protects"),
        "schemes": _listed(_ref("scheme"), "what is defended"),
        "attacks": _listed(_ref("attack"), "`none`, the marked model itself, is always included"),
        "adversary": {**_ref("adversary"), "description": "what every adversary is granted; attacks may override it"},
        "seeds": {
            "type": "array",
            "items": {"type": "integer", "minimum": 0},
            "minItems": 1,
            "uniqueItems": True,
            "description": "everything is computed once for each",
        },
        "only": {
            "type": "object",
            "additionalProperties": {"type": "array", "items": {"type": "string"}, "minItems": 1},
            "description": "pairs that are planned: {dsn: [mnist_dsn]} keeps a scheme to one workload",
        },
        "calibration": _model(CalibrationSpec),
        "executor": _ref("executor"),
        "keys": {
            "type": "object",
            "properties": {
                "root": {"type": "string", "description": "file of at least 32 secret bytes"},
                "passphrase": {"type": "string", "description": "file of the passphrase that keys are sealed with"},
            },
            "minProperties": 1,
            "additionalProperties": False,
            "description": "where key material comes from; without it, from a published constant",
        },
        "profiles": {
            "type": "object",
            "additionalProperties": {"type": "object"},
            "description": "name -> {path: value}; chosen by --set profile=NAME",
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "WMArena experiment",
        **_object(top, required=[n for n, f in ExperimentSpec.model_fields.items() if f.is_required()]),
        "$defs": _definitions(),
    }


def _definitions() -> Schema:
    out: Schema = {"adversary": _object(_fields(Budget)), "executor": _executor()}
    for kind in ("workload", "scheme", "attack"):
        forms = [_entry(kind, plugin_class(kind, name)) for name in sorted(names(kind))]
        out[kind] = {"anyOf": [{"type": "string", "enum": sorted(names(kind))}, *forms, *_special_forms(kind)]}
    return out


def _executor() -> Schema:
    schema = _model(ExecutorSpec)
    auto: Schema = {"const": "auto"}
    schema["properties"]["workers"] |= {"anyOf": [auto, {"type": "integer", "minimum": 1}], "default": "auto"}
    schema["properties"]["gpus_per_worker"] |= {"anyOf": [auto, {"type": "number", "minimum": 0}], "default": "auto"}
    return schema


def _model(block: type[BaseModel]) -> Schema:
    """Build a block's schema; the attributes in its docstring describe its fields."""
    schema: Schema = block.model_json_schema()
    summary, _, attributes = inspect.cleandoc(block.__doc__ or "").partition("\n\nAttributes:\n")
    docs = dict(re.findall(r"^ {4}(\w+): (.+(?:\n {8,}.+)*)", attributes, flags=re.MULTILINE))
    for name, field in schema["properties"].items():
        if name in docs:
            field["description"] = " ".join(docs[name].split())
    return {**schema, "description": summary}


def _entry(kind: str, cls: type[Configurable]) -> Schema:
    fields = {"name": {"const": cls.name}, **_fields(cls)}
    if issubclass(cls, Attack):
        fields = {**_granted(), "strength": _BISECTION, **fields}
    required = ["name", *(n for n in cls.parameters() if n not in cls.defaults())]
    return {**_object(fields, required), "title": f"{kind} {cls.name}", "description": cls.summary()}


def _special_forms(kind: str) -> list[Schema]:
    """Build the schemas of entries without a plugin's name."""
    if kind == "attack":
        chain = {"chain": {"type": "array", "items": _ref("attack"), "minItems": 2}, **_granted()}
        return [{**_object(chain, ["chain"]), "description": "attacks one after the other"}]
    if kind == "workload":
        choices = {"first_available": _listed(_ref("workload"), "the first one whose data set is on this machine")}
        return [_object(choices, ["first_available"])]
    return []


def _granted() -> Schema:
    return {"adversary": _ref("adversary"), **_fields(Budget)}


def _fields(cls: type[Configurable]) -> Schema:
    annotations, defaults = cls.annotations(), cls.defaults()
    out: Schema = {}
    for name, info in cls.parameters().items():
        one = _value(annotations[name], info)
        _, many = nested_kind(annotations[name])
        grid = one if many else {"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]}
        out[name] = {**grid, "description": f"{info.doc} {info.interval()}".strip()}
        if defaults.get(name) is None or isinstance(defaults[name], bool | int | float | str):
            out[name] |= {"default": defaults[name]} if name in defaults else {}
    return out


def _value(annotation: Any, info: Param) -> Schema:
    """Build the schema of one value of a field, without grids."""
    kind, many = nested_kind(annotation)
    if kind is not None:
        one = _ref(kind)
        return {"type": "array", "items": one} if many else {"anyOf": [one, {"type": "null"}]}
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_value(a, info) for a in arguments]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is tuple:
        return {"type": "array", "items": _value(arguments[0], info)}
    schema = dict(_TYPES[annotation])
    if info.choices is not None and annotation is str:
        schema["enum"] = list(info.choices)
    if annotation in (int, float):
        if info.low is not None:
            schema["exclusiveMinimum" if info.low_open else "minimum"] = info.low
        if info.high is not None:
            schema["exclusiveMaximum" if info.high_open else "maximum"] = info.high
    return schema


def _object(properties: Schema, required: list[str] | None = None) -> Schema:
    schema: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**schema, "required": required} if required else schema


def _listed(items: Schema, description: str) -> Schema:
    return {"type": "array", "items": items, "minItems": 1, "description": description}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}
