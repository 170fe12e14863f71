"""What a thing is: canonical text, ids, digests of code."""

import ast
import functools
import hashlib
import importlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import identity
from orchestrator.identity import canonical, code_digest, digest, forget_code, normal_form
from orchestrator.task import Kind, Task, TaskId

TREE = Path(__file__).resolve().parents[2]

ATOMS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(
    ATOMS, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(), v, max_size=4), max_leaves=9
)
CONFIGS = st.dictionaries(st.text(min_size=1), VALUES, min_size=1, max_size=5)


def typed(value: Any) -> Any:
    """The value with every type spelled out, so that 1, 1.0 and True differ, and 0.0 and -0.0."""
    if isinstance(value, dict):
        return {name: typed(item) for name, item in value.items()}
    return [typed(v) for v in value] if isinstance(value, list) else repr(value)


def shuffled(value: Any, seed: int) -> Any:
    """The same value with the fields of every mapping in another order."""
    if isinstance(value, dict):
        names = list(value)
        random.Random(seed).shuffle(names)
        return {n: shuffled(value[n], seed) for n in names}
    return [shuffled(v, seed) for v in value] if isinstance(value, list) else value


def node(**changes: Any) -> Task:
    """A task with something in every field of its identity."""
    config = {"workload": {"name": "digits_mlp", "epochs": 12}, "lr": 0.1}
    parents = (("victim", TaskId("a" * 64)), ("start", TaskId("b" * 64)))
    return replace(Task(Kind.ATTACK, config, 3, parents, "data", "code"), **changes)


# Canonical text


@given(VALUES)
def test_canonical_text_says_everything(value: Any) -> None:
    """Reading it back gives the same value, types included: no two values share a text."""
    assert typed(json.loads(canonical(value))) == typed(value)


@given(VALUES, st.integers())
def test_field_order_does_not_count(value: Any, seed: int) -> None:
    """Permuting the fields of any mapping, however deep, leaves the text as it is."""
    assert canonical(shuffled(value, seed)) == canonical(value)


class Word(StrEnum):
    DEEP = "deep"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"b": [1, (2.0, None)], "a": "ä"}, '{"a":"ä","b":[1,[2.0,null]]}'),
        (0.1, "0.1"),
        (Word.DEEP, '"deep"'),
        ({"x": np.float64(0.5)}, '{"x":0.5}'),
    ],
)
def test_canonical_text_is_short_and_exact(value: Any, expected: str) -> None:
    """No spaces, no escapes; tuples are lists; words and numbers of derived types are what they hold."""
    assert canonical(value) == expected


@pytest.mark.parametrize(
    "wrong", [float("nan"), float("inf"), {1, 2}, b"raw", object(), np.int64(1), {1: "x"}, {None: 1}], ids=repr
)
def test_what_json_cannot_hold_exactly_is_refused(wrong: Any) -> None:
    """NaN, sets, objects and keys that are no text are errors that say where, never a silent text."""
    with pytest.raises(TypeError, match=r"expected .* at \$\.a\[1\]"):
        canonical({"a": [0, wrong]})


def test_tags_keep_kinds_of_records_apart() -> None:
    """The same content under two tags has two digests."""
    assert digest("task", [1]) != digest("plan", [1])


# Ids


@settings(max_examples=40)
@given(CONFIGS, st.integers())
def test_an_id_does_not_depend_on_order(config: dict[str, Any], seed: int) -> None:
    """Neither on the order of fields nor on that of parents."""
    task = node(config=config)

    assert node(config=shuffled(config, seed), parents=task.parents[::-1]).id == task.id


@settings(max_examples=40)
@given(CONFIGS, CONFIGS)
def test_an_id_depends_on_every_value(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Two configurations share an id only if they are the same, types included."""
    assert (node(config=first).id == node(config=second).id) == (typed(first) == typed(second))


@pytest.mark.parametrize(
    "change",
    [
        {"kind": Kind.VERIFY},
        {"config": {"workload": {"name": "digits_mlp", "epochs": 13}, "lr": 0.1}},
        {"config": {"workload": {"name": "digits_mlp", "epochs": 12}, "lr": 0.1, "new": None}},
        {"seed": 4},
        {"parents": (("victim", TaskId("a" * 64)), ("start", TaskId("c" * 64)))},
        {"parents": (("victim", TaskId("b" * 64)), ("start", TaskId("a" * 64)))},
        {"data": "other data"},
        {"code": "other code"},
    ],
    ids=["kind", "deep value", "new field", "seed", "parent", "roles", "data", "code"],
)
def test_changing_any_one_field_changes_the_id(change: dict[str, Any]) -> None:
    """Kind, a value deep in the configuration, a new field even if null, seed, parents and their roles, data, code."""
    assert node(**change).id != node().id


def test_advice_is_no_identity() -> None:
    """Label, cost, order and names may change and no result is computed again; every field is one or the other."""
    advice = {"label": "x", "after": (TaskId("d" * 64),), "cost": 9.0, "workload": "w", "scheme": "s", "attack": "a"}

    assert node(**advice).id == node().id
    assert set(advice) | set(node().identity()) == {f.name for f in fields(Task)}


def test_ids_stay_what_they_are() -> None:
    """The id of a fixed task, written down once: if this fails, every stored result is lost to its owner."""
    assert node().text == (
        '{"code":"code","config":{"lr":0.1,"workload":{"epochs":12,"name":"digits_mlp"}},"data":"data",'
        f'"kind":"attack","parents":[["start","{"b" * 64}"],["victim","{"a" * 64}"]],"seed":3}}'
    )
    assert node().id == "6119db32d0554f3e768b121d1bdacd2268902b65b946b23aa0549498ce0b081c"


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
    """What does not change the meaning does not change the form."""
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
    """The smallest change of meaning changes the form."""
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
    """Within one process a digest does not change under a plan's feet, unless that is asked for."""
    name = package({"__init__.py": "", "plugin.py": "x = 1"})
    before = code_digest([f"{name}.plugin"])
    (tmp_path / name / "plugin.py").write_text("x = 2")
    unnoticed = code_digest([f"{name}.plugin"])
    forget_code()

    assert unnoticed == before
    assert code_digest([f"{name}.plugin"]) != before


@pytest.mark.parametrize("module", ["math", "builtins", "no_such_module_anywhere", "schemes.no_such"])
def test_a_plugin_without_source_is_refused(module: str) -> None:
    """Its changes would go unnoticed, so it gets no digest."""
    with pytest.raises(LookupError, match="expected a module with Python source"):
        code_digest(["schemes.uchida", module])


PLUGINS = {
    "uchida": "schemes.uchida",
    "adi": "schemes.adi",
    "finetune": "attacks.finetune",
    "digits": "experiments.workloads.digits",
}


@pytest.mark.parametrize(
    ("module", "reached"),
    [
        ("schemes.uchida", {"uchida"}),
        ("schemes.adi", {"adi"}),
        ("schemes.base", {"uchida", "adi", "finetune", "digits"}),
        ("schemes.prf", {"uchida", "adi", "finetune", "digits"}),
        ("attacks.finetune", {"finetune"}),
        ("experiments.workloads.training", {"digits"}),
        ("experiments.workloads.digits", {"digits"}),
        ("schemes", set()),
        ("orchestrator.loop", set()),
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
    before = code_digest(["schemes.uchida"])
    monkeypatch.setattr(identity, "SEMANTICS", identity.SEMANTICS + 1)

    assert code_digest(["schemes.uchida"]) != before


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Name and tree of every module of ours whose code counts."""
    for root in identity.OUR_ROOTS:
        for path in sorted((TREE / root.replace(".", "/")).rglob("*.py")):
            yield ".".join(path.relative_to(TREE).with_suffix("").parts), ast.parse(path.read_text())


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
