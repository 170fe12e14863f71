"""--set: the locations that a path selects, and the messages if it selects none."""

from typing import Any

import pytest

from wmarena.experiments.spec.overrides import apply
from wmarena.experiments.spec.problems import SpecError
from wmarena.experiments.spec.yaml_lines import read

TEXT = """\
workloads:
  - first_available: [{name: big}, {name: small, epochs: 3}]
schemes: [mtlsign, {name: adi, n: [1, 2]}, {name: adi, mode: scratch}]
attacks:
  - chain: [{name: prune, sparsity: 0.5}]
seeds: [0]
profiles:
  paper: {seeds: [0, 1, 2], schemes.mtlsign.n: 600}
"""


def changed(*overrides: str) -> Any:
    """The document's value after overrides."""
    return apply(read(TEXT), overrides).value


def refusal(*overrides: str) -> str:
    """The message for overrides that cannot be applied."""
    with pytest.raises(SpecError) as caught:
        changed(*overrides)
    return str(caught.value)


def test_a_name_means_every_entry_of_that_name() -> None:
    """schemes.adi.n=7 reaches both adi entries, and replaces a grid."""
    schemes = changed("schemes.adi.n=7")["schemes"]

    assert schemes == ["mtlsign", {"name": "adi", "n": 7}, {"name": "adi", "mode": "scratch", "n": 7}]


def test_an_entry_that_was_only_a_name_gets_fields() -> None:
    """schemes.mtlsign.n=7 turns the word into an entry."""
    assert changed("schemes.mtlsign.n=7")["schemes"][0] == {"name": "mtlsign", "n": 7}


def test_an_index_means_one_entry() -> None:
    """Elements of lists, also of grids and chains, are reached by number."""
    value = changed("schemes[1].n[0]=9", "attacks[0].chain[0].sparsity=0.9")

    assert value["schemes"][1]["n"] == [9, 2]
    assert value["attacks"][0]["chain"][0]["sparsity"] == 0.9


def test_choices_of_first_available_are_reached_by_name() -> None:
    """A choice's fields can be set before it is chosen."""
    choices = changed("workloads.small.epochs=1")["workloads"][0]["first_available"]

    assert choices == [{"name": "big"}, {"name": "small", "epochs": 1}]


def test_missing_blocks_are_made() -> None:
    """executor.workers=2 works without an executor block."""
    assert changed("executor.workers=2")["executor"] == {"workers": 2}


def test_a_profile_comes_before_single_values() -> None:
    """--set seeds=[5] wins over the profile's seeds, whatever the order of the two."""
    value = changed("seeds=[5]", "profile=paper")

    assert value["seeds"] == [5]
    assert value["schemes"][0] == {"name": "mtlsign", "n": 600}


def test_the_last_override_wins() -> None:
    """Repeating a path replaces."""
    assert changed("seeds=[1]", "seeds=[2]")["seeds"] == [2]


def test_an_override_is_the_place_of_its_value() -> None:
    """What is wrong with an override is reported at the override, not at the line that it replaced."""
    document = apply(read(TEXT), ["schemes.adi.n=7"])

    assert document.place(("schemes", 1, "n")) == "--set schemes.adi.n=7"
    assert document.place(("schemes", 1, "n", 0)) == "--set schemes.adi.n=7"


def test_the_original_is_left_as_it_was() -> None:
    """Overrides work on a copy."""
    document = read(TEXT)
    apply(document, ["seeds=[9]", "schemes.adi.n=7"])

    assert read(TEXT) == document


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seeds", "expected path=value"),
        ("=3", "expected path=value"),
        ("seeds=[1,", "expected a value in YAML"),
        ("schemes.mtlsing.n=1", "did you mean 'mtlsign'"),
        ("schemes[9].n=1", "index below 3"),
        ("seeds[0].x=1", "got 0"),
        ("a..b=1", "expected a dotted path"),
        ("a[x]=1", "expected a dotted path"),
        ("profile=papr", "did you mean 'paper'"),
        ("name.x.y[0]=1", "expected"),
    ],
)
def test_an_invalid_override_is_reported(override: str, expected: str) -> None:
    """Each message names the override and the way out."""
    message = refusal(override)

    assert expected in message
    assert f"--set {override}" in message


def test_all_wrong_overrides_are_reported_at_once() -> None:
    """Two mistakes, two messages."""
    message = refusal("seeds", "schemes.mtlsing.n=1")

    assert "--set seeds" in message
    assert "mtlsing" in message
