"""Shipped defaults are values on paper: one that moves is seen in review, not only by who compares two tables.

After a change that is meant, rewrite the file and look at what it says:

    WMARENA_REWRITE_GOLDEN=1 python -m pytest -n0 tests/test_defaults.py
"""

import importlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from wmarena.attacks import ATTACKS
from wmarena.experiments.workloads import WORKLOADS
from wmarena.schemes import SCHEMES

GOLDEN = Path(__file__).parent / "golden" / "defaults.json"
TABLES: dict[str, Mapping[str, str]] = {
    "schemes": SCHEMES,
    "attacks": ATTACKS,
    "workloads": WORKLOADS,
    "adversaries": {"budget": "wmarena.attacks.knowledge:Budget"},
}

Defaults = dict[str, dict[str, Any]]
"""Plugin's name -> field -> value."""


def shipped(table: Mapping[str, str]) -> Defaults:
    """The defaults of every plugin of a table, as JSON has them; a field without one is required."""
    found: Defaults = {}
    for name, place in table.items():
        module, _, attribute = place.partition(":")
        cls = getattr(importlib.import_module(module), attribute)
        found[name] = {field: cls.defaults().get(field, "required") for field in cls.parameters()}
    text: Defaults = json.loads(json.dumps(found))
    return text


def written() -> dict[str, Defaults]:
    """What the file says, after rewriting it if that was asked for."""
    if os.environ.get("WMARENA_REWRITE_GOLDEN"):
        everything = {kind: shipped(table) for kind, table in TABLES.items()}
        GOLDEN.write_text(json.dumps(everything, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    told: dict[str, Defaults] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return told


@pytest.mark.parametrize("kind", TABLES)
def test_shipped_defaults_are_those_on_paper(kind: str) -> None:
    """Every field of every scheme, attack, workload and budget has the default that ``golden/defaults.json`` states."""
    expected, found = written()[kind], shipped(TABLES[kind])

    assert found.keys() == expected.keys()
    moved = {
        f"{plugin}.{field}": pair
        for plugin in found
        for field in expected[plugin].keys() | found[plugin].keys()
        if len(set(map(json.dumps, pair := [some[plugin].get(field, "absent") for some in (expected, found)]))) > 1
    }
    assert moved == {}, f"field: [on paper, shipped]; if this is meant: {__doc__}"
