"""Reads YAML as plain values, with the line of each.

Only the core schema of YAML 1.2 is read: null, true/false, numbers (``1e-4`` is one), text, lists, mappings. Tags
(``!!python/...`` and all others), merge keys, repeated keys and documents that expand beyond ``MAX_VALUES`` are
refused, with line and column; nothing in a document can name code.
"""

import pathlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import yaml

from wmarena.experiments.spec.problems import Path, Problem, SpecError

MAX_CHARACTERS = 1_000_000
MAX_VALUES = 100_000
"""Values that a document may hold once its aliases are expanded."""
MAX_DEPTH = 50

_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?[0-9]{1,300}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class _Loader(yaml.SafeLoader):
    """Resolves plain scalars by YAML 1.2's core schema (YAML 1.1 reads 1e-4 as text and ``no`` as false)."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


_NUMERIC = list("-+.0123456789")
_Loader.add_implicit_resolver(_TAG + "null", re.compile(r"(~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(_TAG + "bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(_TAG + "int", re.compile(rf"({_INT.pattern})$"), _NUMERIC)
_Loader.add_implicit_resolver(_TAG + "float", re.compile(rf"({_FLOAT.pattern})$"), _NUMERIC)


def _number(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_SCALARS: dict[str, Callable[[str], Any]] = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": int,
    "float": _number,
    "str": str,
}


@dataclass
class YamlDocument:
    """A value and the lines of its parts.

    Attributes:
        value: dicts, lists, text, numbers, booleans, None.
        places: path -> "line 12"; a part without an entry has its nearest ancestor's line.
    """

    value: Any
    places: dict[Path, str] = field(default_factory=dict)

    def place(self, path: Path) -> str:
        """Return the line of ``path`` or of its nearest ancestor; "" if unknown."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        return ""


def text_of(path: pathlib.Path) -> str:
    """Read the text of a spec's or study's file. Raises SpecError."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError([Problem(f"expected a readable UTF-8 file, got: {error}")], str(path)) from None


def read(text: str) -> YamlDocument:
    """Read one YAML document.

    Raises:
        SpecError: not YAML, or a refused feature; with line and column.
    """
    if len(text) > MAX_CHARACTERS:
        raise SpecError.of(f"expected at most {MAX_CHARACTERS} characters of YAML, got {len(text)}")
    try:
        _check_depth(text)
        node = _Loader(text).get_single_node()
    except yaml.MarkedYAMLError as error:
        raise SpecError([_syntax(error)]) from None
    except yaml.YAMLError as error:
        raise SpecError.of(f"expected YAML, got text that cannot be read: {error}") from None
    reader = _Reader()
    value = None if node is None else reader.value(node, ())
    if reader.problems:
        raise SpecError(reader.problems)
    return YamlDocument(value, reader.places)


def _check_depth(text: str) -> None:
    """Refuse deep nesting, on which the recursive composer would overflow the stack."""
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                where = _position(event.start_mark)
                raise SpecError([Problem(f"expected at most {MAX_DEPTH} levels of nesting", place=where)])
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _syntax(error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    context = f" {error.context}" if error.context else ""
    return Problem(
        f"expected YAML, got: {error.problem}{context}; check the indentation, quotes and brackets there",
        place=_position(mark),
    )


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Mark(Protocol):
    line: int
    column: int


def _position(mark: _Mark | None) -> str:
    return "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}"


class _Reader:
    """Builds values from composed nodes; collects problems instead of stopping at the first."""

    def __init__(self) -> None:
        self.places: dict[Path, str] = {}
        self.problems: list[Problem] = []
        self._open: set[int] = set()
        self._count = 0
        self._characters = 0

    def value(self, node: yaml.Node, path: Path) -> Any:
        self.places.setdefault(path, f"line {node.start_mark.line + 1}")
        self._count += 1
        if self._count > MAX_VALUES:
            if self._count == MAX_VALUES + 1:
                self._refuse(node, path, f"expected at most {MAX_VALUES} values, got more once aliases are expanded")
            return None
        if id(node) in self._open:
            return self._refuse(node, path, "expected a tree, got an alias to something that contains it")
        self._open.add(id(node))
        try:
            return self._plain(node, path)
        finally:
            self._open.discard(id(node))

    def _plain(self, node: yaml.Node, path: Path) -> Any:
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.value(item, (*path, i)) for i, item in enumerate(node.value)]
        kind = node.tag.removeprefix(_TAG)
        if isinstance(node, yaml.ScalarNode) and kind in _SCALARS:
            if not self._acceptable(node, path):
                return None
            try:
                return _SCALARS[kind](node.value)
            except ValueError:
                return self._refuse(node, path, f"expected {kind}, got {node.value!r}")
        shown = node.tag.replace(_TAG, "!!")
        return self._refuse(node, path, f"expected plain YAML, got the tag {shown!r}; write the value without a tag")

    def _acceptable(self, node: yaml.ScalarNode, path: Path) -> bool:
        """Refuse text that is not Unicode, and long text multiplied by aliases, which messages would repeat."""
        self._characters += len(node.value)
        if self._characters > MAX_CHARACTERS:
            if self._characters - len(node.value) <= MAX_CHARACTERS:
                message = f"expected at most {MAX_CHARACTERS} characters, got more once aliases are expanded"
                self._refuse(node, path, message)
            return False
        if not _encodable(node.value):
            self._refuse(node, path, f"expected Unicode text, got half of a surrogate pair: {node.value!a:.80}")
            return False
        return True

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is None or key_node.tag not in (_TAG + "str", _TAG + "int", _TAG + "bool", _TAG + "null"):
                self._refuse(key_node, path, f"expected a word before the colon, got {key_node.tag.split(':')[-1]}")
                continue
            if not self._acceptable(key_node, path):
                continue
            inner = (*path, key)
            if key == "<<" and key_node.style is None:
                self._refuse(key_node, inner, "expected no merge key; write the fields out")
            elif key in out:
                self._refuse(key_node, inner, f"expected each key once, got it again (first at {self.places[inner]})")
            else:
                self.places[inner] = f"line {key_node.start_mark.line + 1}"
                out[key] = self.value(value_node, inner)
        return out

    def _refuse(self, node: yaml.Node, path: Path, message: str) -> None:
        self.problems.append(Problem(message, path, _position(node.start_mark)))
