"""Problems of a spec, each with its line, collected and raised together."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Self

Path = tuple[str | int, ...]
"""Location of a value: ("schemes", 0, "lambda1")."""


def dotted(path: Path) -> str:
    """Format a path: ``schemes[0].lambda1``."""
    out = ""
    for part in path:
        out += f"[{part}]" if isinstance(part, int) else f".{part}" if out else part
    return out


@dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
        message: expected, got, and how to correct it.
        path: location in the spec; () for the whole.
        place: "line 12" or "--set seeds=[]"; "" without text.
        also: another location that the message names.
    """

    message: str
    path: Path = ()
    place: str = ""
    also: Path | None = None

    def __str__(self) -> str:
        return ": ".join(part for part in (self.place, dotted(self.path), self.message) if part)


class SpecError(ValueError):
    """An invalid spec; ``problems`` holds all its problems."""

    def __init__(self, problems: Iterable[Problem], source: str = "") -> None:
        self.problems = list(problems)
        self.source = source
        lines = [str(p) for p in self.problems]
        if source:
            count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
            lines = [f"{source}: {count}", *(f"  {line}" for line in lines)]
        super().__init__("\n".join(lines))

    @classmethod
    def of(cls, message: str, *path: str | int) -> Self:
        """Make an error of one problem."""
        return cls([Problem(message, path)])


def unknown(name: object, known: Iterable[str], what: str = "field") -> str:
    """Word an unknown name: ``unknown field; did you mean 'lambda1'? Known: ...``."""
    names = sorted(known)
    near = get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"unknown {what}{hint} Known: {', '.join(names) or 'none'}"
