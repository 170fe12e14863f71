"""Specs: any file content gives a spec or a SpecError that names the fault."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.experiments.spec_texts import TINY
from tests.fuzz.mutations import VALUES, altered_bytes, altered_value, fenced
from wmarena.attacks import ATTACKS
from wmarena.experiments.commands.dispatch import INPUT_ERRORS
from wmarena.experiments.planning.expand import expand
from wmarena.experiments.spec.experiment import SHIPPED, ExperimentSpec
from wmarena.experiments.spec.problems import SpecError
from wmarena.experiments.spec.yaml_lines import MAX_CHARACTERS, MAX_DEPTH
from wmarena.experiments.workloads import WORKLOADS
from wmarena.orchestrator.plan.plugins import build, plugin_class
from wmarena.schemes import SCHEMES
from wmarena.schemes.params import Configurable

RICH = """\
name: everything
description: "What is said, and how: <b>?"
workloads: [{name: digits_mlp, epochs: 1, train_size: 200, reserve: 0.1}, {first_available: [digits_cnn]}]
schemes: [{name: uchida, bits: [24, 32]}, adi, {name: mtlsign, lambda1: 0.1}]
attacks:
  - {name: prune_weights, strength: {bisect: sparsity, low: 0.1, high: 0.99, steps: 3}}
  - {name: finetune, variant: [ftal, rtal], epochs: [1, 5], data_fraction: 0.2, adversary: {max_drop: 0.1}}
  - chain: [{name: prune_weights, sparsity: 0.5}, {name: finetune, variant: ftal, epochs: 2}]
  - {name: overwrite, scheme: {name: uchida, bits: 24}}
adversary: {data_fraction: 0.1, max_epochs: 50}
calibration: {models: 2, keys: 3}
only: {uchida: [digits_mlp]}
executor: {workers: 2, gpus_per_worker: auto, task_timeout_s: 60.0, max_retries: 1}
keys: {root: secret.bin, passphrase: words.txt}
profiles: {paper: {workloads.digits_mlp.epochs: 3, seeds: [0, 1]}}
seeds: [0, 1, 2]
"""
TEXTS = [TINY, RICH, *(p.read_text() for p in sorted(SHIPPED.folder.glob("*.yaml")))]


def parsed(text: str, folder: Path, *overrides: str) -> ExperimentSpec | None:
    """The spec, if it is one; a refusal can be printed."""
    try:
        with fenced(folder):
            spec = ExperimentSpec.parse(text, overrides=overrides, source=folder / "spec.yaml")
    except SpecError as error:
        assert len(str(error).encode()) < 100 * MAX_CHARACTERS
        assert error.problems
        return None
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,99}", spec.name)
    assert spec.text.encode()
    assert len(spec.digest) == 64
    return spec


@given(raw=st.sampled_from(TEXTS).flatmap(lambda text: altered_bytes(text.encode())))
def test_altered_files(raw: bytes, tmp_path: Path) -> None:
    """Flipped bits, cuts, anchors, tags, other encodings: read as a file by the name that a user gives."""
    path = tmp_path / "spec.yaml"
    path.write_bytes(raw)
    try:
        with fenced(tmp_path):
            ExperimentSpec.load(path)
    except SpecError as error:
        assert str(path) in str(error)


@given(document=altered_value(yaml.safe_load(RICH)) | altered_value(yaml.safe_load(TINY)))
def test_altered_documents(document: Any, tmp_path: Path) -> None:
    """Well-formed YAML with values of other types, sizes and names, fields missing or unknown."""
    text = json.dumps(document).replace("NaN", ".nan").replace("-Infinity", "-.inf").replace("Infinity", ".inf")
    parsed(text, tmp_path)


_PART = st.sampled_from(
    [
        "schemes",
        "uchida",
        "bits",
        "attacks",
        "[0]",
        "[99999999999]",
        ".",
        "..",
        "",
        "seeds",
        "profile",
        "x",
        "keys",
        "=",
        "]",
    ]
)


@given(
    overrides=st.lists(
        st.builds(lambda p, v: "".join(p) + "=" + v, st.lists(_PART, max_size=6), _PART | st.text()), max_size=3
    )
)
def test_any_overrides(overrides: list[str], tmp_path: Path) -> None:
    """``--set`` with paths that lead nowhere and values that are no YAML."""
    parsed(RICH, tmp_path, *overrides)


@given(document=altered_value(yaml.safe_load(TINY)))
def test_plans_of_altered_documents(document: Any, tmp_path: Path) -> None:
    """What passes as a spec can be planned, or is refused in our words."""
    text = json.dumps(document).replace("NaN", ".nan").replace("-Infinity", "-.inf").replace("Infinity", ".inf")
    spec = parsed(text, tmp_path)
    if spec is not None and all(w.name.startswith("digits") for w in spec.workloads):
        try:
            with fenced(tmp_path):
                plan = expand(spec).plan
        except INPUT_ERRORS:
            return
        assert all(re.fullmatch("[0-9a-f]{64}", task_id) for task_id in plan.tasks)


CONFIGS: list[tuple[str, dict[str, Any]]] = [
    *(("scheme", {"name": n, **plugin_class("scheme", n).defaults()}) for n in sorted(SCHEMES)),
    *(("attack", {"name": n, **plugin_class("attack", n).defaults()}) for n in sorted(ATTACKS)),
    *(("workload", {"name": n, **plugin_class("workload", n).defaults()}) for n in sorted(WORKLOADS)),
    ("attack", {"name": "overwrite", "scheme": {"name": "uchida", "bits": 24}}),
    ("attack", {"name": "chain", "attacks": [{"name": "finetune", "epochs": 1}, {"name": "prune_weights"}]}),
]


@given(data=st.data())
def test_altered_configurations(data: st.DataObject, tmp_path: Path) -> None:
    """A plugin's configuration, as keys and tasks hold it: the plugin, or what is wrong with which field."""
    kind, config = data.draw(st.sampled_from(CONFIGS))
    wrong = data.draw(altered_value(config) | st.sampled_from(VALUES))
    try:
        with fenced(tmp_path):
            made = build(kind, wrong)
    except INPUT_ERRORS:
        return
    assert isinstance(made, Configurable)


# What was found


LONG = "y" * 50_000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TINY + "keys: {root: '~nobody-of-that-name/x'}\n", "whose home folder is not known"),
        (TINY + 'description: "\\ud800"\n', "half of a surrogate pair"),
        (TINY + '"\\ud800": 1\n', "half of a surrogate pair"),
        (f"x: &x {LONG}\nschemes: [{'*x, ' * 100}]\n", "characters, got more once aliases are expanded"),
        (TINY + "executor: {workers: " + "9" * 300 + "}\n", "an integer from 1 to 10000"),
        (TINY + "executor: {gpus_per_worker: .inf}\n", "a number from 0 to 1024"),
    ],
    ids=["home", "surrogate", "surrogate-name", "long-aliases", "workers", "gpus"],
)
def test_found_in_specs(text: str, said: str, tmp_path: Path) -> None:
    """Regressions: tracebacks, or messages of gigabytes."""
    with pytest.raises(SpecError, match=re.escape(said)) as caught:
        ExperimentSpec.parse(text, source=tmp_path / "spec.yaml")

    assert len(str(caught.value)) < 1_000_000


@pytest.mark.parametrize(
    "override", [".".join("a" * 5000) + "=1", f"seeds[{'9' * 5000}]=1", f"seeds{'[0]' * MAX_DEPTH}[0]=1"], ids=len
)
def test_found_in_overrides(override: str) -> None:
    """Paths deeper than any document, and indices longer than any number."""
    with pytest.raises(SpecError, match="expected a dotted path"):
        ExperimentSpec.parse(TINY, overrides=[override])
