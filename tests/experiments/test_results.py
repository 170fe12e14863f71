"""Rows of the results table: what they say, what they leave open, what they doubt, how they are written."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from experiments.caveats import CHECKS, EXPLANATIONS, chance_level, raised
from experiments.results import RESULTS_SCHEMA, build_rows, read_results, write_results
from experiments.rows import UNREACHED, Row, attack_params, budget_drop, is_claim, is_gated, max_drop
from orchestrator.evidence import Record
from orchestrator.task import State
from tests.experiments.evidence_factory import BUDGET, ENVIRONMENT, Bench, verdict

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
    "list<item: string>": ("caveats",),
}


def rows_of(bench: Bench) -> list[Row]:
    """The bench's table."""
    return build_rows(bench.plan, bench.records, experiment="trial", run_id="run-1")


def only(rows: list[Row], **wanted: Any) -> Row:
    """The one row with these values."""
    (row,) = (r for r in rows if all(r[k] == v for k, v in wanted.items()))
    return row


@pytest.fixture
def bench() -> Bench:
    """An empty plan."""
    return Bench()


def test_every_contract_column_is_there() -> None:
    """The schema holds every column that other tools rely on, with its type."""
    types = {name: str(RESULTS_SCHEMA.field(name).type) for names in CONTRACT.values() for name in names}

    assert types == {name: kind for kind, names in CONTRACT.items() for name in names}


def test_a_row_says_what_its_tasks_measured(bench: Bench) -> None:
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
    assert expected == {name: row[name] for name in expected}
    assert row["relative_drop"] == pytest.approx(0.03 / 0.88)
    assert json.loads(row["workload_params"]) == bench.workload


def test_rows_follow_the_plan_one_per_verify_task(bench: Bench) -> None:
    """Every verify task has exactly one row, in planning order, however often its cell was added."""
    owner = bench.embed("adi", 0)
    first = bench.judge(owner, owner, verdict(100))
    second = bench.judge(owner, bench.clean(0), verdict(10), control="clean")
    bench.plan.add([], [first])

    assert [first.verify, second.verify] == [row["task_id"] for row in rows_of(bench)]


def test_without_an_attack_the_suspect_is_the_marked_model(bench: Bench) -> None:
    """On `none` the suspect's metric is the marked model's, the drop is zero, the mark is not removed."""
    owner = bench.embed("adi", 0, 0.87)
    bench.judge(owner, owner, verdict(100))

    (row,) = rows_of(bench)

    assert tuple(row[k] for k in ("metric_suspect", "relative_drop", "seconds_attack", "removed")) == (
        0.87,
        0.0,
        None,
        False,
    )


def test_original_heads_and_claims_are_marked(bench: Bench) -> None:
    """Rows that judge another head or the adversary's key say so in their attack's parameters."""
    owner = bench.embed("adi", 0)
    bench.attacked(owner, "finetune", {"variant": "rtal"}, 0.85, verdict(90), head="original")
    bench.attacked(owner, "overwrite", {"lr": 0.1}, 0.85, verdict(90), claim=True)

    head, claim = rows_of(bench)

    assert json.loads(head["attack_params"]) == {"variant": "rtal", "head": "original"}
    assert json.loads(claim["attack_params"]) == {"lr": 0.1, "claim": "adversary"}
    assert [is_claim(head), is_claim(claim)] == [False, True]


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

    assert expected is row["removed"]


def test_the_budget_reads_validation_data(bench: Bench) -> None:
    """A suspect within the budget on validation data removes the mark, whatever the test set says."""
    owner = bench.embed("adi", 0, metric_val=0.9, metric_test=0.9)
    suspect = bench.attack(owner, "finetune", {}, 0.8, metric_val=0.89)
    cell = {"attack": "finetune", "attack_task": suspect.id, "scratch": bench.scratch(0).id, "budget": BUDGET}
    bench.judge(owner, suspect, verdict(10), **cell)

    (row,) = rows_of(bench)

    assert row["removed"] is True
    assert budget_drop(row) == pytest.approx(0.01)


def test_the_budget_falls_back_to_test_data(bench: Bench) -> None:
    """Where a task scores no validation data, the test drop is held against the budget."""
    owner = bench.embed("adi", 0, metric_val=None)
    bench.attacked(owner, "finetune", {}, 0.8, verdict(10))

    (row,) = rows_of(bench)

    assert budget_drop(row) == pytest.approx(0.1)
    assert row["removed"] is False


def test_a_missing_allowance_is_the_default_budget(bench: Bench) -> None:
    """A cell that grants nothing in particular allows the default drop of five points."""
    owner = bench.embed("adi", 0)
    bench.attacked(owner, "finetune", {}, 0.86, verdict(10), budget={})

    (row,) = rows_of(bench)

    assert (max_drop(row), row["removed"]) == (0.05, True)


@pytest.mark.parametrize("cell", [{"control": "clean"}, {"claim": True}])
def test_controls_and_claims_remove_nothing(bench: Bench, cell: dict[str, Any]) -> None:
    """A negative control or the adversary's own claim is neither survived nor lost."""
    owner = bench.embed("adi", 0)
    bench.attacked(owner, "overwrite", {}, 0.89, verdict(10), **cell)

    (row,) = rows_of(bench)

    assert row["removed"] is None


def test_failed_and_skipped_rows_have_causes_and_no_numbers(bench: Bench) -> None:
    """What was not measured is null; what is known of finished ancestors stays; the cause is there."""
    owner = bench.embed("adi", 0)
    broken = bench.attacked(owner, "spoil", {}, 0.89, verdict(10))
    unread = bench.attacked(owner, "finetune", {}, 0.89, verdict(10))
    bench.fail(broken.suspect)
    bench.fail(unread.verify, "timeout: 3600 s")

    rows = rows_of(bench)
    skipped, failed = only(rows, attack="spoil"), only(rows, attack="finetune")

    assert (skipped["status"], skipped["error"]) == ("skipped", "skipped: attack/adi/spoil/seed0")
    assert (failed["status"], failed["error"]) == ("failed", "timeout: 3600 s")
    unknown = ("statistic", "threshold", "log10_p", "verdict", "margin", "removed", "seconds_verify", "device")
    assert [None] * len(unknown) * 2 == [row[k] for row in rows for k in unknown]
    assert (skipped["metric_marked"], skipped["metric_suspect"], failed["metric_suspect"]) == (0.9, None, 0.89)


def test_tasks_that_were_not_reached_are_skipped(bench: Bench) -> None:
    """An interrupted run still has a row per verify task."""
    owner = bench.embed("adi", 0)
    cell = bench.judge(owner, owner, verdict(100))
    del bench.records[cell.verify]

    (row,) = rows_of(bench)

    assert (row["status"], row["error"]) == ("skipped", UNREACHED)


def test_gated_rows_are_told_apart(bench: Bench) -> None:
    """A row that a gate left out is no failure."""
    owner = bench.embed("adi", 0)
    cell = bench.judge(owner, owner, verdict(100))
    bench.skip(cell.verify, "gate: accuracy drop 0.03 > 0.01")

    (row,) = rows_of(bench)

    assert is_gated(row)


def test_cached_follows_the_verify_task(bench: Bench) -> None:
    """`cached` says whether this run found the verification finished."""
    owner = bench.embed("adi", 0)
    cell = bench.judge(owner, owner, verdict(100))
    bench.records[cell.verify] = replace(bench.records[cell.verify], cached=True)

    assert [row["cached"] for row in rows_of(bench)] == [True]


def test_cells_alone_are_enough(bench: Bench) -> None:
    """Without the plan only the workload's configuration is missing."""
    owner = bench.embed("adi", 0)
    bench.judge(owner, owner, verdict(100))
    (whole,) = rows_of(bench)

    (bare,) = build_rows(bench.plan.cells, bench.records, experiment="trial", run_id="run-1")

    assert {**whole, "workload_params": None} == bare


def test_the_table_survives_parquet(bench: Bench, tmp_path: Path) -> None:
    """What is read back equals what was written, types and nulls included."""
    owner = bench.embed("adi", 0)
    bench.judge(owner, owner, verdict(100, caveats=("needs_prior_commitment",)))
    broken = bench.attacked(owner, "spoil", {}, 0.89, verdict(10))
    bench.fail(broken.suspect)
    rows = rows_of(bench)

    path = write_results(rows, tmp_path / "out")

    assert rows == read_results(path)
    assert pq.read_schema(path).remove_metadata() == RESULTS_SCHEMA
    assert sorted(p.name for p in path.parent.iterdir()) == ["results.csv", "results.parquet"]


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
    row = {"attack_params": json.dumps({"attacks": parts}), "strength_name": "epochs", "strength": 2.0}

    assert "attacks.0.epochs" in attack_params(row)
    assert "attacks.2.epochs" not in attack_params(row)


# Caveats


def caveats(bench: Bench) -> list[list[str]]:
    """Caveats by row."""
    return [row["caveats"] for row in rows_of(bench)]


def test_every_check_is_explained() -> None:
    """No caveat reaches a reader without an explanation."""
    assert set(CHECKS) <= set(EXPLANATIONS)
    assert all(check.__doc__ and check.__doc__.startswith("Raised ") for check in CHECKS.values())


def test_sound_evidence_raises_nothing(bench: Bench) -> None:
    """A faithful mark, silent controls and a survived attack leave no doubt."""
    owner = bench.embed("adi", 0)
    bench.judge(owner, owner, verdict(100))
    bench.judge(owner, bench.clean(0), verdict(9), control="clean")
    bench.attacked(owner, "finetune", {}, 0.88, verdict(95))

    assert caveats(bench) == [[], [], []]


@pytest.mark.parametrize("control", ["clean", "null_model", "stranger_key"])
def test_a_control_that_fires_makes_the_scheme_ambiguous(bench: Bench, control: str) -> None:
    """One firing control labels every row of its scheme, on every seed, and no row of another."""
    for seed in (0, 1):
        owner = bench.embed("adi", seed)
        bench.judge(owner, owner, verdict(100))
    bench.judge(owner, bench.clean(1), verdict(50), control=control)
    other = bench.embed("uchida", 0)
    bench.judge(other, other, verdict(100))

    rows = rows_of(bench)

    assert ["ambiguous" in row["caveats"] for row in rows] == [True, True, True, False]


@pytest.mark.parametrize(("level", "expected"), [(0, True), (2, False)])
def test_only_random_keys_make_ambiguous(bench: Bench, level: int, expected: bool) -> None:
    """A random key that passes condemns the test; a key fitted to the model is the forger's skill."""
    owner = bench.embed("adi", 0)
    forger = bench.attack(owner, "ambiguity", {"level": level}, None)
    params = {"attack": "ambiguity", "attack_params": {"level": level}, "claim": True, "attack_task": forger.id}
    bench.judge(owner, owner, verdict(60), **params)

    assert [expected] == ["ambiguous" in found for found in caveats(bench)]


def test_a_mark_that_never_was_is_said_on_its_seed(bench: Bench) -> None:
    """Rows of a seed whose marked model fails its own key say so; other seeds and controls do not."""
    for seed, hits in ((0, 15), (1, 100)):
        owner = bench.embed("adi", seed)
        bench.judge(owner, owner, verdict(hits))
        bench.judge(owner, bench.clean(seed), verdict(10), control="clean")
        bench.attacked(owner, "finetune", {}, 0.89, verdict(hits))

    assert ["mark_missing" in found for found in caveats(bench)] == [True, False, True, False, False, False]


@pytest.mark.parametrize(("marked", "expected"), [(0.885, True), (0.895, False), (0.92, False)])
def test_fidelity_missed_beyond_one_point(bench: Bench, marked: float, expected: bool) -> None:
    """A mark may cost one point of accuracy."""
    owner = bench.embed("adi", 0, marked)
    bench.judge(owner, owner, verdict(100))

    assert [expected] == ["fidelity_missed" in found for found in caveats(bench)]


@pytest.mark.parametrize(("suspect", "expected"), [(0.49, True), (0.51, False)])
def test_ruined_below_half_the_skill_above_chance(bench: Bench, suspect: float, expected: bool) -> None:
    """Among ten classes a model at 90 % has 80 points above guessing; at 50 % half of them are gone."""
    owner = bench.embed("adi", 0, 0.9)
    bench.attacked(owner, "prune_weights", {}, suspect, verdict(10))

    assert [expected] == ["ruined" in found for found in caveats(bench)]


def test_chance_of_known_and_unknown_workloads() -> None:
    """Ten digits are guessed at 10 %; nothing is assumed of a workload that is not installed."""
    assert (chance_level("digits_mlp", {}), chance_level("no_such_workload", {})) == (0.1, 0.0)


def test_unmoved_weights_are_noticed(bench: Bench) -> None:
    """An attack that returns the victim's weights is no attack."""
    owner = bench.embed("adi", 0)
    for moved in (0.0, 0.01):
        suspect = bench.attack(owner, "finetune", {"lr": moved}, 0.9, moved_mean_abs_dev=moved)
        bench.judge(owner, suspect, verdict(100), attack="finetune", attack_params={"lr": moved})

    assert caveats(bench) == [["weights_unmoved"], []]


def test_coarse_levels_are_said(bench: Bench) -> None:
    """A test against 99 random keys cannot reach 1e-6 and says so; a chosen level under an exact null is no doubt."""
    owner = bench.embed("dsn", 0)
    bench.judge(owner, owner, verdict(100, p_method="key_randomisation", level=0.01))
    bench.judge(owner, owner, verdict(100, level=0.01), control="stranger_key")

    assert ["resolution_limited" in found for found in caveats(bench)] == [True, False]


def test_structure_and_carried_caveats_are_passed_on(bench: Bench) -> None:
    """What verdicts, results and records noted themselves stands on the row."""
    owner = bench.embed("mtlsign", 0, caveats=["adopted"])
    cell = bench.judge(owner, owner, verdict(0, reason="structure", caveats=("needs_prior_commitment",)))
    bench.records[cell.verify] = replace(bench.records[cell.verify], caveats=("recomputed",))

    (found,) = caveats(bench)

    assert found == ["mark_missing", "needs_prior_commitment", "structure", "recomputed", "adopted"]


@pytest.mark.parametrize(("hits", "expected"), [((90, 10, 60), True), ((90, 60, 10), False), ((90, 90, 90), False)])
def test_curves_that_come_back_are_flagged(bench: Bench, hits: tuple[int, ...], expected: bool) -> None:
    """A verdict that falls and rises again has no unique flip point."""
    owner = bench.embed("adi", 0)
    for epochs, k in enumerate(hits, start=1):
        cell = {"strength_name": "epochs", "strength": float(epochs)}
        bench.attacked(owner, "finetune", {"epochs": epochs}, 0.89, verdict(k), **cell)

    assert [expected] * 3 == ["non_monotone" in found for found in caveats(bench)]


@pytest.mark.parametrize(("key", "value"), [("torch", "2.12.0"), ("device_kind", "cuda")])
def test_rows_from_another_environment_are_flagged(bench: Bench, key: str, value: str) -> None:
    """The row with a task that ran elsewhere is told from the rest of the table."""
    for seed in (0, 1, 2):
        owner = bench.embed("adi", seed)
        bench.judge(owner, owner, verdict(100))
    elsewhere = {**ENVIRONMENT, key: value}
    record = bench.records[owner.id]
    bench.records[owner.id] = replace(record, result={**(record.result or {}), "environment": elsewhere})

    assert caveats(bench) == [[], [], ["mixed_environment"]]


def test_a_parent_with_two_contents_is_noticed(bench: Bench) -> None:
    """Attack and verification must have read the same marked model."""
    owner = bench.embed("adi", 0)
    for seen in ("aa", "bb"):
        suspect = bench.attack(owner, "finetune", {"run": seen}, 0.89, consumed={owner.id: "aa"})
        cell = bench.judge(owner, suspect, verdict(90), attack="finetune", attack_params={"run": seen})
        record = bench.records[cell.verify]
        result = {**(record.result or {}), "consumed": {owner.id: seen}}
        bench.records[cell.verify] = Record(cell.verify, State.DONE, result=result)

    assert caveats(bench) == [[], ["parent_changed"]]


def test_caveats_are_counted_gravest_first(bench: Bench) -> None:
    """The report lists doubts with their number of rows, the most serious first."""
    owner = bench.embed("adi", 0, 0.5)
    bench.judge(owner, owner, verdict(50), control="stranger_key")
    bench.judge(owner, owner, verdict(100))

    assert raised(rows_of(bench)) == {"ambiguous": 2, "fidelity_missed": 2}
    assert list(raised(rows_of(bench))) == ["ambiguous", "fidelity_missed"]
