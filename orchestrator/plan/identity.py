"""Identities: canonical JSON, task digests, and the digest of the code that computes a result.

An identity holds everything that changes a result and nothing else: not the GPU, the machine, the time, the executor
or the order of fields. Of the code, the syntax tree counts: comments, docstrings and formatting do not.
"""

import ast
import hashlib
import importlib.util
import json
import math
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from wmarena.orchestrator.plan.graph import reach

SEMANTICS = 2
"""Raise by hand when ``perform``, seeding, autocast or a codec changes what any task computes."""

OUR_ROOTS = ("wmarena.schemes", "wmarena.attacks", "wmarena.experiments.workloads")
"""Packages whose modules count in a task's code digest, as far as a plugin reaches them by imports."""


def canonical(value: Any) -> str:
    """Return JSON with sorted keys and no spaces; floats by repr, so 0.1 is 0.1 on every machine.

    Raises:
        TypeError: a value that JSON cannot hold exactly (sets, objects, NaN, infinity).
    """
    if not _plain(value):
        _check(value, "$")
    return _ENCODER.encode(value)


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> bool:
    """Return whether JSON holds ``value`` exactly; fast, because every task is checked here."""
    kind = type(value)
    if kind is dict:
        return set(map(type, value)) <= {str} and all(map(_plain, value.values()))
    if kind is list or kind is tuple:
        return all(map(_plain, value))
    return kind in _ATOMS or (kind is float and math.isfinite(value))


_ATOMS = frozenset({str, int, bool, type(None)})


def _check(value: Any, path: str) -> None:
    """Raise TypeError with the path of a value that JSON cannot hold; accept subclasses of text and numbers."""
    if isinstance(value, float) and not math.isfinite(value):
        raise TypeError(f"expected a finite number at {path}, got {value!r}")
    if isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _check(item, f"{path}[{i}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"expected text keys at {path}, got {key!r}")
            _check(item, f"{path}.{key}")
    elif value is not None and not isinstance(value, bool | int | str | float):
        raise TypeError(f"expected JSON values at {path}, got {type(value).__name__}")


def digest(tag: str, value: Any) -> str:
    """Return the hex SHA-256 of a tagged canonical value; tags separate kinds of records."""
    return digest_text(tag, canonical(value))


def digest_text(tag: str, text: str) -> str:
    """Return the hex SHA-256 of a tagged canonical text."""
    return hashlib.sha256(f"{tag}\n{text}".encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the hex SHA-256 of a file's bytes."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def code_digest(modules: Iterable[str]) -> str:
    """Return the hex SHA-256 over the normal forms of all first-party modules that ``modules`` reach by imports.

    First-party are ``OUR_ROOTS``, and the package of a third-party plugin. Sources are read once per process: see
    ``forget_code``.

    Raises:
        LookupError: one of ``modules`` has no Python source, so changes could not be detected.
    """
    start = sorted(set(modules))
    for module in start:
        _source(module)
    roots = OUR_ROOTS + tuple(sorted({m.split(".")[0] for m in start if not _ours(m)}))
    reached = sorted(_reach(start, roots))
    # Names count as well: two modules may exchange their contents.
    forms = [[name, _form_digest(_source(name))] for name in reached]
    return digest("code", {"semantics": SEMANTICS, "modules": forms})


def forget_code() -> None:
    """Drop cached sources: for processes that keep running while code is edited."""
    for known in (_origin, _source, _imports):
        known.cache_clear()


def _ours(module: str) -> bool:
    return _under(module, OUR_ROOTS)


def _under(module: str, roots: Iterable[str]) -> bool:
    return any(module == root or module.startswith(root + ".") for root in roots)


def _reach(start: list[str], roots: tuple[str, ...]) -> set[str]:
    """Return modules under ``roots`` reachable from ``start``, without our package files, which hold tables only."""

    def imported(name: str) -> Iterator[str]:
        # Importing a.b.c runs a and a.b first; package files of third-party plugins may hold behaviour.
        packages = () if _ours(name) else (name.rpartition(".")[0],)
        return (n for n in (*_imports(name), *packages) if _under(n, roots) and _origin(n) is not None)

    return {name for name in reach(start, imported) if not (_is_package(name) and _ours(name))}


@cache
def _origin(module: str) -> Path | None:
    loaded = sys.modules.get(module)
    spec = getattr(loaded, "__spec__", None) if loaded is not None else None
    if spec is None:
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            return None
    return Path(spec.origin) if spec is not None and spec.origin and spec.origin.endswith(".py") else None


def _is_package(module: str) -> bool:
    origin = _origin(module)
    return origin is not None and origin.name == "__init__.py"


@cache
def _source(module: str) -> str:
    origin = _origin(module)
    if origin is None:
        raise LookupError(
            f"expected a module with Python source, got {module!r}; put the plugin into a .py file that can be imported"
        )
    return origin.read_text(encoding="utf-8")


@cache
def _imports(module: str) -> tuple[str, ...]:
    """Return modules imported anywhere in ``module``, relative imports resolved; 'from a import b' adds a.b too."""
    found: list[str] = []
    package = module if _is_package(module) else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(_source(module))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join(parts[: len(parts) - node.level + 1] + ([base] if base else []))
            found += [base] + [f"{base}.{alias.name}" for alias in node.names]
    return tuple(dict.fromkeys(found))


@cache
def _form_digest(source: str) -> str:
    """Return the digest of a normal form, cached by content: tasks of a plan share most modules."""
    return hashlib.sha256(normal_form(source).encode()).hexdigest()


def normal_form(source: str) -> str:
    """Return a module's syntax tree as text, without comments, docstrings and positions.

    Not by ``ast.dump``, whose output changes between Python versions.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = _without_docstring(node.body)
        elif isinstance(node, ast.JoinedStr):
            # Python 3.12 adds empty parts to f-strings.
            node.values = [v for v in node.values if not (isinstance(v, ast.Constant) and v.value == "")]
    return _written(tree)


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    """Drop string statements: docstrings of modules, classes, functions and attributes."""
    kept = [
        s
        for s in body
        if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant) and isinstance(s.value.value, str))
    ]
    return kept or [ast.Pass()]


_UNSEEN = {"ctx", "type_comment", "type_ignores", "kind", "lineno", "col_offset", "end_lineno", "end_col_offset"}


def _written(node: Any) -> str:
    if isinstance(node, ast.AST):
        parts = [
            f"{name}={_written(value)}"
            for name, value in ast.iter_fields(node)
            if name not in _UNSEEN and value is not None and value != []
        ]
        return f"{type(node).__name__}({','.join(parts)})"
    if isinstance(node, list):
        return f"[{','.join(_written(n) for n in node)}]"
    # ASCII, because which characters repr() escapes changes with Python's Unicode tables.
    return f"{type(node).__name__}:{node!a}"
