"""Typed configuration shared by workloads, schemes and attacks.

A plugin is a frozen dataclass; its fields *are* its configuration: they are validated here, shown by
``wmarena list``, and written into task identities, MLflow parameters and search spaces.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field
from typing import Any, ClassVar, Literal, Self

Stage = Literal["train", "key", "embed", "attack", "verify"]
"""When a field acts. A task's identity holds the fields of its own stage and of those before it."""

STAGE_ORDER: tuple[Stage, ...] = ("train", "key", "embed", "attack", "verify")

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


class ConfigError(ValueError):
    """One or more fields are wrong; ``problems`` holds (field, message) pairs for all of them."""

    def __init__(self, problems: Iterable[tuple[str, str]]) -> None:
        self.problems = list(problems)
        super().__init__("; ".join(f"{name}: {text}" for name, text in self.problems))


@dataclass(frozen=True)
class Param:
    """The range, stage and meaning of one field."""

    doc: str
    stage: Stage
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] | None = None
    low_open: bool = False
    high_open: bool = False
    strength: bool = False

    def interval(self) -> str:
        """Return the range in mathematical notation, '' if there is none."""
        if self.low is None and self.high is None:
            return ""
        left = "(" if self.low_open or self.low is None else "["
        right = ")" if self.high_open or self.high is None else "]"
        low = "-inf" if self.low is None else f"{self.low:g}"
        high = "inf" if self.high is None else f"{self.high:g}"
        return f"{left}{low}, {high}{right}"

    def problem(self, value: object) -> str | None:
        """Return why ``value`` is outside the range, or None."""
        if self.choices is not None and value is not None and value not in self.choices:
            return f"expected one of {', '.join(self.choices)}, got {value!r}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        if isinstance(value, float) and not math.isfinite(value):
            return f"expected a finite number, got {value!r}"
        low_bad = self.low is not None and (value <= self.low if self.low_open else value < self.low)
        high_bad = self.high is not None and (value >= self.high if self.high_open else value > self.high)
        if low_bad or high_bad:
            return f"expected a value in {self.interval()}, got {value!r}"
        return None


def param(
    default: Any = MISSING,
    *,
    doc: str,
    stage: Stage,
    low: float | None = None,
    high: float | None = None,
    choices: Iterable[str] | None = None,
    low_open: bool = False,
    high_open: bool = False,
    strength: bool = False,
) -> Any:
    """Declare a dataclass field with range, stage and meaning.

    Args:
        default: the default; without one the field is required.
        doc: one line: meaning and unit.
        stage: when the field acts (``Stage``).
        low, high: closed bounds (open with ``low_open``/``high_open``), for numbers.
        choices: the allowed words of a string; a ``Literal`` field has its own.
        strength: True for the one field that is an attack's monotone strength.
    """
    words = None if choices is None else tuple(choices)
    info = Param(doc, stage, low, high, words, low_open, high_open, strength)
    if default is MISSING:
        return field(metadata={"param": info})
    return field(default=default, metadata={"param": info})


def coerce(annotation: Any, value: object) -> Any:
    """Coerce ``value`` to ``annotation``: int becomes float, list becomes tuple; nothing else.

    Raises TypeError: expected / got, when the value is of another type.
    """
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return _coerce_union(typing.get_args(annotation), annotation, value)
    if origin is Literal:
        if value in typing.get_args(annotation):
            return value
        raise TypeError(f"expected one of {', '.join(map(str, typing.get_args(annotation)))}, got {value!r}")
    if origin is tuple:
        item = typing.get_args(annotation)[0]
        if isinstance(value, list | tuple):
            return tuple(coerce(item, v) for v in value)
        raise TypeError(f"expected a list, got {_shown(value)}")
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise TypeError("expected a number below 2**1024, got a longer integer") from None
    if annotation is Any:
        return value
    wrong_bool = isinstance(value, bool) and annotation is not bool
    if isinstance(annotation, type) and isinstance(value, annotation) and not wrong_bool:
        return value
    raise TypeError(f"expected {_type_name(annotation)}, got {_shown(value)}")


def _coerce_union(options: tuple[Any, ...], annotation: Any, value: object) -> Any:
    if value is None and type(None) in options:
        return None
    for option in options:
        if option is type(None):
            continue
        try:
            return coerce(option, value)
        except TypeError:
            continue
    raise TypeError(f"expected {_type_name(annotation)}, got {_shown(value)}")


def _shown(value: object) -> str:
    return f"{type(value).__name__} {value!r}" if value is not None else "nothing (null)"


def _type_name(annotation: Any) -> str:
    names = {int: "an integer", float: "a number", str: "a word", bool: "true or false"}
    if annotation in names:
        return names[annotation]
    options = [a for a in typing.get_args(annotation) if a is not type(None)]
    if options and typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " or ".join(_type_name(a) for a in options)
    return getattr(annotation, "__name__", str(annotation))


@dataclass(frozen=True, kw_only=True)
class Configurable:
    """Base of everything a spec can name. Subclasses are frozen, keyword-only dataclasses."""

    name: ClassVar[str]
    """The word that a spec uses."""

    def __post_init__(self) -> None:
        """Coerce and check every field; subclasses add their own checks in ``problems``."""
        wrong: list[tuple[str, str]] = []
        for f in dataclasses.fields(self):
            info = f.metadata.get("param")
            try:
                value = coerce(_hints(type(self))[f.name], getattr(self, f.name))
            except TypeError as error:
                wrong.append((f.name, str(error)))
                continue
            object.__setattr__(self, f.name, value)
            values = value if isinstance(value, tuple) else (value,)
            texts = [info.problem(v) for v in values] if info else []
            wrong += [(f.name, t) for t in texts if t]
        if not wrong:
            wrong = list(self.problems())
        if wrong:
            raise ConfigError(wrong)

    def problems(self) -> Iterable[tuple[str, str]]:
        """Return (field, message) pairs for constraints between fields; called once all types are right."""
        return ()

    def config(self, *, until: Stage | None = None) -> dict[str, Json]:
        """Return the resolved configuration, defaults included, as canonical JSON values.

        Args:
            until: keep only the fields that act at this stage or before; None keeps all.
        """
        limit = len(STAGE_ORDER) if until is None else STAGE_ORDER.index(until)
        out: dict[str, Json] = {"name": self.name}
        for f in dataclasses.fields(self):
            if STAGE_ORDER.index(f.metadata["param"].stage) <= limit:
                out[f.name] = _plain(getattr(self, f.name))
        return out

    @classmethod
    def parameters(cls) -> dict[str, Param]:
        """Return field name -> range, stage, meaning; the choices of a ``Literal`` field are its words."""
        found: dict[str, Param] = {f.name: f.metadata["param"] for f in dataclasses.fields(cls)}
        return {n: dataclasses.replace(p, choices=p.choices or _words(_hints(cls)[n])) for n, p in found.items()}

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Return field name -> default; required fields are absent."""
        return {f.name: f.default for f in dataclasses.fields(cls) if f.default is not MISSING}

    @classmethod
    def annotations(cls) -> dict[str, Any]:
        """Return field name -> type."""
        return {f.name: _hints(cls)[f.name] for f in dataclasses.fields(cls)}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build the object that ``config()`` described. Unknown fields raise ConfigError."""
        given = {k: v for k, v in config.items() if k != "name"}
        unknown = sorted(set(given) - set(cls.parameters()))
        if unknown:
            raise ConfigError((u, f"unknown field; {cls.name} knows {', '.join(cls.parameters())}") for u in unknown)
        missing = sorted(set(cls.parameters()) - set(cls.defaults()) - set(given))
        if missing:
            raise ConfigError((m, "expected a value, got nothing") for m in missing)
        return cls(**given)

    @classmethod
    def summary(cls) -> str:
        """Return the first line of the docstring."""
        return (cls.__doc__ or cls.name).strip().splitlines()[0]


_HINTS: dict[type, dict[str, Any]] = {}


def _hints(cls: type) -> dict[str, Any]:
    if cls not in _HINTS:
        _HINTS[cls] = typing.get_type_hints(cls)
    return _HINTS[cls]


def _words(annotation: Any) -> tuple[str, ...] | None:
    """Return the words of a ``Literal``, also of an optional one; None for other types."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    options = typing.get_args(annotation) if union else (annotation,)
    return next((typing.get_args(o) for o in options if typing.get_origin(o) is Literal), None)


def _plain(value: Any) -> Json:
    if isinstance(value, Configurable):
        # Fields of a nested plugin that act on verification do not change its embedding or attack.
        return value.config(until="attack")
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"expected a JSON value, got {_shown(value)}")
