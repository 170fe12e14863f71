"""Applies ``--set path=value`` to a document: profiles first, then single values, in the order given.

A path is dotted; it selects a list element by index (``attacks[2].epochs``), or every entry of a name
(``schemes.mtlsign.lambda1``), also inside ``first_available``.
"""

import copy
import re
from collections.abc import Iterable, Iterator
from typing import Any

from wmarena.experiments.spec.problems import Path, Problem, SpecError, dotted, unknown
from wmarena.experiments.spec.yaml_lines import MAX_DEPTH, YamlDocument, read

_PART = re.compile(r"(?:^|\.)([^.\[\]=]+)|\[([0-9]{1,9})\]")


def apply(document: YamlDocument, overrides: Iterable[str]) -> YamlDocument:
    """Copy ``document`` and apply ``path=value`` texts to it; ``profile=NAME`` applies a profile.

    Raises:
        SpecError: every invalid override.
    """
    out = YamlDocument(copy.deepcopy(document.value), dict(document.places))
    problems: list[Problem] = []
    pairs: list[tuple[str, Any, str]] = []
    for text in overrides:
        try:
            pairs.append((*_split(text), f"--set {text}"))
        except SpecError as error:
            problems += error.problems
    for name, place in [(str(value), place) for path, value, place in pairs if path == "profile"]:
        problems += _apply_profile(out, name, place)
    for path, value, place in pairs:
        if path != "profile":
            problems += assign(out, path, value, place)
    if problems:
        raise SpecError(problems)
    return out


def _split(text: str) -> tuple[str, Any]:
    path, equals, raw = text.partition("=")
    if not equals or not path:
        raise SpecError([Problem("expected path=value, for example --set seeds=[0]", place=f"--set {text}")])
    try:
        return path, read(raw).value
    except SpecError as error:
        raise SpecError([Problem(f"expected a value in YAML, got {raw!r}", place=f"--set {text}")]) from error


def _apply_profile(document: YamlDocument, name: str, place: str) -> list[Problem]:
    profiles = document.value.get("profiles") if isinstance(document.value, dict) else None
    profiles = profiles if isinstance(profiles, dict) else {}
    if name not in profiles:
        return [Problem(unknown(name, profiles, "profile"), place=place)]
    values = profiles[name]
    if not isinstance(values, dict):
        return [Problem("expected {path: value}", ("profiles", name), document.place(("profiles", name)))]
    problems: list[Problem] = []
    for path, value in values.items():
        problems += assign(document, str(path), value, document.place(("profiles", name, path)))
    return problems


def assign(document: YamlDocument, text: str, value: Any, place: str) -> list[Problem]:
    """Set ``value`` in place at every location that the path ``text`` selects; return the problems."""
    parts = _parts(text)
    if not parts:
        return [Problem(f"expected a dotted path such as schemes.mtlsign.lambda1, got {text!r}", place=place)]
    if not isinstance(document.value, dict):
        return [Problem("expected a mapping of fields at the top of the spec", place=place)]
    try:
        found = list(_targets(document.value, (), parts))
    except LookupError as error:
        return [Problem(str(error), place=place)]
    for container, key, path in found:
        container[key] = copy.deepcopy(value)
        # The new value has no lines of its own: problems in it must name the override, not replaced lines.
        document.places = {p: where for p, where in document.places.items() if p[: len(path)] != path}
        document.places[path] = place
    return []


def _parts(text: str) -> Path:
    parts: list[str | int] = []
    end = 0
    for match in _PART.finditer(text):
        if match.start() != end:
            return ()
        parts.append(match[1] if match[2] is None else int(match[2]))
        end = match.end()
        if len(parts) > MAX_DEPTH:
            return ()
    return tuple(parts) if end == len(text) else ()


def _targets(node: Any, path: Path, parts: Path) -> Iterator[tuple[Any, Any, Path]]:
    """Yield (container, key, path) of every location that the rest of a path selects.

    Raises:
        LookupError: it selects none.
    """
    part, rest = parts[0], parts[1:]
    if isinstance(node, list) and isinstance(part, str):
        chosen = list(_entries(node, path, part))
        if not chosen:
            raise LookupError(unknown(part, _entry_names(node), "entry"))
        for container, key, inner in chosen:
            yield from _descend(container, key, inner, rest)
        return
    if isinstance(node, list) and isinstance(part, int) and part >= len(node):
        raise LookupError(f"expected an index below {len(node)}, got {part}")
    if not isinstance(node, list | dict) or (isinstance(node, dict) and isinstance(part, int)):
        raise LookupError(
            f"expected fields or entries at {dotted(path) or 'the top'}, got {node!r}, which has no {part!r}"
        )
    yield from _descend(node, part, (*path, part), rest)


def _descend(container: Any, key: Any, path: Path, rest: Path) -> Iterator[tuple[Any, Any, Path]]:
    if not rest:
        yield container, key, path
        return
    if isinstance(container, list) and isinstance(container[key], str):
        container[key] = {"name": container[key]}  # an entry given by name alone gets its first field
    if isinstance(container, dict) and container.get(key) is None:
        container[key] = {}
    yield from _targets(container[key], path, rest)


def _entries(node: list[Any], path: Path, name: str) -> Iterator[tuple[list[Any], int, Path]]:
    for i, entry in enumerate(node):
        if _name(entry) == name:
            yield node, i, (*path, i)
        elif isinstance(entry, dict) and isinstance(entry.get("first_available"), list):
            yield from _entries(entry["first_available"], (*path, i, "first_available"), name)


def _entry_names(node: list[Any]) -> set[str]:
    return {str(_name(e)) for e in node if _name(e) is not None}


def _name(entry: Any) -> Any:
    return entry.get("name") if isinstance(entry, dict) else entry if isinstance(entry, str) else None
