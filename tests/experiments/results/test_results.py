"""Rows of the results table: columns, nulls, caveats and files."""

import csv
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.experiments.evidence_factory import BUDGET, Bench, row_of, rows_of, verdict
from wmarena.experiments.results.rows import UNREACHED, ResultRow
from wmarena.experiments.results.table import RESULTS_SCHEMA, build_rows, read_results, write_results

CONTRACT = {
    "string": (
        *("experiment", "run_id", "task_id", "workload", "scheme", "scheme_params", "attack", "attack_params"),
        *("strength_name", "budget", "control", "status", "metric", "p_method", "device", "error"),
    ),
    "double": (
        *("strength", "metric_clean", "metric_marked", "metric_suspect", "metric_scratch", "relative_drop"),
        *("metric_clean_val", "metric_marked_val", "metric_suspect_val", "statistic", "threshold", "level"),
        *("null_q", "log10_p", "log10_p_adj", "margin", "covertness_mean_abs_dev"),
        *("seconds_embed", "seconds_attack", "seconds_verify"),
    ),
    "int64": ("seed", "n"),
    "bool": ("cached", "verdict", "verdict_paper", "beats_scratch", "removed"),
    "list<item: string>": ("caveats", "knowledge"),
}
SECOND_EDITION = (
    *("claimant", "head", "attack_label", "access", "knowledge", "outcome", "reason", "outcome_common"),
    *("evidence_bits", "fate", "agreement", "covertness_auc", "suite", "run_label", "peak_memory_mib", "energy_j"),
)


def only(rows: list[ResultRow], **wanted: Any) -> ResultRow:
    """The one row with these values."""
    (row,) = (r for r in rows if all(getattr(r, k) == v for k, v in wanted.items()))
    return row


def test_every_contract_column_is_there() -> None:
    """The schema holds every column that other tools rely on, with its type."""
    types = {name: str(RESULTS_SCHEMA.field(name).type) for names in CONTRACT.values() for name in names}

    assert types == {name: kind for kind, names in CONTRACT.items() for name in names}


def test_new_columns_follow_the_old_ones() -> None:
    """Readers that take columns by their place keep what they had: later columns stand at the end."""
    assert RESULTS_SCHEMA.names[51:53] == ["suspect_id", "clean_id"]
    assert RESULTS_SCHEMA.names[53:] == list(SECOND_EDITION)


def test_every_column_has_a_description() -> None:
    """The data dictionary has a meaning for every column, on one line."""
    told = {f.name: f.metadata["doc"] for f in fields(ResultRow)}

    assert list(told) == RESULTS_SCHEMA.names
    assert [name for name, doc in told.items() if not doc or "\n" in doc] == []


def test_a_row_holds_what_its_tasks_measured(bench: Bench) -> None:
    """Metrics come from the models' own tasks, evidence from the verify task, seconds from each."""
    owner = bench.embed("adi", 3, 0.88)
    params = {"variant": "ftal", "epochs": 5}
    bench.attacked(owner, "finetune", params, 0.85, verdict(60), strength_name="epochs", strength=5.0)

    (row,) = rows_of(bench)

    expected = {
        "experiment": "trial",
        "run_id": "run-1",
        "workload": "digits_mlp",
        "scheme": "adi",
        "attack": "finetune",
        "attack_params": '{"epochs":5,"variant":"ftal"}',
        "strength": 5.0,
        "seed": 3,
        "control": None,
        "status": "done",
        "cached": False,
        "metric": "accuracy",
        "metric_clean": 0.9,
        "metric_marked": 0.88,
        "metric_suspect": 0.85,
        "metric_suspect_val": 0.85,
        "metric_scratch": 0.6,
        "statistic": 0.6,
        "n": 100,
        "threshold": 0.28,
        "p_method": "binomial",
        "verdict": True,
        "verdict_paper": False,
        "level": 1e-6,
        "covertness_mean_abs_dev": 0.002,
        "seconds_embed": 30.0,
        "seconds_attack": 5.0,
        "seconds_verify": 0.2,
        "device": "cpu",
        "error": None,
    }
    assert expected == {name: getattr(row, name) for name in expected}
    assert row.relative_drop == pytest.approx(0.03 / 0.88)
    assert json.loads(row.workload_params) == bench.workload


def test_rows_follow_the_plan_one_per_verify_task(bench: Bench) -> None:
    """Every verify task has exactly one row, in planning order, however often its cell was added."""
    owner = bench.embed("adi", 0)
    first = bench.judge(owner, owner, verdict(100))
    second = bench.judge(owner, bench.clean(0), verdict(10), control="clean")
    bench.plan.add([], [first])

    assert [first.verify, second.verify] == [row.task_id for row in rows_of(bench)]


def test_without_an_attack_the_suspect_is_the_marked_model(bench: Bench) -> None:
    """On `none` the suspect's metric is the marked model's, the drop is zero, the mark is not removed."""
    owner = bench.embed("adi", 0, 0.87)
    bench.judge(owner, owner, verdict(100))

    (row,) = rows_of(bench)

    assert tuple(getattr(row, k) for k in ("metric_suspect", "relative_drop", "seconds_attack", "removed")) == (
        0.87,
        0.0,
        None,
        False,
    )


def test_original_heads_and_claims_are_marked(bench: Bench) -> None:
    """Rows that judge another head or the adversary's key have marks in their attack's parameters."""
    owner = bench.embed("adi", 0)
    bench.attacked(owner, "finetune", {"variant": "rtal"}, 0.85, verdict(90), head="original")
    bench.attacked(owner, "overwrite", {"lr": 0.1}, 0.85, verdict(90), claim=True)

    head, claim = rows_of(bench)

    assert json.loads(head.attack_params) == {"variant": "rtal", "head": "original"}
    assert json.loads(claim.attack_params) == {"lr": 0.1, "claim": "adversary"}
    assert [head.is_claim, claim.is_claim] == [False, True]


@pytest.mark.parametrize(
    ("hits", "suspect", "scratch", "expected"),
    [
        (10, 0.88, 0.60, True),
        (60, 0.88, 0.60, False),  # the verdict stands
        (10, 0.80, 0.60, False),  # too expensive
        (10, 0.88, 0.89, False),  # scratch is better
        (10, 0.88, 0.876, False),  # better than scratch, but by less than half a point
        (10, 0.88, None, None),  # nothing to compare with
        (60, 0.88, None, False),  # the verdict alone decides
        (10, 0.80, None, False),  # the drop alone decides
    ],
)
def test_removed_needs_verdict_budget_and_scratch(
    bench: Bench, hits: int, suspect: float, scratch: float | None, expected: bool | None
) -> None:
    """A removal counts if the verdict fell, within the budget, on a model better than the adversary's own."""
    owner = bench.embed("adi", 0, 0.9)
    task = None if scratch is None else bench.scratch(0, scratch).id
    bench.attacked(owner, "finetune", {}, suspect, verdict(hits), scratch=task)

    (row,) = rows_of(bench)

    assert expected is row.removed


def test_the_budget_reads_validation_data(bench: Bench) -> None:
    """A suspect within the budget on validation data removes the mark, whatever the test set says."""
    owner = bench.embed("adi", 0, metric_val=0.9, metric_test=0.9)
    suspect = bench.attack(owner, "finetune", {}, 0.8, metric_val=0.89)
    cell = {"attack": "finetune", "attack_task": suspect.id, "scratch": bench.scratch(0).id, "budget": BUDGET}
    bench.judge(owner, suspect, verdict(10), **cell)

    (row,) = rows_of(bench)

    assert row.removed is True
    assert row.budget_drop == pytest.approx(0.01)


@pytest.mark.parametrize(("suspect", "removed"), [(0.5, True), (0.49, False)])
def test_the_boundary_belongs_to_the_budget(bench: Bench, suspect: float, removed: bool) -> None:
    """A drop of exactly what the adversary may lose (0.75 - 0.5 of 0.25, without rounding) is within the budget."""
    owner = bench.embed("adi", 0, 0.75)
    scratch = bench.scratch(0, 0.3).id
    bench.attacked(owner, "finetune", {}, suspect, verdict(10), budget={**BUDGET, "max_drop": 0.25}, scratch=scratch)

    (row,) = rows_of(bench)

    assert row.removed is removed


@pytest.mark.parametrize(("suspect", "beats"), [(0.506, True), (0.505, False), (0.5, False)])
def test_half_a_point_above_scratch_is_not_better(bench: Bench, suspect: float, beats: bool) -> None:
    """A suspect must be better than training from scratch (0.5) by more than half a point, not by exactly that."""
    owner = bench.embed("adi", 0, 0.75)
    bench.attacked(owner, "finetune", {}, suspect, verdict(10), scratch=bench.scratch(0, 0.5).id)

    (row,) = rows_of(bench)

    assert row.beats_scratch is beats


def test_the_budget_falls_back_to_test_data(bench: Bench) -> None:
    """Without validation metrics the test drop is compared with the budget."""
    owner = bench.embed("adi", 0, metric_val=None)
    bench.attacked(owner, "finetune", {}, 0.8, verdict(10))

    (row,) = rows_of(bench)

    assert row.budget_drop == pytest.approx(0.1)
    assert row.removed is False


def test_a_missing_allowance_is_the_default_budget(bench: Bench) -> None:
    """A cell that grants nothing in particular allows the default drop of five points."""
    owner = bench.embed("adi", 0)
    bench.attacked(owner, "finetune", {}, 0.86, verdict(10), budget={})

    (row,) = rows_of(bench)

    assert (row.max_drop, row.removed) == (0.05, True)


@pytest.mark.parametrize("cell", [{"control": "clean"}, {"claim": True}])
def test_controls_and_claims_remove_nothing(bench: Bench, cell: dict[str, Any]) -> None:
    """A negative control or the adversary's own claim is neither survived nor lost."""
    owner = bench.embed("adi", 0)
    bench.attacked(owner, "overwrite", {}, 0.89, verdict(10), **cell)

    (row,) = rows_of(bench)

    assert row.removed is None


def test_failed_and_skipped_rows_have_causes_and_no_numbers(bench: Bench) -> None:
    """Missing measurements are null; those of finished ancestors stay; the cause is given."""
    owner = bench.embed("adi", 0)
    broken = bench.attacked(owner, "spoil", {}, 0.89, verdict(10))
    unread = bench.attacked(owner, "finetune", {}, 0.89, verdict(10))
    bench.fail(broken.suspect, "diverged: nan in epoch 1")
    bench.fail(unread.verify, "timeout: 3600 s")

    rows = rows_of(bench)
    diverged, failed = only(rows, attack="spoil"), only(rows, attack="finetune")

    assert (diverged.status, diverged.error) == ("failed", "diverged: nan in epoch 1")
    assert (failed.status, failed.error) == ("failed", "timeout: 3600 s")
    unknown = ("statistic", "threshold", "log10_p", "verdict", "margin", "removed", "seconds_verify", "device")
    assert [None] * len(unknown) * 2 == [getattr(row, k) for row in rows for k in unknown]
    assert (diverged.metric_marked, diverged.metric_suspect, failed.metric_suspect) == (0.9, None, 0.89)


def test_tasks_that_were_not_reached_are_skipped(bench: Bench) -> None:
    """An interrupted run still has a row per verify task."""
    owner = bench.embed("adi", 0)
    cell = bench.judge(owner, owner, verdict(100))
    del bench.records[cell.verify]

    (row,) = rows_of(bench)

    assert (row.status, row.error) == ("skipped", UNREACHED)


def test_gated_rows_are_told_apart(bench: Bench) -> None:
    """A row that a gate left out is no failure."""
    owner = bench.embed("adi", 0)
    cell = bench.judge(owner, owner, verdict(100))
    bench.skip(cell.verify, "gate: accuracy drop 0.03 > 0.01")

    (row,) = rows_of(bench)

    assert row.is_gated


def test_cached_follows_the_verify_task(bench: Bench) -> None:
    """`cached` says whether this run found the verification finished."""
    owner = bench.embed("adi", 0)
    cell = bench.judge(owner, owner, verdict(100))
    bench.records[cell.verify] = replace(bench.records[cell.verify], cached=True)

    assert [row.cached for row in rows_of(bench)] == [True]


def test_cells_alone_are_enough(bench: Bench) -> None:
    """Without the plan only the workload's configuration is missing."""
    owner = bench.embed("adi", 0)
    bench.judge(owner, owner, verdict(100))
    (whole,) = rows_of(bench)

    (bare,) = build_rows(bench.plan.cells, bench.records, experiment="trial", run_id="run-1")

    assert replace(whole, workload_params=None) == bare


def test_the_table_survives_parquet(bench: Bench, tmp_path: Path) -> None:
    """What is read back equals what was written, types and nulls included."""
    owner = bench.embed("adi", 0)
    bench.judge(owner, owner, verdict(100, caveats=("needs_prior_commitment",)))
    broken = bench.attacked(owner, "spoil", {}, 0.89, verdict(10))
    bench.fail(broken.suspect)
    rows = rows_of(bench)

    path = write_results(rows, tmp_path / "new" / "out")

    assert rows == read_results(path)
    assert pq.read_schema(path).remove_metadata() == RESULTS_SCHEMA
    assert sorted(p.name for p in path.parent.iterdir()) == ["results.csv", "results.parquet"]


def test_a_table_of_an_earlier_version_is_read(bench: Bench, tmp_path: Path) -> None:
    """Columns that a results.parquet does not have are null."""
    owner = bench.embed("adi", 0)
    bench.judge(owner, owner, verdict(100))
    path = write_results(rows_of(bench), tmp_path)
    pq.write_table(pq.read_table(path).drop_columns(list(SECOND_EDITION)), path)

    (row,) = read_results(path)

    assert row == replace(rows_of(bench)[0], **dict.fromkeys(SECOND_EDITION))


def test_a_row_survives_its_record(bench: Bench) -> None:
    """`from_record` undoes `to_record`; columns that the record lacks are null, unknown ones are left aside."""
    owner = bench.embed("adi", 0)
    bench.judge(owner, owner, verdict(100, caveats=("null_mismatch",)))
    (row,) = rows_of(bench)
    record = row.to_record()

    assert ResultRow.from_record({**record, "who_knows": 1}) == row
    assert ResultRow.from_record({k: v for k, v in record.items() if k != "margin"}) == replace(row, margin=None)


def test_configurations_are_parsed_once(bench: Bench) -> None:
    """Every reader of a row gets the same parsed configuration."""
    owner = bench.embed("adi", 0)
    bench.attacked(owner, "overwrite", {"scheme": {"name": "uchida"}, "lr": 0.1}, 0.89, verdict(90), claim=True)
    (row,) = rows_of(bench)

    assert row.attack_config == {"scheme.name": "uchida", "lr": 0.1, "claim": "adversary"}
    assert row.variant == {"scheme.name": "uchida", "lr": 0.1}
    assert all(getattr(row, name) is getattr(row, name) for name in ("attack_config", "variant", "granted", "setting"))


def test_rows_name_claimant_and_head(bench: Bench) -> None:
    """Claims are the adversary's, stranger's keys a stranger's, all others the owner's; so are heads put back."""
    owner = bench.embed("adi", 0)
    bench.judge(owner, owner, verdict(9), control="stranger_key")
    bench.judge(owner, bench.clean(0), verdict(9), control="clean")
    bench.attacked(owner, "finetune", {"variant": "rtal"}, 0.85, verdict(90), head="original")
    bench.attacked(owner, "overwrite", {"lr": 0.1}, 0.85, verdict(90), claim=True)

    found = [(row.claimant, row.head, row.access) for row in rows_of(bench)]

    assert found == [
        ("stranger", "suspect", "queries"),
        ("owner", "suspect", "queries"),
        ("owner", "owner", "queries"),
        ("adversary", "suspect", "queries"),
    ]


def test_attacks_are_labelled_by_their_plugins(bench: Bench) -> None:
    """Label and knowledge are the plugin's own, a chain's those of its parts; of an unknown attack the name is left."""
    owner = bench.embed("adi", 0)
    parts = [{"name": "prune_weights"}, {"name": "spoil", "mode": "joint"}]
    bench.judge(owner, owner, verdict(100))
    bench.attacked(owner, "finetune", {"variant": "rtal"}, 0.85, verdict(90))
    bench.attacked(owner, "prune_weights+spoil", {"attacks": parts}, 0.85, verdict(90))
    bench.attacked(owner, "who_knows", {"lr": 0.1}, 0.85, verdict(90))

    found = [(row.attack_label, row.knowledge) for row in rows_of(bench)]

    assert found == [
        ("none", ()),
        ("finetune-rtal", ("weights",)),
        ("prune_weights+spoil", ("algorithm", "key", "weights")),
        ("who_knows", None),
    ]


def test_csv_is_for_people(bench: Bench, tmp_path: Path) -> None:
    """Nulls are empty, booleans are words, lists are joined."""
    owner = bench.embed("adi", 0)
    bench.judge(owner, owner, verdict(100, caveats=("needs_prior_commitment", "null_mismatch")))
    write_results(rows_of(bench), tmp_path)

    with (tmp_path / "results.csv").open(newline="") as f:
        (line,) = csv.DictReader(f)

    expected = ("true", "", "needs_prior_commitment;null_mismatch")
    assert expected == (line["verdict"], line["strength"], line["caveats"])


def test_an_empty_table_is_written(tmp_path: Path) -> None:
    """A plan without cells has a table without rows, of the same schema."""
    path = write_results(build_rows([], {}, experiment="trial", run_id="run-1"), tmp_path)

    assert read_results(path) == []


def test_a_chain_is_compared_without_its_last_strength() -> None:
    """A chain's strength is the field of its last part that bears the name; other parts keep theirs."""
    parts = [{"name": "finetune", "epochs": 2}, {"name": "prune", "sparsity": 0.5}, {"name": "finetune", "epochs": 2}]
    row = row_of(attack_params=json.dumps({"attacks": parts}), strength_name="epochs", strength=2.0)

    assert "attacks.0.epochs" in row.variant
    assert "attacks.2.epochs" not in row.variant
