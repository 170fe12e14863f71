"""What is wrong with a spec: every problem with its line, all at once."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Self

Path = tuple[str | int, ...]
"""Where a value is: ("schemes", 0, "lambda1")."""


def dotted(path: Path) -> str:
    """``schemes[0].lambda1``."""
    out = ""
    for part in path:
        out += f"[{part}]" if isinstance(part, int) else f".{part}" if out else part
    return out


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        message: expected, got, way out.
        path: where in the spec; () for the whole.
        place: "line 12" or "--set seeds=[]"; "" where there is no text.
        also: the other place that the message speaks of, if there is one.
    """

    message: str
    path: Path = ()
    place: str = ""
    also: Path | None = None

    def __str__(self) -> str:
        return ": ".join(part for part in (self.place, dotted(self.path), self.message) if part)


class SpecError(ValueError):
    """A spec cannot be used; ``problems`` holds everything that is wrong with it."""

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
    """``unknown field; did you mean 'lambda1'? Known: ...``."""
    names = sorted(known)
    near = get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"unknown {what}{hint} Known: {', '.join(names) or 'none'}"
