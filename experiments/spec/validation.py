"""What experiments and studies share: reading from YAML, and pydantic's errors as problems with their lines."""

import pathlib
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, ValidationError
from pydantic_core import ErrorDetails

from wmarena.experiments.spec.overrides import apply
from wmarena.experiments.spec.problems import Path, Problem, SpecError, dotted, unknown
from wmarena.experiments.spec.shipped import Shipped
from wmarena.experiments.spec.yaml_lines import YamlDocument, read, text_of

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


def _distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if not seeds:
        raise ValueError("expected at least one seed, got an empty list")
    repeated = sorted({s for s in seeds if seeds.count(s) > 1})
    if repeated:
        raise ValueError(f"expected each seed once, got {', '.join(map(str, repeated))} again")
    return seeds


Seeds = Annotated[tuple[Annotated[int, Field(strict=True, ge=0, lt=2**63)], ...], AfterValidator(_distinct)]


class SpecBlock(BaseModel):
    """A mapping of known fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class YamlSpec(SpecBlock):
    """The top of a specification file."""

    shipped: ClassVar[Shipped]

    name: Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,99}$")]
    description: Annotated[str, Field(strict=True)] = ""

    _text: str = PrivateAttr("")
    _document: Any = PrivateAttr(None)

    @classmethod
    def load(
        cls, spec: str | pathlib.Path, *, overrides: Iterable[str] = (), data_root: pathlib.Path | None = None
    ) -> Self:
        """Read a file, or a shipped specification by its name.

        Args:
            overrides: ``path=value`` texts, as of ``--set``.
            data_root: where ``first_available`` looks for data sets.

        Raises:
            SpecError: no such file or name, or every problem of the specification.
        """
        path = cls.shipped.find(spec)
        return cls.parse(text_of(path), overrides=overrides, data_root=data_root, source=path)

    @classmethod
    def parse(
        cls,
        text: str,
        *,
        overrides: Iterable[str] = (),
        data_root: pathlib.Path | None = None,
        source: pathlib.Path | None = None,
    ) -> Self:
        """Read YAML text; ``source`` names it in messages, and relative paths start at its folder."""
        given, source = tuple(overrides), source or pathlib.Path(cls.shipped.kind)
        try:
            spec = cls.of(apply(read(text), given), data_root=data_root, folder=source.parent)
        except SpecError as error:
            raise SpecError(error.problems, str(source)) from None
        if not given:
            spec._text = text
        return spec

    @classmethod
    def of(
        cls, document: YamlDocument, *, data_root: pathlib.Path | None = None, folder: pathlib.Path = pathlib.Path()
    ) -> Self:
        """Validate a document; relative paths in it start at ``folder``."""
        raise NotImplementedError

    @property
    def text(self) -> str:
        """The specification as YAML: as it was read, with overrides applied; resolved if it was made in Python."""
        return self._text or yaml.safe_dump(self._document or self.resolved(), sort_keys=False, allow_unicode=True)

    def resolved(self) -> dict[str, Any]:
        """Every field with grids and defaults written out, as JSON values."""
        raise NotImplementedError


def problems_of(error: ValidationError, document: YamlDocument, model: type[BaseModel]) -> list[Problem]:
    """Convert pydantic's errors to problems, in the order of the document's lines."""
    found: list[Problem] = []
    for details in error.errors(include_url=False):
        path: Path = details["loc"]
        also = details.get("ctx", {}).get("also")
        text = message(details, model)
        if also is not None:
            text = text.replace(dotted(also), f"{dotted(also)} ({document.place(also)})", 1)
        found.append(Problem(text, path, document.place(path)))
    return by_line(found)


def message(details: ErrorDetails, model: type[BaseModel]) -> str:
    """Word one error: expected, got, and how to correct it."""
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
    """Return the fields of the block at ``path``."""
    for part in path:
        annotation = model.model_fields[str(part)].annotation
        options = (annotation, *typing.get_args(annotation))
        model = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return model.model_fields


def by_line(problems: Iterable[Problem]) -> list[Problem]:
    """Sort problems by line; those without one come first."""
    return sorted(problems, key=lambda problem: _line(problem.place))


def _line(place: str) -> tuple[int, str]:
    words = place.split()
    return (int(words[1].rstrip(",:")), "") if words[:1] == ["line"] else (0, place)
