"""Caveats: when each is raised, and when it is not."""

from dataclasses import replace

import pytest

from tests.experiments.evidence_factory import ENVIRONMENT, Bench, rows_of, verdict
from wmarena.experiments.results.caveats import CHECKS, EXPLANATIONS, chance_level, raised
from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.task import State


def caveats(bench: Bench) -> list[list[str]]:
    """Caveats by row."""
    return [list(row.caveats) for row in rows_of(bench)]


def test_every_check_is_explained() -> None:
    """No caveat reaches a reader without an explanation."""
    assert set(CHECKS) <= set(EXPLANATIONS)
    assert all(check.__doc__ and check.__doc__.startswith("Raised ") for check in CHECKS.values())


def test_sound_evidence_raises_nothing(bench: Bench) -> None:
    """A faithful mark, controls without a hit and a survived attack raise no caveat."""
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

    assert ["ambiguous" in row.caveats for row in rows] == [True, True, True, False]


@pytest.mark.parametrize(("level", "expected"), [(0, True), (2, False)])
def test_only_random_keys_make_ambiguous(bench: Bench, level: int, expected: bool) -> None:
    """A random key that passes makes the test ambiguous; a key fitted to the model does not."""
    owner = bench.embed("adi", 0)
    forger = bench.attack(owner, "ambiguity", {"level": level}, None)
    params = {"attack": "ambiguity", "attack_params": {"level": level}, "claim": True, "attack_task": forger.id}
    bench.judge(owner, owner, verdict(60), **params)

    assert [expected] == ["ambiguous" in found for found in caveats(bench)]


def test_a_missing_mark_is_flagged_on_its_seed(bench: Bench) -> None:
    """Rows of a seed whose marked model fails its own key are flagged; other seeds and controls are not."""
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


def test_unmoved_weights_are_flagged(bench: Bench) -> None:
    """An attack that returns the victim's weights is no attack."""
    owner = bench.embed("adi", 0)
    for moved in (0.0, 0.01):
        suspect = bench.attack(owner, "finetune", {"lr": moved}, 0.9, moved_mean_abs_dev=moved)
        bench.judge(owner, suspect, verdict(100), attack="finetune", attack_params={"lr": moved})

    assert caveats(bench) == [["weights_unmoved"], []]


def test_coarse_levels_are_flagged(bench: Bench) -> None:
    """A test against 99 random keys cannot reach 1e-6; a chosen level under an exact null raises nothing."""
    owner = bench.embed("dsn", 0)
    bench.judge(owner, owner, verdict(100, p_method="key_randomisation", level=0.01))
    bench.judge(owner, owner, verdict(100, level=0.01), control="stranger_key")

    assert ["resolution_limited" in found for found in caveats(bench)] == [True, False]


def test_structure_and_carried_caveats_are_passed_on(bench: Bench) -> None:
    """Caveats of verdicts, results and records are on the row."""
    owner = bench.embed("mtlsign", 0, caveats=["adopted"])
    cell = bench.judge(owner, owner, verdict(0, reason="structure", caveats=("needs_prior_commitment",)))
    bench.records[cell.verify] = replace(bench.records[cell.verify], caveats=("recomputed",))

    (found,) = caveats(bench)

    assert found == ["mark_missing", "needs_prior_commitment", "structure", "recomputed", "adopted"]


@pytest.mark.parametrize(("hits", "expected"), [((90, 10, 60), True), ((90, 60, 10), False), ((90, 90, 90), False)])
def test_non_monotone_curves_are_flagged(bench: Bench, hits: tuple[int, ...], expected: bool) -> None:
    """A verdict that falls and rises again has no unique flip point."""
    owner = bench.embed("adi", 0)
    for epochs, k in enumerate(hits, start=1):
        cell = {"strength_name": "epochs", "strength": float(epochs)}
        bench.attacked(owner, "finetune", {"epochs": epochs}, 0.89, verdict(k), **cell)

    assert [expected] * 3 == ["non_monotone" in found for found in caveats(bench)]


@pytest.mark.parametrize(("key", "value"), [("torch", "2.12.0"), ("device_kind", "cuda")])
def test_rows_from_another_environment_are_flagged(bench: Bench, key: str, value: str) -> None:
    """Only the row with a task of another environment is flagged."""
    for seed in (0, 1, 2):
        owner = bench.embed("adi", seed)
        bench.judge(owner, owner, verdict(100))
    elsewhere = {**ENVIRONMENT, key: value}
    record = bench.records[owner.id]
    bench.records[owner.id] = replace(record, result={**(record.result or {}), "environment": elsewhere})

    assert caveats(bench) == [[], [], ["mixed_environment"]]


def test_a_parent_with_two_contents_is_flagged(bench: Bench) -> None:
    """Attack and verification must have read the same marked model."""
    owner = bench.embed("adi", 0)
    for seen in ("aa", "bb"):
        suspect = bench.attack(owner, "finetune", {"run": seen}, 0.89, consumed={owner.id: "aa"})
        cell = bench.judge(owner, suspect, verdict(90), attack="finetune", attack_params={"run": seen})
        record = bench.records[cell.verify]
        result = {**(record.result or {}), "consumed": {owner.id: seen}}
        bench.records[cell.verify] = Record(cell.verify, State.DONE, result=result)

    assert caveats(bench) == [[], ["parent_changed"]]


def test_caveats_are_counted_most_serious_first(bench: Bench) -> None:
    """The report lists doubts with their number of rows, the most serious first."""
    owner = bench.embed("adi", 0, 0.5)
    bench.judge(owner, owner, verdict(50), control="stranger_key")
    bench.judge(owner, owner, verdict(100))

    assert raised(rows_of(bench)) == {"ambiguous": 2, "fidelity_missed": 2}
    assert list(raised(rows_of(bench))) == ["ambiguous", "fidelity_missed"]
