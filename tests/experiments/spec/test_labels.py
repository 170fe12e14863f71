"""Labels of a spec's entries hold only fields in which entries of one name differ."""

from typing import Any

import pytest

from wmarena.experiments.spec.labels import differing, telling


def overwritten(name: str, **fields: Any) -> dict[str, Any]:
    """A flat configuration of an attack that embeds a scheme."""
    return {"epochs": 5, "scheme.name": name} | {f"scheme.{field}": value for field, value in fields.items()}


@pytest.mark.parametrize(
    ("configs", "expected"),
    [
        ([{"lr": 0.1}], ["a"]),
        ([{"lr": 0.1, "epochs": 3}, {"lr": 0.2, "epochs": 3}], ["a[lr=0.1]", "a[lr=0.2]"]),
        ([{"lr": None}, {"lr": 0.2}], ["a[lr=none]", "a[lr=0.2]"]),
        (
            [overwritten("uchida", bits=64), overwritten("adi", n=100)],
            ["a[scheme.name=uchida]", "a[scheme.name=adi]"],
        ),
        (
            [overwritten("uchida", bits=64), overwritten("uchida", bits=128), overwritten("adi", n=100)],
            ["a[scheme.name=uchida,scheme.bits=64]", "a[scheme.name=uchida,scheme.bits=128]", "a[scheme.name=adi]"],
        ),
    ],
    ids=["alone", "rates", "unset", "two schemes", "two of one scheme"],
)
def test_a_field_is_named_where_siblings_differ_in_it(configs: list[dict[str, Any]], expected: list[str]) -> None:
    """A nested plugin's name tells it apart from others; its fields only from plugins of the same name."""
    assert telling(["a"] * len(configs), configs) == expected


def test_entries_of_other_names_do_not_count() -> None:
    """Only siblings are compared."""
    assert telling(["a", "b"], [{"lr": 0.1}, {"lr": 0.2}]) == ["a", "b"]


def test_order_is_that_of_appearance() -> None:
    """Fields stand as the plugin declares them."""
    assert differing([{"b": 1, "a": 1}, {"b": 2, "a": 2}]) == ["b", "a"]
