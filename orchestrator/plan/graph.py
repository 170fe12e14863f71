"""Reachability in graphs of tasks and modules."""

from collections.abc import Callable, Iterable
from typing import TypeVar

Node = TypeVar("Node")


def reach(start: Iterable[Node], following: Callable[[Node], Iterable[Node]]) -> set[Node]:
    """Return ``start`` and all nodes that can be reached from it by ``following``."""
    found = set(start)
    todo = list(found)
    while todo:
        new = set(following(todo.pop())) - found
        found |= new
        todo += new
    return found
