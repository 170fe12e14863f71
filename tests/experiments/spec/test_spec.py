"""Specs: the meaning of entries, and all problems reported at once with their lines."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
from pydantic import ValidationError

from tests.experiments.spec_texts import TINY, problems, with_lines
from wmarena import ExperimentSpec, SpecError
from wmarena.attacks.chain import Chain
from wmarena.attacks.compression.pruning import PruneWeights
from wmarena.attacks.knowledge import Budget
from wmarena.attacks.overwriting.overwrite import Overwrite
from wmarena.attacks.tuning.finetune import FineTune
from wmarena.experiments.spec.entries import AttackEntry, EntryReader
from wmarena.experiments.spec.experiment import SHIPPED
from wmarena.experiments.workloads.images.digits import DigitsMlp
from wmarena.schemes.params import Configurable, param
from wmarena.schemes.uchida import Uchida


def attacks(block: str, *overrides: str) -> list[AttackEntry]:
    """The attacks that an ``attacks:`` block means."""
    return list(ExperimentSpec.parse(with_lines(attacks=block), overrides=overrides).attacks)


# What entries mean


def test_entries_become_plugins_with_all_defaults() -> None:
    """A parsed spec holds configured plugins, not mappings."""
    spec = ExperimentSpec.parse(TINY)

    assert (DigitsMlp(epochs=1, train_size=200),) == spec.workloads
    assert (Uchida(bits=24),) == spec.schemes
    assert [FineTune(epochs=1), FineTune(epochs=2)] == [a.attack for a in spec.attacks]
    assert {Budget()} == {a.budget for a in spec.attacks}


def test_a_name_alone_is_an_entry() -> None:
    """``schemes: [uchida]`` takes every default."""
    assert (Uchida(),) == ExperimentSpec.parse(with_lines(schemes="schemes: [uchida]")).schemes


def test_grids_multiply() -> None:
    """Two lists in one entry give every pair, the last field fastest."""
    found = [a.attack for a in attacks("attacks: [{name: finetune, variant: [ftll, ftal], epochs: [1, 5]}]")]

    assert [(a.variant, a.epochs) for a in found] == [("ftll", 1), ("ftll", 5), ("ftal", 1), ("ftal", 5)]


def test_grids_inside_chains_multiply() -> None:
    """Every combination of the parts' grids is a chain."""
    block = "attacks: [{chain: [{name: prune_weights, sparsity: [0.2, 0.5]}, {name: finetune, epochs: [1, 2]}]}]"
    found = [a.attack for a in attacks(block)]

    assert [Chain(attacks=(PruneWeights(sparsity=s), FineTune(epochs=e))) for s in (0.2, 0.5) for e in (1, 2)] == found


def test_a_scheme_inside_an_attack_is_an_entry_with_grids() -> None:
    """``overwrite`` may name a scheme, a grid of one, or a list of schemes."""
    one = attacks("attacks: [{name: overwrite, scheme: {name: uchida, bits: [24, 32]}}]")
    listed = attacks("attacks: [{name: overwrite, scheme: [uchida, {name: uchida, bits: 32}]}]")

    assert [Overwrite(scheme=Uchida(bits=b)) for b in (24, 32)] == [a.attack for a in one]
    assert [Overwrite(scheme=Uchida()), Overwrite(scheme=Uchida(bits=32))] == [a.attack for a in listed]


@dataclass(frozen=True, kw_only=True)
class Shapes(Configurable):
    """A plugin whose fields are lists themselves."""

    name: ClassVar[str] = "shapes"

    milestones: tuple[int, ...] = param((), doc="a list of integers", stage="train", low=1)
    maybe: tuple[int, ...] | None = param(None, doc="a list or nothing", stage="train")
    width: int = param(3, doc="a scalar", stage="train", low=1)


def shapes(**fields: object) -> list[Shapes]:
    """The configurations that fields mean; fails on problems."""
    reader = EntryReader()
    found = reader.configured(Shapes, fields, ("x",))
    assert reader.problems == []
    return found


def test_for_a_list_typed_field_a_list_of_lists_is_the_grid() -> None:
    """A flat list is one value; so is an empty one."""
    assert [s.milestones for s in shapes(milestones=[20, 40])] == [(20, 40)]
    assert [s.milestones for s in shapes(milestones=[])] == [()]
    assert [s.milestones for s in shapes(milestones=[[20], [20, 40]])] == [(20,), (20, 40)]
    assert [s.maybe for s in shapes(maybe=[None, [1]])] == [None, (1,)]


def test_the_adversary_is_a_default_that_attacks_override() -> None:
    """Fields of the adversary stand beside an attack's own, or in its ``adversary``; both may be grids."""
    block = """
    adversary: {data_fraction: 0.2, max_drop: 0.1}
    attacks:
      - {name: finetune, epochs: 1}
      - {name: finetune, epochs: 2, data_fraction: [0.1, 0.5]}
      - {name: finetune, epochs: 3, adversary: {max_drop: 0.02}}
    """
    found = [a.budget for a in attacks(block)]

    assert [
        Budget(data_fraction=0.2, max_drop=0.1),
        Budget(data_fraction=0.1, max_drop=0.1),
        Budget(data_fraction=0.5, max_drop=0.1),
        Budget(data_fraction=0.2, max_drop=0.02),
    ] == found


def test_an_attacks_own_field_wins_over_the_adversarys_of_the_same_name() -> None:
    """``fine_prune`` has a ``max_drop`` of its own: beside its name it means that one."""
    (found,) = attacks("attacks: [{name: fine_prune, max_drop: 0.02, adversary: {max_drop: 0.2}}]")

    assert found.attack.max_drop == 0.02
    assert found.budget.max_drop == 0.2


def test_the_first_workload_with_data_is_taken(tmp_path: Path) -> None:
    """Without Fashion-MNIST the bundled digits are used, with a note."""
    text = with_lines(workloads="workloads: [{first_available: [nowhere, {name: digits_mlp, epochs: 2}]}]")
    text = text.replace("nowhere", "cifar10_resnet18")
    spec = ExperimentSpec.parse(text, data_root=tmp_path)

    assert [DigitsMlp(epochs=2)] == list(spec.workloads)
    assert spec.notes == ("workload digits_mlp: no data for cifar10_resnet18 here",)


def test_plugins_can_be_given_as_objects() -> None:
    """The Python API takes configured plugins, mappings and names alike."""
    spec = ExperimentSpec(
        name="api",
        workloads=[DigitsMlp(epochs=2)],
        schemes=[Uchida(bits=24), {"name": "uchida", "bits": 32}],
        attacks=[FineTune(epochs=3), "spoil"],
        seeds=(1, 2),
    )

    assert [s.name for s in spec.schemes] == ["uchida", "uchida"]
    assert [a.attack.name for a in spec.attacks] == ["finetune", "spoil"]


def test_a_spec_made_in_python_is_reproducible_as_text() -> None:
    """``spec.text`` is YAML that means the same."""
    spec = ExperimentSpec(name="api", workloads=["digits_mlp"], schemes=["uchida"], attacks=["overwrite"], seeds=(3,))

    assert spec.digest == ExperimentSpec.parse(spec.text).digest


def test_the_text_is_what_was_read() -> None:
    """Comments are kept; with overrides, the text is the changed spec."""
    commented = TINY + "# a note\n"

    assert commented == ExperimentSpec.parse(commented).text
    changed = ExperimentSpec.parse(commented, overrides=["seeds=[7]"])
    assert ExperimentSpec.parse(changed.text).seeds == (7,)


def test_the_order_of_fields_means_nothing() -> None:
    """Permuted fields, the same digest."""
    blocks = TINY.replace("{name: uchida, bits: 24}", "{bits: 24, name: uchida}")
    reordered = "seeds: [0]\n" + blocks.replace("seeds: [0]\n", "")

    assert ExperimentSpec.parse(TINY).digest == ExperimentSpec.parse(reordered).digest


def test_the_key_root_is_relative_to_the_spec(tmp_path: Path) -> None:
    """``keys: {root: secret}`` beside the spec means the file beside the spec."""
    path = tmp_path / "spec.yaml"
    path.write_text(TINY + "keys: {root: secret.bin}\n")
    spec = ExperimentSpec.load(path)

    assert spec.keys is not None
    assert tmp_path / "secret.bin" == spec.keys.root


@pytest.mark.parametrize("name", SHIPPED.names())
def test_shipped_specs_are_valid(name: str) -> None:
    """Every shipped spec loads by its bare name, which is its own name too."""
    assert name == ExperimentSpec.load(name).name


PROFILES = [(name, profile) for name in SHIPPED.names() for profile in ExperimentSpec.load(name).profiles]


@pytest.mark.parametrize(("name", "profile"), PROFILES)
def test_profiles_of_shipped_specs_are_valid(name: str, profile: str) -> None:
    """Every profile of every shipped spec fits it and changes it."""
    assert ExperimentSpec.load(name, overrides=[f"profile={profile}"]) != ExperimentSpec.load(name)


def test_every_spec_of_a_paper_has_the_papers_size() -> None:
    """The profile of the specs that reproduce tables, and of the gauntlet, removes their limits."""
    lifted = {name for name, profile in PROFILES if profile == "paper"}

    assert lifted >= {n for n in SHIPPED.names() if n.endswith(("_tables", "_curves"))} | {"gauntlet_lite"}


def test_specs_of_every_size_are_shipped() -> None:
    """A demo, the whole of Fashion-MNIST, the papers' own setting."""
    assert {"quickstart", "fashion_core", "cifar10_core"} <= set(SHIPPED.names())


def test_a_file_wins_over_a_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file called like a shipped spec is the user's."""
    (tmp_path / "quickstart").write_text(TINY)
    monkeypatch.chdir(tmp_path)

    assert ExperimentSpec.load(SHIPPED.find("quickstart")).name == "tiny"


# What is wrong


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        ({"name": "name: a/b"}, "line 1: name: expected a name of letters"),
        ({"name": "nam: x"}, "did you mean 'name'"),
        ({"name": ""}, "name: expected a value, got nothing"),
        ({"seeds": ""}, "seeds: expected a value, got nothing"),
        ({"seeds": "seeds: []"}, "seeds: expected at least one seed, got an empty list"),
        ({"seeds": "seeds: [0, 1, 0]"}, "expected each seed once, got 0 again"),
        ({"seeds": "seeds: [-1]"}, "seeds[0]: expected a value of 0 or more, got -1"),
        ({"seeds": "seeds: [true]"}, "seeds[0]: expected an integer, got True"),
        ({"seeds": "seeds: 3"}, "seeds: expected a list, got 3"),
        ({"workloads": "workloads: []"}, "expected a list of workloads, got an empty list"),
        ({"schemes": "schemes: uchida"}, "expected a list of schemes, got 'uchida'"),
        ({"attacks": "attacks: []"}, "leave the field out to judge the marked models alone"),
        ({"workloads": "workloads: [digits_mpl]"}, "unknown workload 'digits_mpl'. Did you mean 'digits_mlp'?"),
        ({"schemes": "schemes: [{name: uchda}]"}, "unknown scheme 'uchda'. Did you mean 'uchida'?"),
        ({"attacks": "attacks: [{name: fintune}]"}, "unknown attack 'fintune'. Did you mean 'finetune'?"),
        ({"schemes": "schemes: [{name: uchida, lamda1: 0.1}]"}, "schemes[0].lamda1: unknown field; did you mean 'lam"),
        ({"attacks": "attacks: [{name: spoil, data_fractoin: 0.1}]"}, "did you mean 'data_fraction'"),
        ({"schemes": "schemes: [{bits: 3}]"}, "expected `name:` with the name of a scheme, got nothing"),
        ({"schemes": "schemes: [{name: [uchida, adi]}]"}, "expected `name:` with the name of a scheme, got ['uchida'"),
        ({"schemes": "schemes: [3]"}, "expected {name: ...} or the name of a scheme, got 3"),
        ({"schemes": "schemes: [{name: uchida, bits: many}]"}, "schemes[0].bits: expected an integer, got str 'many'"),
        ({"schemes": "schemes: [{name: uchida, bits: 4.5}]"}, "expected an integer, got float 4.5"),
        ({"schemes": "schemes: [{name: uchida, bits: true}]"}, "expected an integer, got bool True"),
        ({"schemes": "schemes: [{name: uchida, lambda1: .nan}]"}, "expected a finite number"),
        ({"schemes": "schemes: [{name: uchida, bits: [24, 3]}]"}, "schemes[0].bits[1]: expected a value in [20, inf)"),
        ({"schemes": "schemes: [{name: uchida, bits: []}]"}, "schemes[0].bits: expected at least one value, got an em"),
        ({"schemes": "schemes: [{name: uchida, bits: [24, 24]}]"}, "got one twice in this entry's own grid"),
        (
            {"schemes": "schemes:\n  - uchida\n  - {name: uchida, bits: 128}"},
            "same configuration as schemes[0] (line 5)",
        ),
        ({"attacks": "attacks: [{name: spoil, max_drop: [0.1, 0.2]}]"}, "max_drop"),
        ({"attacks": "attacks: [{chain: [finetune]}]"}, "expected two attacks or more, got 1"),
        ({"attacks": "attacks: [{chain: []}]"}, "expected two attacks or more, got 0"),
        ({"attacks": "attacks: [{chain: 3}]"}, "attacks[0].chain: expected a list of attacks, got 3"),
        ({"attacks": "attacks: [{chain: [finetune, {name: fnetune}]}]"}, "attacks[0].chain[1].name: unknown attack"),
        (
            {"attacks": "attacks: [{chain: [finetune, {name: spoil, max_drop: 1}]}]"},
            "attacks[0].chain[1].max_drop: expected the adversary's fields beside `chain:`",
        ),
        (
            {"attacks": "attacks: [{name: spoil, max_drop: 0.1, adversary: {max_drop: 0.2}}]"},
            "attacks[0].adversary.max_drop: expected it once, got it also at attacks[0].max_drop",
        ),
        ({"attacks": "attacks: [{name: spoil, adversary: 3}]"}, "expected fields of the adversary, got 3"),
        (
            {"attacks": "attacks: [{name: finetune, strength: {bisect: epochs, low: 50, high: 1}}]"},
            "expected numbers low < high, got low: 50, high: 1",
        ),
        ({"adversary": "adversary: {data_fraction: 0}"}, "adversary.data_fraction: expected a value in (0, 1], got 0"),
        ({"only": "only: {uchida: [digits_mpl]}"}, "did you mean 'digits_mlp'"),
        ({"only": "only: {uchida: 3}"}, "expected a list of names, got 3"),
        ({"only": "only: 3"}, "expected names with lists of names"),
        ({"calibration": "calibration: {models: 0}"}, "expected a value of 1 or more, got 0"),
        ({"adversary": "adversary: {max_epochs: 0}"}, "adversary.max_epochs: expected a value in [1, inf)"),
        ({"adversary": "adversary: {fraction: 1}"}, "did you mean 'data_fraction'"),
        ({"executor": "executor: {worker: 2}"}, "executor.worker: unknown field; did you mean 'workers'?"),
        ({"executor": "executor: {workers: 0}"}, 'expected "auto" or an integer from 1 to 10000, got 0'),
        ({"executor": "executor: {workers: 1.5}"}, 'expected "auto" or an integer from 1 to 10000, got 1.5'),
        ({"executor": "executor: {gpus_per_worker: -1}"}, 'expected "auto" or a number from 0 to 1024, got -1'),
        ({"executor": "executor: {task_timeout_s: 0}"}, "expected a value above 0, got 0"),
        ({"executor": "executor: {max_retries: -1}"}, "expected a value of 0 or more, got -1"),
        ({"executor": "executor: 3"}, "executor: expected a mapping of fields, got 3"),
        ({"keys": "keys: {rot: x}"}, "did you mean 'root'"),
        ({"keys": "keys: {root: 3}"}, "expected the path of a secret file, got 3"),
        ({"workloads": "workloads: [{first_available: []}]"}, "expected a list of workloads, got []"),
        ({"workloads": "workloads: [{first_available: [digits_mlp, digits_mpl]}]"}, "Did you mean 'digits_mlp'?"),
        ({"workloads": "workloads: [{first_available: [digits_mlp], epochs: 3}]"}, "expected nothing beside"),
    ],
)
def test_every_problem_is_reported(blocks: dict[str, str], expected: str) -> None:
    """Each mistake gives one problem with its location, what was expected and what was got."""
    found = problems(with_lines(**blocks))

    assert any(expected in line for line in found), found


def test_all_problems_are_reported_at_once_in_the_order_of_lines() -> None:
    """Six mistakes in six places give six messages with their lines."""
    text = """\
name: tiny
desciption: six mistakes
workloads: [{name: digits_mlp, epochs: 0}]
schemes:
  - {name: uchida, lamda1: 0.1}
attacks:
  - {name: finetune, epochs: [1, -2]}
  - {name: prune_wieghts}
seeds: [0, -1]
"""
    lines = [line.split(":")[0] for line in problems(text)]

    assert lines == ["line 2", "line 3", "line 5", "line 7", "line 8", "line 9"]


def test_an_overrides_mistake_is_reported_at_the_override() -> None:
    """The replaced line is not named."""
    (line,) = problems(TINY, "schemes.uchida.bits=3")

    assert line.startswith("--set schemes.uchida.bits=3: schemes[0].bits: expected a value in [20, inf)")


def test_a_huge_grid_is_refused_without_being_built() -> None:
    """Ten thousand configurations in one entry are a mistake."""
    ones = ", ".join(str(0.001 * i) for i in range(1, 200))
    found = problems(with_lines(schemes=f"schemes: [{{name: uchida, lambda1: [{ones}], lr: [{ones}]}}]"))

    assert found == ["line 4: schemes[0]: expected at most 10000 configurations in one entry, got a grid of 39601"]


@pytest.mark.parametrize("text", ["", "3", "[a, b]", "just words"])
def test_a_document_that_is_no_mapping_is_refused(text: str) -> None:
    """The message says what the top of a spec looks like."""
    (line,) = problems(text)

    assert "expected a mapping with name, workloads, schemes, seeds" in line


def test_an_unknown_spec_names_the_shipped_ones() -> None:
    """A mistyped bare name gets the nearest."""
    with pytest.raises(SpecError, match=r"got 'quikstart': unknown spec; did you mean 'quickstart'\?"):
        ExperimentSpec.load("quikstart")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 are no spec."""
    path = tmp_path / "spec.yaml"
    path.write_bytes(b"\xff\xfe\x00name")

    with pytest.raises(SpecError, match="expected a readable UTF-8 file"):
        ExperimentSpec.load(path)


def test_the_python_api_reports_all_problems_too() -> None:
    """Wrong objects raise pydantic's error with one entry for each problem, at its path."""
    with pytest.raises(ValidationError) as caught:
        ExperimentSpec(name="x", workloads=["digits_mlp"], schemes=[{"name": "uchida", "bits": [3, 4]}], seeds=())

    assert [e["loc"] for e in caught.value.errors()] == [
        ("schemes", 0, "bits", 0),
        ("schemes", 0, "bits", 1),
        ("seeds",),
    ]


def test_importing_the_package_loads_no_plugin() -> None:
    """Workers import ``wmarena.experiments.workloads``; the package itself must load quickly."""
    import subprocess
    import sys

    code = "import sys, wmarena; print([m for m in ('torch', 'pydantic', 'yaml', 'ray') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
