"""Study specifications: valid ones, and the messages for invalid ones."""

from pathlib import Path

import pytest

from tests.experiments.study.texts import TINY, problems, with_parts
from wmarena.experiments.spec.problems import SpecError
from wmarena.experiments.study.measures import MEASURES
from wmarena.experiments.study.spec import SHIPPED, StudySpec
from wmarena.experiments.study.words import meant
from wmarena.orchestrator.plan.proposals import Range


@pytest.mark.parametrize("name", SHIPPED.names())
def test_shipped_studies_are_valid(name: str) -> None:
    """Each is valid with its experiment and its search, also without data."""
    study = StudySpec.load(name)
    assert study.name == name
    assert study.description


def test_all_problems_are_reported_at_once_with_their_lines() -> None:
    """Typos, ranges, measures and limits are reported together."""
    found = problems(
        with_parts(
            search="search:\n  schemes.uchida.lambda1: {low: 1, high: 0.1}\n  schemes.uchida.bit: {low: 24, high: 30}",
            objectives="objectives: {margn: maximize}",
            constraints="constraints: [fidelity_drop < 0.1]",
            trails="trails: 3",
        )
    )
    text = "\n".join(found)
    assert len(found) == 4
    assert "expected numbers low < high, got low: 1, high: 0.1" in text
    assert "unknown measure; did you mean 'margin'?" in text
    assert "expected `measure <= number` or `measure >= number`, got 'fidelity_drop < 0.1'" in text
    assert "unknown field; did you mean 'trials'?" in text
    assert all(line.startswith("line ") for line in found)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("schemes.uchida.bit: {low: 24, high: 30}", "unknown field; did you mean 'bits'?"),
        ("schemes.uchida.bits: {low: 10, high: 30}", "10 cannot be tried: expected a value in [20, inf)"),
        ("schemes.mtlsign.lambda1: {low: 0, high: 1}", "unknown entry"),
        ("schemes.uchida.projection: {choices: [random, randm]}", "'randm' cannot be tried"),
        ("schemes.uchida.lambda1: {low: 0, high: 1, log: true}", "expected low above 0"),
        ("gamma: {low: 0.5, high: 1.5}", "expected γ within [0, 1]"),
        ("schemes.uchida.gamma: {low: 0.5, high: 0.9}", "expected `gamma` by itself"),
    ],
)
def test_a_search_is_checked_against_the_experiment(part: str, said: str) -> None:
    """The experiment's problem with a value is reported at the range's line."""
    (found,) = problems(with_parts(search=f"search:\n  {part}"))
    assert said in found
    assert found.startswith("line ")


def test_whole_ends_over_a_field_of_numbers_search_numbers() -> None:
    """``{low: 0, high: 1}`` over λ means the interval, over bits two integers."""
    text = "search:\n  schemes.uchida.lambda1: {low: 0, high: 1}\n  schemes.uchida.bits: {low: 24, high: 30}"
    space = StudySpec.parse(with_parts(search=text)).space
    assert space["schemes.uchida.lambda1"] == Range(low=0, high=1)
    assert space["schemes.uchida.bits"] == Range(low=24, high=30, whole=True)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"pruner": "pruner: median", "objectives": "objectives: {margin: maximize, accuracy: maximize}"}, "no others"),
        ({"sampler": "sampler: grid"}, "expected a step or choices for a grid"),
        ({"trials": ""}, "expected a number of trials"),
        ({"objectives": "objectives: {margin(fine_prune): maximize}"}, "unknown attack of the experiment"),
        ({"objectives": "objectives: {accuracy(finetune): maximize}"}, "expected accuracy without an attack"),
        ({"objectives": "objectives: {margin: up}"}, "expected maximize or minimize for margin, got 'up'"),
        ({"storage": "storage: redis://x"}, "expected sqlite:///FILE or postgresql://USER@HOST/DATABASE"),
        ({"storage": "storage: postgresql://me:secret@host/db"}, "PGPASSWORD"),
        ({"experiment": "experiment: quickstrt"}, "did you mean 'quickstart'?"),
        ({"experiment": "experiment: 3"}, "expected an experiment"),
    ],
)
def test_contradictory_fields_are_refused(parts: dict[str, str], said: str) -> None:
    """One line names what was expected."""
    assert said in "\n".join(problems(with_parts(**parts)))


def test_problems_of_the_experiment_keep_their_lines() -> None:
    """An inline experiment is part of the study's text."""
    (found,) = problems(TINY.replace("bits: 64", "bits: 2"))
    assert found == "line 4: experiment.schemes[0].bits: expected a value in [20, inf), got 2"


def test_an_experiment_may_be_a_file_beside_the_study(tmp_path: Path) -> None:
    """Its path is relative to the study; the study's seeds replace its own."""
    inner = "\n".join(line.removeprefix("  ") for line in TINY.split("search:")[0].splitlines()[2:])
    (tmp_path / "inner.yaml").write_text(f"name: inner\n{inner}\n")
    path = tmp_path / "study.yaml"
    path.write_text(with_parts(experiment="experiment: inner.yaml", seeds="seeds: [4, 5]"))
    study = StudySpec.load(path)

    assert study.question.spec.name == "inner"
    assert study.question.spec.seeds == (4, 5)


def test_an_unknown_study_gets_the_nearest_name() -> None:
    """The nearest name is suggested."""
    with pytest.raises(SpecError, match="did you mean 'digits_lambda'"):
        SHIPPED.find("digit_lambda")


def test_choices_may_be_whole_attacks() -> None:
    """The order of a chain is a choice among lists; Optuna keeps them as text."""
    choices = "[[{name: quantize}, {name: prune_weights}], [{name: prune_weights}, {name: quantize}]]"
    text = with_parts(search=f"search:\n  attacks[1].chain: {{choices: {choices}}}").replace(
        "epochs: [1, 2]}]", "epochs: [1, 2]}, {chain: [{name: quantize}, {name: prune_weights}]}]"
    )
    study = StudySpec.parse(text)
    (part,) = study.space.values()
    orders = [[a["name"] for a in meant(option)] for option in part.values or ()]

    assert orders == [["quantize", "prune_weights"], ["prune_weights", "quantize"]]
    labels = {study.question.with_params({"attacks[1].chain": v}).attacks[-1].attack.label for v in part.values or ()}
    assert labels == {"quantize+prune_weights", "prune_weights+quantize"}


def test_every_measure_has_a_description() -> None:
    """The report uses it to explain objectives."""
    assert all(measure.doc for measure in MEASURES.values())


def test_the_how_to_explains_every_measure() -> None:
    """In the words of the code, pipes escaped."""
    page = (Path(__file__).parents[3] / "docs" / "howto" / "tune.md").read_text(encoding="utf-8")
    for name, measure in MEASURES.items():
        assert f"| `{name}` | {measure.doc.replace('|', chr(92) + '|')} |" in page
