"""Identities: canonical text and task ids."""

import json
import random
from dataclasses import fields, replace
from enum import StrEnum
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wmarena.orchestrator.plan.identity import canonical, digest
from wmarena.orchestrator.plan.task import Kind, Task, TaskId

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
def test_canonical_text_is_injective(value: Any) -> None:
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


def _type_name(value: Any) -> str:
    """Test ids must not hold addresses: two collecting processes have to agree on them."""
    return type(value).__name__


@pytest.mark.parametrize(
    "wrong", [float("nan"), float("inf"), {1, 2}, b"raw", object(), np.int64(1), {1: "x"}, {None: 1}], ids=_type_name
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


def test_hints_do_not_count() -> None:
    """Label, cost, order and names may change and no result is computed again; every field is one or the other."""
    advice = {"label": "x", "after": (TaskId("d" * 64),), "cost": 9.0, "workload": "w", "scheme": "s", "attack": "a"}

    assert node(**advice).id == node().id
    assert set(advice) | set(node().identity()) == {f.name for f in fields(Task) if f.init}


def test_ids_stay_what_they_are() -> None:
    """The id of a fixed task: if this fails, stored results are not found any more."""
    assert node().text == (
        '{"code":"code","config":{"lr":0.1,"workload":{"epochs":12,"name":"digits_mlp"}},"data":"data",'
        f'"kind":"attack","parents":[["start","{"b" * 64}"],["victim","{"a" * 64}"]],"seed":3}}'
    )
    assert node().id == "6119db32d0554f3e768b121d1bdacd2268902b65b946b23aa0549498ce0b081c"
