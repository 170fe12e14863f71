"""A configuration is typed, ranged and complete; all problems are reported at once."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wmarena.schemes.params import STAGE_ORDER, ConfigError, Configurable, Param, Stage, coerce, param


@dataclass(frozen=True, kw_only=True)
class Part(Configurable):
    """A part."""

    name: ClassVar[str] = "part"

    size: int = param(1, doc="size", stage="key")
    gamma: float = param(0.7, doc="threshold", stage="verify")


@dataclass(frozen=True, kw_only=True)
class Whole(Configurable):
    """First line.

    More lines.
    """

    name: ClassVar[str] = "whole"

    count: int = param(doc="count", stage="train", low=1, high=9)
    rate: float = param(0.5, doc="rate", stage="key", low=0, high=1, low_open=True)
    word: Literal["left", "right"] = param("left", doc="side", stage="embed", choices=("left", "right"))
    epochs: int | None = param(None, doc="epochs", stage="embed", low=1)
    steps: tuple[int, ...] = param((), doc="milestones", stage="attack", low=1)
    part: Part | None = param(None, doc="a part", stage="attack", strength=True)
    flag: bool = param(False, doc="flag", stage="verify")
    limit: float = param(1.0, doc="limit", stage="verify")

    def problems(self) -> Iterable[tuple[str, str]]:
        if self.word == "right" and self.flag:
            yield "flag", "expected false on the right, got true"


def problems_of(**fields: Any) -> dict[str, str]:
    """Field -> message of the error that ``Whole`` raises."""
    with pytest.raises(ConfigError) as caught:
        Whole(**{"count": 1, **fields})
    assert caught.value.problems
    return dict(caught.value.problems)


whole = st.builds(
    Whole,
    count=st.integers(1, 9),
    rate=st.floats(0, 1, exclude_min=True),
    word=st.sampled_from(["left", "right"]),
    epochs=st.none() | st.integers(1, 100),
    steps=st.lists(st.integers(1, 99), max_size=3),
    part=st.none() | st.builds(Part, size=st.integers()),
    limit=st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False),
)


@settings(deadline=None)
@given(whole)
def test_configuration_comes_back_from_json(made: Whole) -> None:
    """``from_config`` undoes ``config``, through JSON text; a nested plugin is given as an object."""
    config = json.loads(json.dumps(made.config()))
    if made.part is not None:
        assert config["part"] == {"name": "part", "size": made.part.size}
        config["part"] = made.part

    assert Whole.from_config(config) == made


@settings(deadline=None)
@given(whole, st.sampled_from(STAGE_ORDER))
def test_until_keeps_the_fields_that_have_acted(made: Whole, stage: Stage) -> None:
    """What acts later is not part of an earlier stage's configuration; the name always is."""
    kept = made.config(until=stage)
    limit = STAGE_ORDER.index(stage)

    assert set(kept) == {"name"} | {n for n, p in Whole.parameters().items() if STAGE_ORDER.index(p.stage) <= limit}
    assert all(made.config()[name] == value for name, value in kept.items())


@pytest.mark.parametrize(
    ("fields", "wrong", "message"),
    [
        ({"count": 0}, "count", r"[1, 9], got 0"),
        ({"count": 10}, "count", r"[1, 9], got 10"),
        ({"count": 10**400}, "count", r"[1, 9]"),
        ({"count": 2.0}, "count", "expected an integer, got float 2.0"),
        ({"count": True}, "count", "expected an integer, got bool True"),
        ({"count": None}, "count", "expected an integer, got nothing"),
        ({"rate": 0}, "rate", "(0, 1], got 0.0"),
        ({"rate": math.nan}, "rate", "finite"),
        ({"rate": math.inf}, "rate", "finite"),
        ({"rate": 10**400}, "rate", "expected a number"),
        ({"rate": "0.5"}, "rate", "expected a number, got str '0.5'"),
        ({"rate": False}, "rate", "expected a number, got bool False"),
        ({"word": "up"}, "word", "left, right"),
        ({"word": []}, "word", "left, right"),
        ({"epochs": 0}, "epochs", "[1, inf), got 0"),
        ({"epochs": "many"}, "epochs", "expected an integer"),
        ({"steps": (3, 0)}, "steps", "[1, inf), got 0"),
        ({"steps": 3}, "steps", "expected a list"),
        ({"steps": "12"}, "steps", "expected a list"),
        ({"part": {"size": 1}}, "part", "expected Part"),
        ({"flag": 1}, "flag", "true or false"),
        ({"limit": None}, "limit", "expected a number, got nothing"),
        ({"word": "right", "flag": True}, "flag", "on the right"),
    ],
)
def test_wrong_values_are_refused(fields: dict[str, Any], wrong: str, message: str) -> None:
    """Each wrong value is refused with what was expected and what was got."""
    found = problems_of(**fields)

    assert set(found) == {wrong}
    assert message in found[wrong]


def test_all_problems_are_reported_at_once() -> None:
    """Three wrong fields, one error that names the three."""
    assert set(problems_of(count=0, rate=2, word="up")) == {"count", "rate", "word"}


def test_integers_become_numbers_and_lists_tuples() -> None:
    """The two conversions that YAML needs, so that 1 and 1.0 are the same configuration; no other."""
    made = Whole.from_config({"count": 1, "rate": 1, "steps": [1, 2]})

    assert (type(made.rate), made.steps) == (float, (1, 2))
    assert made == Whole(count=1, rate=1.0, steps=(1, 2))
    assert made.config()["steps"] == [1, 2]
    with pytest.raises(TypeError):
        coerce(int, 1.0)


def test_unknown_and_missing_fields_are_named() -> None:
    """A typing error shows the known names; a required field is asked for."""
    with pytest.raises(ConfigError, match="colour: unknown field; whole knows count, rate"):
        Whole.from_config({"count": 1, "colour": "red"})
    with pytest.raises(ConfigError, match="count: expected a value, got nothing"):
        Whole.from_config({"name": "whole"})


def test_fields_describe_themselves() -> None:
    """Ranges, defaults, types and the summary can be shown without an object."""
    assert Whole.parameters()["rate"].interval() == "(0, 1]"
    assert Whole.parameters()["count"].interval() == "[1, 9]"
    assert Whole.parameters()["limit"].interval() == ""
    assert Param("", "key", high=3).interval() == "(-inf, 3]"
    assert "count" not in Whole.defaults()
    assert Whole.defaults()["rate"] == 0.5
    assert Whole.annotations()["epochs"] == (int | None)
    assert Whole.summary() == "First line."
    assert [n for n, p in Whole.parameters().items() if p.strength] == ["part"]


def test_what_verifies_later_is_left_out_of_nested_plugins() -> None:
    """A nested plugin's threshold changes nothing that is computed with it now, so identities do not see it."""
    loose, strict = (Whole(count=1, part=Part(gamma=gamma)) for gamma in (0.6, 0.9))

    assert loose != strict
    assert loose.config() == strict.config()


def test_configuration_cannot_be_changed() -> None:
    """Frozen: what was validated stays valid."""
    with pytest.raises(AttributeError):
        Part().size = 2  # type: ignore[misc]
