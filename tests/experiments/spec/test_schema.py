"""The JSON Schema accepts valid specs and rejects what the reader refuses."""

import json
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from tests.experiments.spec_texts import TINY, with_lines
from wmarena.experiments.cli import main
from wmarena.experiments.spec.experiment import SHIPPED, ExperimentSpec
from wmarena.experiments.spec.schema import json_schema
from wmarena.orchestrator.plan.plugins import names, plugin_class


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    """A validator of specs."""
    schema = json_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def fits(validator: Draft202012Validator, text: str) -> bool:
    """True if the schema accepts a spec."""
    return bool(validator.is_valid(yaml.safe_load(text)))


@pytest.mark.parametrize("name", SHIPPED.names())
def test_shipped_specs_fit(validator: Draft202012Validator, name: str) -> None:
    """The schema accepts all shipped specs."""
    assert fits(validator, SHIPPED.find(name).read_text())


@pytest.mark.parametrize(
    "blocks",
    [
        {"schemes": "schemes: [uchida]"},
        {"schemes": "schemes: [{name: uchida, bits: [24, 32]}]"},
        {"workloads": "workloads: [{first_available: [fashion_lenet5, {name: digits_mlp, epochs: 2}]}]"},
        {"workloads": "workloads: [{name: digits_mlp, schedule: step, milestones: [[1], [2]]}]"},
        {"attacks": "attacks: [{chain: [finetune, {name: prune_weights, sparsity: 0.5}], data_fraction: 0.2}]"},
        {"attacks": "attacks: [{name: overwrite, scheme: {name: uchida}, adversary: {max_drop: 0.1}}]"},
        {"executor": "executor: {workers: auto, gpus_per_worker: 0.5, task_timeout_s: 10, max_retries: 0}"},
        {"profiles": "profiles: {paper: {seeds: [0, 1]}}"},
    ],
)
def test_valid_specs_fit(validator: Draft202012Validator, blocks: dict[str, str]) -> None:
    """Names, grids, choices, chains, nested schemes, profiles."""
    text = with_lines(**blocks)
    ExperimentSpec.parse(text)

    assert fits(validator, text)


@pytest.mark.parametrize(
    "blocks",
    [
        {"schemes": "schemes: [uchda]"},
        {"schemes": "schemes: []"},
        {"schemes": "schemes: [{name: uchida, bits: 3}]"},
        {"schemes": "schemes: [{name: uchida, lamda1: 3}]"},
        {"schemes": "schemes: [{name: uchida, projection: odd}]"},
        {"attacks": "attacks: [{name: prune_weights, sparsity: 1}]"},
        {"attacks": "attacks: [{chain: [finetune]}]"},
        {"adversary": "adversary: {data_fraction: 0}"},
        {"executor": "executor: {workers: 0}"},
        {"seeds": "seeds: [-1]"},
        {"seeds": "seeds: [0, 0]"},
        {"seeds": ""},
        {"extra": "extra: 1"},
    ],
)
def test_invalid_specs_do_not_fit(validator: Draft202012Validator, blocks: dict[str, str]) -> None:
    """Unknown names and fields, wrong ranges, empty lists, missing blocks."""
    assert fits(validator, TINY)
    assert not fits(validator, with_lines(**blocks))


def test_every_field_of_every_plugin_is_described() -> None:
    """A field's meaning and range stand in the schema, so that editors can show them."""
    definitions = json_schema()["$defs"]
    for kind in ("workload", "scheme", "attack"):
        titled = {form["title"].split()[1]: form for form in definitions[kind]["anyOf"] if "title" in form}
        for name in names(kind):
            for field, info in plugin_class(kind, name).parameters().items():
                assert info.doc in titled[name]["properties"][field]["description"]


def test_top_level_fields_are_those_of_the_spec() -> None:
    """The schema and the model cannot drift apart."""
    assert set(ExperimentSpec.model_fields) == set(json_schema()["properties"])


def test_the_command_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    """``wmarena schema`` is one JSON document."""
    status = main(["schema"])
    document: dict[str, Any] = json.loads(capsys.readouterr().out)

    assert (0, json_schema()) == (status, document)
