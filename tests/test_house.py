"""The structure of the source tree: rooms and floors, sizes, one name for one class."""

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from wmarena.attacks import ATTACKS
from wmarena.experiments.workloads import WORKLOADS
from wmarena.schemes import SCHEMES

SOURCES = Path(__file__).resolve().parents[1] / "src"
PARTS = ("schemes", "attacks", "orchestrator", "experiments")
MOST_LINES = 450
MOST_MODULES = 16

Graph = Mapping[str, set[str]]


def modules() -> dict[str, Path]:
    """Dotted name of every module and package of the product -> its file."""
    found = {}
    for part in PARTS:
        for path in sorted((SOURCES / "wmarena" / part).rglob("*.py")):
            name = ".".join(path.relative_to(SOURCES).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
PACKAGES = sorted(name for name, path in MODULES.items() if path.name == "__init__.py")


def imports(tree: ast.AST) -> Iterator[str]:
    """Modules of the product that are imported anywhere in a module, type checking and late imports included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield from (name for name in (inner if inner in MODULES else node.module,) if name in MODULES)


def rooms(package: str) -> Graph:
    """Children of a package (folders and modules, the package file left out) -> the siblings that they import."""
    graph: dict[str, set[str]] = defaultdict(set)
    depth = package.count(".") + 1
    for name, tree in TREES.items():
        if not name.startswith(f"{package}."):
            continue
        own = name.split(".")[depth]
        graph[own] |= set()
        for other in imports(tree):
            if other.startswith(f"{package}.") and other.split(".")[depth] != own:
                graph[own].add(other.split(".")[depth])
    return graph


def floors(graph: Graph) -> dict[str, int]:
    """The floor of each room: 1 without imports, else one above the highest that it imports.

    Raises:
        ValueError: naming a circle.
    """
    known: dict[str, int] = {}

    def floor(room: str, path: tuple[str, ...]) -> int:
        if room in path:
            raise ValueError(" -> ".join((*path[path.index(room) :], room)))
        if room not in known:
            known[room] = 1 + max((floor(other, (*path, room)) for other in graph[room]), default=0)
        return known[room]

    return {room: floor(room, ()) for room in graph}


def test_floors_find_a_circle() -> None:
    """The check of this file can fail: two rooms that import each other are named."""
    with pytest.raises(ValueError, match=r"^(a -> b -> a|b -> a -> b)$"):
        floors({"a": {"b"}, "b": {"a"}})
    assert floors({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": 3, "b": 2, "c": 1}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_has_a_circle_of_rooms(package: str) -> None:
    """Within every folder imports between its files and folders point one way."""
    floors(rooms(package))


def test_the_orchestrator_is_ten_rooms_on_seven_floors_at_most() -> None:
    """A reader finds the store, the journal, the keys by the names of folders."""
    found = floors(rooms("wmarena.orchestrator"))

    assert {"plan", "store", "journal", "keys", "worker", "running", "executors", "recorders"} <= found.keys()
    assert len(found) <= 10
    assert max(found.values()) <= 7


@pytest.mark.parametrize("package", PACKAGES)
def test_a_folder_holds_sixteen_shared_modules_at_most(package: str) -> None:
    """Files that hold a plugin do not count: a folder of plugins has no limit."""
    tables = (SCHEMES, ATTACKS, WORKLOADS)
    plugins = {target.partition(":")[0] for table in tables for target in table.values()}
    here = [n for n in MODULES if n.rpartition(".")[0] == package and n not in PACKAGES and n not in plugins]

    assert len(here) <= MOST_MODULES, here


def test_no_module_is_longer_than_450_lines() -> None:
    """A longer one has a second reason to change."""
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}

    assert {name: n for name, n in lines.items() if n > MOST_LINES} == {}


def defined(tree: ast.Module) -> Iterator[str]:
    """Names of public classes and of type aliases (``Name = dict[...]``, ``Name = A | B``) at the top of a module."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript | ast.BinOp):
            yield from (t.id for t in node.targets if isinstance(t, ast.Name) and not t.id.isupper())


def test_every_public_class_has_a_name_of_its_own() -> None:
    """One name, one class in the whole product: whoever searches for a name finds one definition."""
    places = defaultdict(list)
    for module, tree in TREES.items():
        for name in defined(tree):
            if name[0].isupper():
                places[name].append(module)

    assert {name: where for name, where in places.items() if len(where) > 1} == {}
