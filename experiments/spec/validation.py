"""pydantic's findings in our words: expected, got, way out, with the line of each."""

import typing
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from wmarena.experiments.spec.problems import Path, Problem, dotted, unknown
from wmarena.experiments.spec.yaml_lines import YamlDocument

_EXPECTED = {
    "string_type": "text",
    "int_type": "an integer",
    "float_type": "a number",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping of fields",
    "model_type": "a mapping of fields",
    "model_attributes_type": "a mapping of fields",
    "greater_than": "a value above {gt:g}",
    "greater_than_equal": "a value of {ge:g} or more",
    "less_than": "a value below {lt:g}",
    "finite_number": "a finite number",
    "string_pattern_mismatch": "a name of letters, digits, spaces and ._- that starts with a letter or digit",
}


def problems_of(error: ValidationError, document: YamlDocument, model: type[BaseModel]) -> list[Problem]:
    """Every finding as a Problem, in the order of the document's lines."""
    found: list[Problem] = []
    for details in error.errors(include_url=False):
        path: Path = details["loc"]
        also = details.get("ctx", {}).get("also")
        text = message(details, model)
        if also is not None:
            text = text.replace(dotted(also), f"{dotted(also)} ({document.place(also)})", 1)
        found.append(Problem(text, path, document.place(path)))
    return sorted(found, key=lambda p: _line(p.place))


def message(details: ErrorDetails, model: type[BaseModel]) -> str:
    """One finding in words."""
    kind, ctx, got = details["type"], details.get("ctx", {}), details["input"]
    if kind == "missing":
        return "expected a value, got nothing"
    if kind == "extra_forbidden":
        return unknown(details["loc"][-1], _fields(model, details["loc"][:-1]))
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind].format(**ctx)}, got {got!r}"
    if kind == "value_error":
        return str(ctx["error"])
    return details["msg"]


def _fields(model: type[BaseModel], path: Path) -> Mapping[str, Any]:
    """Fields of the block at ``path``."""
    for part in path:
        annotation = model.model_fields[str(part)].annotation
        options = (annotation, *typing.get_args(annotation))
        model = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return model.model_fields


def _line(place: str) -> tuple[int, str]:
    words = place.split()
    return (int(words[1].rstrip(",")), "") if words[:1] == ["line"] else (0, place)
