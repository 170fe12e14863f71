"""YAML is read as data only, and every value has a line."""

import contextlib

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from wmarena.experiments.spec.problems import SpecError
from wmarena.experiments.spec.yaml_lines import MAX_CHARACTERS, MAX_DEPTH, read


def refusal(text: str) -> str:
    """Return the message that refuses ``text``."""
    with pytest.raises(SpecError) as caught:
        read(text)
    return str(caught.value)


def test_scalars_follow_the_core_schema_of_yaml_1_2() -> None:
    """1e-4 is a number, ``no`` and 1:30 are text, 010 is ten: none of YAML 1.1's surprises."""
    text = "[1e-4, 1E5, .5, -3, 010, no, on, 1:30, 2024-01-01, ~, true, '1', 1_000]"

    assert read(text).value == [0.0001, 1e5, 0.5, -3, 10, "no", "on", "1:30", "2024-01-01", None, True, "1", "1_000"]


def test_every_part_has_its_line() -> None:
    """Keys, values in blocks and values in flow style stand where they were written."""
    document = read("a: 1\nb:\n  - {c: 2,\n     d: 3}\n")

    assert document.place(("a",)) == "line 1"
    assert document.place(("b", 0, "c")) == "line 3"
    assert document.place(("b", 0, "d")) == "line 4"


def test_an_unknown_part_stands_where_its_ancestor_does() -> None:
    """A missing field is reported at the entry that lacks it."""
    document = read("a:\n  - {b: 1}\n")

    assert document.place(("a", 0, "missing", "deeper")) == "line 2"


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['true']",
        "!!python/name:os.system ''",
        "!!binary aGk=",
        "!!set {x}",
        "!mine 3",
        "!!timestamp 2024-01-01",
    ],
)
def test_tags_are_refused_with_line_and_column(tag: str) -> None:
    """Nothing in a document can name code or a type."""
    message = refusal(f"a: 1\nb: {tag}\n")

    assert "line 2, column 4" in message
    assert "without a tag" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\na: 2\n", "line 2, column 1"),
        ("a: [1,\n", "line 2, column 1"),
        ("a:\n\t- b\n", "line 2, column 1"),
        ("a: 1\n---\nb: 2\n", "line 2, column 1"),
        ("a: &x [*x]\n", "a[0]"),
        ("a: *nowhere\n", "line 1, column 4"),
        ("x: &x {a: 1}\ny:\n  <<: *x\n", "line 3, column 3"),
        ("? [1, 2]\n: 3\n", "expected a word before the colon"),
        ("a: \x00\n", "special characters"),
    ],
)
def test_unreadable_yaml_is_reported_with_its_location(text: str, expected: str) -> None:
    """Repeated keys, broken syntax, loops, merge keys: each refused at its place."""
    assert expected in refusal(text)


def test_an_alias_bomb_is_refused() -> None:
    """Ten levels of ten aliases each are refused without expansion."""
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]

    assert "once aliases are expanded" in refusal("\n".join(lines))


def test_deep_nesting_is_refused() -> None:
    """A document too deep for the recursive composer is refused before it."""
    assert f"at most {MAX_DEPTH} levels" in refusal("[" * 5000)


def test_an_oversized_document_is_refused() -> None:
    """A file that is no spec is not parsed at all."""
    assert "characters" in refusal("#" * (MAX_CHARACTERS + 1))


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    """The reader fails only with its own error, on any text."""
    with contextlib.suppress(SpecError):
        assert set(read(text).places) >= {()} or read(text).value is None


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), inner),
    max_leaves=8,
)


@given(PLAIN)
def test_what_is_dumped_is_read_back(value: object) -> None:
    """Text of ``ExperimentSpec.text`` is read back with the same meaning."""
    assert value == read(yaml.safe_dump(value)).value
