"""Expansion: the tasks of a spec, their sharing, and the changes of their identities."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.experiments.spec_texts import TINY, blocks, with_lines, without_data
from wmarena.attacks.knowledge import Budget
from wmarena.experiments.planning.expand import EXTRA_SEED, Expansion, expand
from wmarena.experiments.planning.workload_planner import CodeDigests, WorkloadPlanner
from wmarena.experiments.spec.experiment import ExperimentSpec
from wmarena.experiments.spec.problems import SpecError
from wmarena.experiments.workloads.images.cifar import Cifar10ResNet18
from wmarena.experiments.workloads.images.digits import DigitsMlp
from wmarena.orchestrator.keys.derivation import KeyRoot
from wmarena.orchestrator.plan import identity
from wmarena.orchestrator.plan.plan import Cell, Plan
from wmarena.orchestrator.plan.task import Kind, Task
from wmarena.orchestrator.worker.roles import adversary_data
from wmarena.orchestrator.worker.workload import MissingData

RICH = """\
name: rich
workloads: [{name: digits_cnn, epochs: 1}]
schemes:
  - {name: mtlsign, n: 50, steps: 5}
  - {name: adi, n_triggers: 20}
  - {name: adi, n_triggers: 20, mode: scratch}
attacks:
  - {name: finetune, variant: [ftal, rtal], epochs: [2, 1, 5]}
  - {name: overwrite, lr: 1.0e-3}
  - {name: ambiguity, n_keys: 5}
  - chain: [{name: prune_weights, sparsity: 0.5}, {name: finetune, epochs: [1, 2]}]
seeds: [0, 1]
"""


def plan_of(text: str, *overrides: str) -> Plan:
    """The plan of a spec in text."""
    return expansion_of(text, *overrides).plan


def expansion_of(text: str, *overrides: str) -> Expansion:
    """The expansion of a spec in text."""
    return expand(ExperimentSpec.parse(text, overrides=overrides))


def changed(text: str, *overrides: str) -> Counter[str]:
    """How many tasks of each kind a spec's change takes away."""
    before, after = plan_of(text), plan_of(text, *overrides)
    return Counter(before.tasks[t].kind.value for t in before.tasks.keys() - after.tasks.keys())


def cells_where(plan: Plan, **facts: object) -> list[Cell]:
    """The rows for which all facts hold."""
    return [c for c in plan.cells if all(getattr(c, name) == value for name, value in facts.items())]


def task_called(plan: Plan, label: str) -> Task:
    """The one task of that label."""
    (found,) = [t for t in plan if t.label == label]
    return found


@pytest.fixture(scope="module")
def rich() -> Plan:
    """A plan with everything in it."""
    return plan_of(RICH)


# What is planned


def test_a_small_plan_has_exactly_the_expected_tasks() -> None:
    """One scheme, two strengths, one seed: every task, and nothing else."""
    labels = [t.label for t in plan_of(TINY)]

    assert [
        "attack/uchida/finetune-ftal/epochs=1/seed0",
        "attack/uchida/finetune-ftal/epochs=2/seed0",
        "embed/uchida/seed0",
        "train/clean/seed0",
        f"train/clean/seed{EXTRA_SEED}",
        "train/scratch/data_fraction=0.1,disjoint=False/seed0",
        "train/twin/adam,lr=0.001,steps=200/seed0",
        f"train/twin/adam,lr=0.001,steps=200/seed{EXTRA_SEED}",
        "verify/uchida/control-clean/seed0",
        "verify/uchida/control-null_model/seed0",
        "verify/uchida/control-stranger_key/seed0",
        "verify/uchida/finetune-ftal/epochs=1/seed0",
        "verify/uchida/finetune-ftal/epochs=2/seed0",
        "verify/uchida/none/seed0",
    ] == sorted(labels)


def test_configurations_hold_only_what_changes_the_result() -> None:
    """The identities that the store relies on, field by field."""
    plan = plan_of(TINY)
    root = KeyRoot.published().commitment
    clean, embed = task_called(plan, "train/clean/seed0"), task_called(plan, "embed/uchida/seed0")
    attack = task_called(plan, "attack/uchida/finetune-ftal/epochs=2/seed0")
    verify = task_called(plan, "verify/uchida/finetune-ftal/epochs=2/seed0")
    scratch = task_called(plan, "train/scratch/data_fraction=0.1,disjoint=False/seed0")

    assert {"workload", "recipe", "adversary"} == clean.config.keys() == scratch.config.keys()
    assert scratch.config["adversary"] == {"data_fraction": 0.1, "disjoint": False}
    assert {"workload", "scheme", "root"} == embed.config.keys()
    assert (("clean", clean.id),) == embed.parents
    assert root == embed.config["root"] == attack.config["root"]
    assert {"workload", "scheme", "attack", "adversary", "root"} == attack.config.keys()
    assert (("victim", embed.id),) == attack.parents
    assert {"workload", "scheme", "control", "head", "claim"} == verify.config.keys()
    assert (("suspect", attack.id), ("owner", embed.id)) == verify.parents


def test_every_row_has_its_own_verify_task(rich: Plan) -> None:
    """One row per verify task: none without a row, none with two."""
    verifies = [t.id for t in rich if t.kind is Kind.VERIFY]

    assert sorted(verifies) == sorted(c.verify for c in rich.cells)


def test_parents_are_planned_before_their_children(rich: Plan) -> None:
    """The order of tasks is one in which they could run."""
    place = {task_id: i for i, task_id in enumerate(rich.tasks)}

    assert all(place[before] < place[t.id] for t in rich for before in t.waits_for)


def test_every_scheme_gets_its_controls(rich: Plan) -> None:
    """Per scheme and seed: the owner's key on the twin and on an independent model, a stranger's key on the mark."""
    found = Counter((c.scheme, c.scheme_params.get("mode"), c.seed, c.control) for c in rich.cells if c.control)

    assert {1} == set(found.values())
    assert len(found) == 3 * 2 * 3


def test_the_null_model_is_the_next_seeds_twin(rich: Plan) -> None:
    """With two seeds each is the other's null model, and no model is trained for it."""
    for seed, other in ((0, 1), (1, 0)):
        (null,) = cells_where(rich, scheme="mtlsign", seed=seed, control="null_model")
        (twin,) = cells_where(rich, scheme="mtlsign", seed=other, control="clean")

        assert twin.suspect == null.suspect


def test_with_one_seed_a_null_model_is_trained_extra() -> None:
    """With one seed in the spec the null model has an extra seed."""
    plan = plan_of(TINY)
    (null,) = cells_where(plan, control="null_model")

    assert plan.tasks[null.suspect].seed == EXTRA_SEED


def test_a_scheme_from_scratch_is_compared_with_the_clean_model(rich: Plan) -> None:
    """Its twin is the clean model; schemes that go on from the clean model have a twin with a recipe."""
    clean = task_called(rich, "train/clean/seed0")
    twins = {
        (c.scheme, c.scheme_params.get("mode")): rich.tasks[c.clean] for c in cells_where(rich, seed=0, attack="none")
    }

    assert clean.id == twins["adi", "scratch"].id
    assert (("start", clean.id),) == twins["adi", "pretrained"].parents
    assert twins["adi", "pretrained"].config["recipe"]["optimiser"] == "adam"


def test_strengths_of_one_trajectory_wait_for_the_next_shorter(rich: Plan) -> None:
    """Asked for as 2, 1, 5 epochs: 5 waits for 2 waits for 1; a chain's parts share nothing."""
    one, two, five = (task_called(rich, f"attack/mtlsign/finetune-ftal/epochs={e}/seed0") for e in (1, 2, 5))
    chain = task_called(rich, "attack/mtlsign/prune_weights+finetune/epochs=2/seed0")

    assert [(), (one.id,), (two.id,), ()] == [one.after, two.after, five.after, chain.after]


def test_a_replaced_head_is_judged_twice_for_black_box_marks(rich: Plan) -> None:
    """rtal replaces the output layer: the owner of a trigger set also verifies with the original one."""
    heads = {s: {c.head for c in cells_where(rich, scheme=s, attack="finetune")} for s in ("adi", "mtlsign")}
    originals = cells_where(rich, head="original")

    assert {"adi": {"deployed", "original"}, "mtlsign": {"deployed"}} == heads
    assert {"rtal"} == {c.attack_params["variant"] for c in originals}


def test_claims_are_rows_of_their_own(rich: Plan) -> None:
    """Overwriting gives the owner's row and the pirate's, on one suspect; ambiguity the forger's alone, on the mark."""
    owner, pirate = cells_where(rich, scheme="mtlsign", attack="overwrite", seed=0)
    (forger,) = cells_where(rich, scheme="mtlsign", attack="ambiguity", seed=0)

    assert (owner.claim, pirate.claim, forger.claim) == (False, True, True)
    assert owner.suspect == pirate.suspect == owner.attack_task
    assert forger.suspect == forger.embed
    assert (("suspect", forger.suspect), ("claim", forger.attack_task)) == rich.tasks[forger.verify].parents
    assert (owner.scratch is not None, pirate.scratch, forger.scratch) == (True, None, None)


def test_a_claim_is_judged_by_the_scheme_that_makes_it() -> None:
    """Overwriting MTLSign's mark with Uchida's: the pirate's bits are read as bits."""
    plan = plan_of(with_lines(attacks="attacks: [{name: overwrite, scheme: {name: uchida, bits: 32}}]"))
    (pirate,) = cells_where(plan, claim=True)

    assert plan.tasks[pirate.verify].config["scheme"]["bits"] == 32
    assert pirate.scheme_params["bits"] == 24


def test_rows_carry_strengths_and_budgets(rich: Plan) -> None:
    """A chain is called by its parts, and its strength is that of the last part that has one."""
    chains = cells_where(rich, scheme="mtlsign", attack="prune_weights+finetune", seed=0)
    controls = [c for c in rich.cells if c.control]

    assert [(c.strength_name, c.strength) for c in chains] == [("epochs", 1.0), ("epochs", 2.0)]
    assert chains[0].budget == {
        "data_fraction": 0.1,
        "disjoint": False,
        "max_epochs": None,
        "max_queries": None,
        "max_drop": 0.05,
    }
    assert all(c.budget == {} and c.strength is None and c.scratch is None for c in controls)


def test_granted_epochs_shorten_attacks() -> None:
    """``max_epochs`` lowers the epochs of every attack, in chains and overwriting too; equal ones are run once."""
    text = with_lines(
        attacks="""
        attacks:
          - {name: finetune, epochs: [2, 5, 9], max_epochs: 3}
          - {name: overwrite, epochs: [2, 8], max_epochs: 3}
          - chain: [{name: prune_weights, sparsity: 0.5}, {name: finetune, epochs: 8}]
            max_epochs: 3
        """
    )
    plan = plan_of(text)
    attacks = {t.attack: [] for t in plan if t.kind is Kind.ATTACK}
    for task in plan:
        if task.kind is Kind.ATTACK:
            attacks[task.attack].append(task.config["attack"])

    assert [a["epochs"] for a in attacks["finetune"]] == [2, 3]
    assert [a["epochs"] for a in attacks["overwrite"]] == [2, 3]
    assert [a["attacks"][1]["epochs"] for a in attacks["prune_weights+finetune"]] == [3]


def test_only_restricts_pairs() -> None:
    """``only`` keeps a scheme to a workload, an attack to a scheme, and says nothing of the rest."""
    text = with_lines(
        workloads="workloads: [{name: digits_mlp, epochs: 1}, {name: digits_cnn, epochs: 1}]",
        schemes="schemes: [{name: uchida, bits: 24}, {name: adi, n_triggers: 20}]",
        attacks="attacks: [finetune, {name: prune_weights}]",
        only="only: {adi: [digits_cnn], prune_weights: [uchida]}",
    )
    met = {(c.workload, c.scheme, c.attack) for c in plan_of(text).cells if c.attack != "none"}

    assert met == {
        ("digits_mlp", "uchida", "finetune"),
        ("digits_mlp", "uchida", "prune_weights"),
        ("digits_cnn", "uchida", "finetune"),
        ("digits_cnn", "uchida", "prune_weights"),
        ("digits_cnn", "adi", "finetune"),
    }


def test_inapplicable_pairs_are_left_out_with_a_reason() -> None:
    """There is no forgery of Uchida's key: the pair is listed, not planned."""
    expansion = expansion_of(with_lines(attacks="attacks: [{name: ambiguity, level: [0, 2], n_keys: 5}]"))

    assert expansion.left_out == (
        "ambiguity-l2 against uchida on digits_mlp: uchida has no way to optimise a key (forge)",
    )
    assert {0} == {c.attack_params["level"] for c in cells_where(expansion.plan, attack="ambiguity")}


def test_the_owners_data_under_another_name_are_left_out() -> None:
    """Transfer and unlabelled images need another data set: the pair is listed with the way out, in chains too."""
    expansion = expansion_of(
        with_lines(
            attacks="""
            attacks:
              - {name: transfer, target: digits_cnn}
              - {name: refit, unlabelled: digits_mlp}
              - chain: [{name: prune_weights, sparsity: 0.5}, {name: transfer, target: digits_cnn}]
              - {name: finetune, epochs: 1}
            """
        )
    )
    reasons = [line.partition(" on digits_mlp: ")[2] for line in expansion.left_out]

    assert reasons == [
        f"{name} is the owner's own data set (digits); name a workload with another one"
        for name in ("digits_cnn", "digits_mlp", "digits_cnn")
    ]
    assert {"none", "finetune"} == {c.attack for c in expansion.plan.cells}


@pytest.mark.parametrize("fraction", [0.1, 0.137, 0.5, 1.0])
@pytest.mark.parametrize("disjoint", [False, True])
def test_budgets_count_the_samples_of_every_seed(fraction: float, disjoint: bool) -> None:
    """Planning counts the samples of every seed's adversary exactly, with rounding and one sample per class."""
    workload = DigitsMlp(train_size=700, reserve=0.3)
    planner = WorkloadPlanner(workload, label="", data_root=None, root="", code=CodeDigests())
    budget = Budget(data_fraction=fraction, disjoint=disjoint)
    bound = workload.bind(torch.device("cpu"), None)

    drawn = {len(adversary_data(bound, budget.config(), seed)[0]) for seed in range(3)}

    assert drawn == {planner.adversary_samples(budget)}


def test_spoiling_is_planned_for_all_batches_of_its_passes() -> None:
    """Of 30 samples ten are held out, one a class: two passes over 20 in batches of 6 or 5 are eight steps."""
    plan = plan_of(
        with_lines(
            workloads="workloads: [{name: digits_mlp, epochs: 1, train_size: 300}]",
            attacks="attacks: [{name: spoil, batch_size: [6, 5], max_epochs: 2}]",
        )
    )

    assert [t.config["attack"]["steps"] for t in plan if t.kind is Kind.ATTACK] == [8, 8]


def test_a_scheme_that_cannot_protect_a_workload_is_left_out() -> None:
    """Its rows are missing, and the plan says why."""
    from wmarena.schemes.uchida import Uchida

    class Picky(Uchida):
        def applicable(self, info: object) -> str | None:
            return "only for pictures of cats"

    spec = ExperimentSpec(name="x", workloads=["digits_mlp"], schemes=[Picky()], seeds=(0,))
    expansion = expand(spec)

    assert expansion.left_out == ("uchida on digits_mlp: only for pictures of cats",)
    assert len(expansion.plan) == 0


def test_two_workloads_share_nothing_and_have_labels() -> None:
    """Labels tell workloads and their variants apart where there are several."""
    plan = plan_of(TINY, "workloads.digits_mlp.epochs=[1, 2]")

    assert "embed/uchida/digits_mlp[epochs=2]/seed0" in {t.label for t in plan}
    assert sum(t.kind is Kind.EMBED for t in plan) == 2


def test_sharing_is_counted(rich: Plan) -> None:
    """Without sharing, every row would train, embed and attack for itself."""
    assert rich.requested == rich.shared + len(rich)
    assert rich.shared > len(rich)


def test_labels_are_distinct(rich: Plan) -> None:
    """A label names one task."""
    assert [label for label, n in Counter(t.label for t in rich).items() if n > 1] == []


# What changes an identity


def test_a_threshold_of_the_paper_changes_verifications_only() -> None:
    """gamma acts when a mark is verified: nothing is trained, embedded or attacked again."""
    assert {"verify"} == changed(RICH, "schemes.mtlsign.gamma=0.8").keys()


def test_two_thresholds_share_everything_before_the_verdict() -> None:
    """A grid over gamma adds verifications only."""
    one, two = plan_of(RICH).counts(), plan_of(RICH, "schemes.mtlsign.gamma=[0.7, 0.8]").counts()

    assert {**one, "verify": 0} == {**two, "verify": 0}


def test_an_embedding_weight_changes_the_mark_and_what_follows() -> None:
    """lambda1 acts on the embedding: clean models, twins and scratch models stay."""
    found = changed(RICH, "schemes.mtlsign.lambda1=0.5")

    assert "train" not in found
    assert found["embed"] == 2


def test_other_strengths_keep_their_identities() -> None:
    """Asking for one more strength, or one less, touches nothing else."""
    before = plan_of(TINY, "attacks.finetune.epochs=[1, 5]")
    after = plan_of(TINY, "attacks.finetune.epochs=[1, 2, 5, 9]")

    assert before.tasks.keys() < after.tasks.keys()


def test_the_allowed_drop_changes_no_task() -> None:
    """max_drop only changes how a row is judged."""
    assert not changed(RICH, "adversary.max_drop=0.01")


def test_the_adversarys_data_change_attacks_and_scratch() -> None:
    """data_fraction acts on what the adversary trains, and on no owner's model."""
    found = changed(RICH, "adversary.data_fraction=0.2")
    kept = plan_of(RICH).tasks.keys() & plan_of(RICH, "adversary.data_fraction=0.2").tasks.keys()

    assert {"train", "attack", "verify"} == found.keys()
    assert "embed/mtlsign/seed0" in {plan_of(RICH).tasks[t].label for t in kept}


def test_another_seed_adds_and_changes_nothing_but_null_models() -> None:
    """Rows of seed 0 stay; only the null model of seed 1 changes with the list."""
    before, after = plan_of(RICH), plan_of(RICH, "seeds=[0, 1, 2]")
    lost = [before.tasks[t].label for t in before.tasks.keys() - after.tasks.keys()]

    assert all("control-null_model/seed1" in label for label in lost)


def test_the_owners_secret_changes_marks_and_is_not_in_the_plan(tmp_path: Path) -> None:
    """Another key root gives other keys; the plan holds only its commitment."""
    secret = tmp_path / "root"
    secret.write_bytes(b"0123456789abcdef" * 2)
    plan = plan_of(TINY + f"keys: {{root: {secret}}}\n")
    root = KeyRoot.from_file(secret)

    assert root.commitment == task_called(plan, "embed/uchida/seed0").config["root"]
    assert all(root.secret.hex() not in t.text and str(secret) not in t.text for t in plan)
    assert task_called(plan_of(TINY), "train/clean/seed0").id == task_called(plan, "train/clean/seed0").id


FIELDS = ["name: uchida", "bits: 24", "projection: random", "batch_size: 100"]


@settings(max_examples=15, deadline=None)
@given(st.permutations(FIELDS), st.permutations(range(5)))
def test_the_order_of_fields_and_blocks_changes_nothing(fields: list[str], order: list[int]) -> None:
    """The order of a spec's text does not change its tasks."""
    parts = list(blocks(with_lines(schemes=f"schemes: [{{{', '.join(fields)}}}]")).values())

    assert plan_of(TINY).digest == plan_of("\n".join(parts[i] for i in order)).digest


def edited(monkeypatch: pytest.MonkeyPatch, module: str, edit: Callable[[str], str]) -> None:
    """Let the identity of code see ``module`` as it would be after ``edit``."""
    source = identity._source

    def read(name: str) -> str:
        return edit(source(name)) if name == module else source(name)

    monkeypatch.setattr(identity, "_source", read)


def test_a_comment_in_a_scheme_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the syntax tree counts."""
    before = plan_of(RICH).digest
    edited(monkeypatch, "wmarena.schemes.adi.scheme", lambda text: f'# a note\n{text}\n"""More words."""\n')

    assert before == plan_of(RICH).digest


def test_a_change_of_a_scheme_changes_its_own_tasks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an edit of one scheme's code the others' marks, and all clean models, are still known."""
    text = RICH.replace("  - {name: adi, n_triggers: 20, mode: scratch}\n", "  - uchida\n")
    before = plan_of(text)
    edited(monkeypatch, "wmarena.schemes.uchida", lambda source: source + "\nEXTRA = 1\n")
    lost = [before.tasks[t] for t in before.tasks.keys() - plan_of(text).tasks.keys()]

    assert {"uchida"} == {t.scheme for t in lost}
    assert {"embed", "attack", "verify"} == {t.kind.value for t in lost}


def test_a_change_of_a_nested_plugin_changes_attacks_that_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit of pruning changes chains that prune, not plain fine-tuning."""
    before = plan_of(RICH)
    edited(monkeypatch, "wmarena.attacks.compression.pruning", lambda source: source + "\nEXTRA = 1\n")
    lost = [before.tasks[t] for t in before.tasks.keys() - plan_of(RICH).tasks.keys()]

    assert {"prune_weights+finetune"} == {t.attack for t in lost if t.kind is Kind.ATTACK}


# What cannot be planned


def test_missing_data_stop_the_planning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The message tells how to correct it."""
    without_data(monkeypatch, Cifar10ResNet18)

    with pytest.raises(MissingData, match="--data-root"):
        expand(ExperimentSpec.parse(TINY, overrides=["workloads=[cifar10_resnet18]"]), data_root=tmp_path)


def test_a_disjoint_adversary_needs_a_reserve() -> None:
    """The workload must reserve data that the owner never trains on."""
    with pytest.raises(SpecError, match="set its `reserve`"):
        plan_of(TINY, "adversary.disjoint=true")
    assert cells_where(plan_of(TINY, "adversary.disjoint=true", "workloads.digits_mlp.reserve=0.2"), attack="finetune")


def test_a_share_that_is_too_small_to_train_on_stops_the_planning() -> None:
    """Ten samples are one a class, all held out for validation: passes over nothing cannot be counted."""
    tiny = ["workloads.digits_mlp.train_size=300", "adversary.data_fraction=0.03"]

    with pytest.raises(SpecError, match=r"data_fraction: expected a share of digits_mlp to train on; .* 10 samples"):
        plan_of(TINY, *tiny, "adversary.max_epochs=2")


def test_an_unreadable_key_root_stops_the_planning(tmp_path: Path) -> None:
    """The message says how to make one."""
    with pytest.raises(SpecError, match="/dev/urandom"):
        plan_of(TINY + f"keys: {{root: {tmp_path / 'nothing'}}}\n")
