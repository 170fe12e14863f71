"""What can be reached in a graph: of tasks, of modules."""

from collections.abc import Callable, Iterable
from typing import TypeVar

Node = TypeVar("Node")


def reach(start: Iterable[Node], following: Callable[[Node], Iterable[Node]]) -> set[Node]:
    """``start``, what follows directly on each of it, what follows on that, and so on."""
    found = set(start)
    todo = list(found)
    while todo:
        new = set(following(todo.pop())) - found
        found |= new
        todo += new
    return found
