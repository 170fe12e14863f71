"""Markdown tables of parameters."""

from collections.abc import Iterable, Sequence
from typing import Any


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; '' without rows."""
    lines = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    if not lines:
        return ""
    return "\n".join(f"| {' | '.join(line)} |" for line in [list(head), ["---"] * len(head), *lines])


def value(found: Any) -> str:
    """A default as a spec writes it, as code."""
    if found is None:
        return "`null`"
    if isinstance(found, bool):
        return f"`{str(found).lower()}`"
    if isinstance(found, list | tuple):
        return "`[" + ", ".join(map(str, found)) + "]`"
    return f"`{found}`"
