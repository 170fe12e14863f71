"""Code digests: which modules count, and that formatting does not."""

import ast
import functools
import hashlib
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wmarena.orchestrator.plan import identity
from wmarena.orchestrator.plan.identity import code_digest, forget_code, normal_form

SOURCES = Path(__file__).resolve().parents[3] / "src"

# The normal form of code

GOLDEN = r'''
"""Everything that a plugin is likely to be written with."""

import os.path as p
from . import sibling
from dataclasses import dataclass, field

__all__ = ["Thing"]
NUMBERS = (1, -2, 1e-6, 0x10, 1_000, 3j, True, None, ..., b"\x00a", "\u00e4\U0001f600\n", "a" "b")


@dataclass(frozen=True)
class Thing(dict, metaclass=type):
    """Doc."""

    width: int = 3
    """A note under a field."""
    names: list[str] = field(default_factory=list)

    @property
    def area(self) -> "float | None":
        """Doc."""
        return self.width ** 2 if self.width and not self.names else None

    async def later(self, *rest, key=lambda x, /, y=1, *, z: x + y - z, **more):
        async with self as one, self:
            await one
        async for item in self:
            yield item
        return


def work(values, limit: int = 10) -> str:
    """Doc."""
    global NUMBERS
    total, *others = values
    table = {k: v for k, v in enumerate(values) if k % 2}
    table |= {**table, "x": [*others]}
    for index, value in table.items():
        if index in (1, 2) or value is not None and 0 < index <= limit:
            continue
        elif index == 3:
            break
        total += value @ values[1:2, ..., ::-1]
    else:
        del total
    while (n := len(others)) > 1:
        assert n, f"{n!r:>{limit}} of {p.join('a', 'b')}{limit=} {{}}"
        others.pop()
    try:
        with open(f"{limit:.2f}") as f:
            raise ValueError(f) from None
    except (OSError, ValueError) as error:
        print(error, sep="")
    finally:
        pass
    match values:
        case [1, x, *_] if x:
            return ""
        case {"k": y, **z} | Thing(width=3) as y:
            return str(y)
        case _:
            return "end"
'''


def test_the_normal_form_does_not_depend_on_the_python_version() -> None:
    """Its digest was the same under Python 3.10, 3.11, 3.12 and 3.13 when it was written down."""
    found = hashlib.sha256(normal_form(GOLDEN).encode()).hexdigest()

    assert found == "45bbce009185ad5d256e4d6bfe2fc32b81761acec61be349f6edb62cc166c72b"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = 1", "# why\nx = 1  # what\n\n"),
        ("def f():\n    return 1", "def f():\n    'Doc.'\n    return (1)"),
        ("def f(): pass", "def f():\n    'Doc.'"),
        ("class A:\n    x: int = 1", "class A:\n    'Doc.'\n\n    x: int = 1\n    'A note.'"),
        ("f(a, b=[1, 2])", "f(\n    a,\n    b=[\n        1,\n        2,\n    ],\n)"),
        ("x = 'a'", 'x = u"a"'),
        ("x = 1000", "x = 1_000"),
    ],
)
def test_comments_docstrings_and_formatting_do_not_count(one: str, other: str) -> None:
    """Changes without effect on behaviour do not change the normal form."""
    assert normal_form(one) == normal_form(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = 1", "x = 1.0"),
        ("x = 1", "x = True"),
        ("x = None", "x = ..."),
        ("f = lambda: None", "f = lambda: 0"),
        ("def f():\n    return", "def f():\n    return None"),
        ("x = a - b", "x = b - a"),
        ("x = 'a'", "x = b'a'"),
        ("def f(a, *, b): ...", "def f(a, b): ..."),
        ("def f(a, /, b=1): ...", "def f(a, b=1): ..."),
        ("x: int = 1", "x: float = 1"),
        ("x = {'a': 1, **b}", "x = {**b, 'a': 1}"),
        ("x = f'{a}'", "x = f'{a!r}'"),
        ("import a as b", "import a"),
        ("print('x')", "'x'"),
    ],
)
def test_everything_else_counts(one: str, other: str) -> None:
    """The smallest change of behaviour changes the normal form."""
    assert normal_form(one) != normal_form(other)


# Which code counts

Package = Callable[[dict[str, str]], str]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Package]:
    """Writes (or rewrites) the files of an importable package; returns its name, new in every test."""
    name = f"acme_{abs(hash(tmp_path)):x}"
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(files: dict[str, str]) -> str:
        for path, text in files.items():
            target = tmp_path / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text.replace("NAME", name))
        importlib.invalidate_caches()
        forget_code()
        return name

    yield write
    forget_code()


def test_a_third_partys_package_counts_as_far_as_it_is_reached(package: Package) -> None:
    """Helpers reached by absolute, relative and late imports count; what is not reached does not."""
    files = {
        "__init__.py": "",
        "plugin.py": "from . import near\nfrom .deep.far import f\ndef late():\n    import NAME.late\n",
        "near.py": "x = 1\n",
        "deep/__init__.py": "",
        "deep/far.py": "from ..shared import *\nf = 1\n",
        "shared.py": "y = 1\n",
        "late.py": "z = 1\n",
        "stranger.py": "s = 1\n",
    }
    plugin = f"{package(files)}.plugin"
    before = code_digest([plugin])
    changed = {}
    for file, text in files.items():
        package({file: f"{text}more = 1\n"})
        changed[file] = code_digest([plugin]) != before
        package({file: text})

    assert changed == {**dict.fromkeys(files, True), "stranger.py": False}
    assert code_digest([plugin]) == before


def test_a_third_partys_package_files_count(package: Package) -> None:
    """Importing a plugin runs the package files above it, and they are not known to hold tables only."""
    name = package({"__init__.py": "", "sub/__init__.py": "", "sub/plugin.py": "x = 1"})
    digests = [code_digest([f"{name}.sub.plugin"])]
    for file in ("__init__.py", "sub/__init__.py"):
        package({file: "import torch\ntorch.set_default_dtype(torch.float64)\n"})
        digests.append(code_digest([f"{name}.sub.plugin"]))

    assert len(set(digests)) == 3


def test_sources_are_read_once_until_they_are_forgotten(package: Package, tmp_path: Path) -> None:
    """Within one process a digest stays the same until ``forget_code``."""
    name = package({"__init__.py": "", "plugin.py": "x = 1"})
    before = code_digest([f"{name}.plugin"])
    (tmp_path / name / "plugin.py").write_text("x = 2")
    unnoticed = code_digest([f"{name}.plugin"])
    forget_code()

    assert unnoticed == before
    assert code_digest([f"{name}.plugin"]) != before


@pytest.mark.parametrize("module", ["math", "builtins", "no_such_module_anywhere", "wmarena.schemes.no_such"])
def test_a_plugin_without_source_is_refused(module: str) -> None:
    """Its changes would go unnoticed, so it gets no digest."""
    with pytest.raises(LookupError, match="expected a module with Python source"):
        code_digest(["wmarena.schemes.uchida", module])


PLUGINS = {
    "uchida": "wmarena.schemes.uchida",
    "adi": "wmarena.schemes.adi.scheme",
    "finetune": "wmarena.attacks.tuning.finetune",
    "digits": "wmarena.experiments.workloads.images.digits",
}


@pytest.mark.parametrize(
    ("module", "reached"),
    [
        ("wmarena.schemes.uchida", {"uchida"}),
        ("wmarena.schemes.adi.scheme", {"adi"}),
        ("wmarena.schemes.base", {"uchida", "adi", "finetune", "digits"}),
        ("wmarena.schemes.prf", {"uchida", "adi", "finetune", "digits"}),
        ("wmarena.attacks.tuning.finetune", {"finetune"}),
        ("wmarena.experiments.workloads.training", {"digits"}),
        ("wmarena.experiments.workloads.images.digits", {"digits"}),
        ("wmarena.schemes", set()),
        ("wmarena.experiments.report.page", set()),
        ("wmarena.experiments.running.execution", set()),
        ("wmarena.orchestrator.running.loop", set()),
    ],
)
def test_a_change_of_code_reaches_its_dependants_only(
    module: str, reached: set[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Editing one scheme recomputes that scheme; editing the training loop recomputes all; scheduling, nothing."""
    forget_code()
    before = {name: code_digest([plugin]) for name, plugin in PLUGINS.items()}
    find = identity._origin.__wrapped__
    source = find(module)
    assert source is not None
    edited = tmp_path / source.name
    edited.write_text(source.read_text() + "\nADDED = 1\n")
    with monkeypatch.context() as patch:
        patch.setattr(identity, "_origin", functools.cache(lambda m: edited if m == module else find(m)))
        forget_code()
        after = {name: code_digest([plugin]) for name, plugin in PLUGINS.items()}
    forget_code()

    assert {name for name in PLUGINS if before[name] != after[name]} == reached


def test_raising_semantics_recomputes_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hand-raised constant is in every digest."""
    before = code_digest(["wmarena.schemes.uchida"])
    monkeypatch.setattr(identity, "SEMANTICS", identity.SEMANTICS + 1)

    assert code_digest(["wmarena.schemes.uchida"]) != before


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Name and tree of every module of ours whose code counts."""
    for root in identity.OUR_ROOTS:
        for path in sorted((SOURCES / root.replace(".", "/")).rglob("*.py")):
            yield ".".join(path.relative_to(SOURCES).with_suffix("").parts), ast.parse(path.read_text())


def test_package_files_compute_and_import_nothing() -> None:
    """They do not count in digests, so they hold docstrings and tables of names only."""
    packages = {name: tree for name, tree in modules() if name.endswith(".__init__")}
    active = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef | ast.Call
    found = [f"{name}: {ast.unparse(n)}" for name, t in packages.items() for n in ast.walk(t) if isinstance(n, active)]

    assert len(packages) >= len(identity.OUR_ROOTS)
    assert found == []


def test_no_plugin_takes_a_name_from_a_package_file() -> None:
    """What a package file says may change without a digest noticing."""
    known = dict(modules())
    packages = {name.removesuffix(".__init__") for name in known if name.endswith(".__init__")}
    taken = [
        f"{name} takes {node.module}.{alias.name}"
        for name, tree in known.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in packages
        for alias in node.names
        if not {f"{node.module}.{alias.name}", f"{node.module}.{alias.name}.__init__"} & known.keys()
    ]

    assert taken == []
