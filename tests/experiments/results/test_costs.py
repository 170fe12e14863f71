"""The attacker's cost from rows alone: brackets, censoring, families, the area under the margin."""

import pytest

from tests.experiments.evidence_factory import BUDGET, Bench, row_of, rows_of, sweep, verdict
from wmarena.experiments.results.costs import (
    UNKNOWN_FAMILY,
    AttackSweep,
    Bracket,
    attack_sweeps,
    aumc,
    cheapest_of,
    direction,
    envelope,
    family,
    median_cost,
)
from wmarena.experiments.results.rows import ResultRow, required
from wmarena.orchestrator.plan.task import Task

FOUND, LOST = 95, 12


def sweep_of(bench: Bench, attack: str = "finetune") -> AttackSweep:
    """The only sweep of an attack."""
    (found,) = (c for c in attack_sweeps(rows_of(bench)) if c.rows[0].attack == attack)
    return found


def at(bench: Bench, owner: Task, name: str, strengths: dict[float, tuple[float, int]], **params: object) -> None:
    """An attack at given strengths: (relative drop from 0.8, matches) each."""
    attack = str(params.pop("attack", "finetune"))
    for strength, (drop, hits) in strengths.items():
        more = {"strength_name": name, "strength": strength}
        bench.attacked(owner, attack, {**params, name: strength}, 0.8 * (1 - drop), verdict(hits), **more)


# Brackets


def test_the_cost_is_the_cheapest_suspect_without_a_mark(bench: Bench) -> None:
    """The smallest relative drop with verdict 0 is the cost, at whatever strength it was reached."""
    owner = bench.embed("adi", 0, 0.8)
    at(bench, owner, "epochs", {1: (0.005, FOUND), 2: (0.06, LOST), 5: (0.03, LOST)})

    (bracket,) = sweep_of(bench).brackets

    assert bracket.cost == pytest.approx(0.03)
    assert required(bracket.cheapest).strength == 5


def test_the_bracket_is_where_the_verdict_flips(bench: Bench) -> None:
    """The last strength that left the mark and the first that did not, whatever order they were planned in."""
    owner = bench.embed("adi", 0, 0.8)
    at(bench, owner, "epochs", {10: (0.05, LOST), 1: (0.0, FOUND), 5: (0.03, LOST), 2: (0.01, FOUND)})

    (bracket,) = sweep_of(bench).brackets

    assert [required(row).strength for row in (bracket.before, bracket.after)] == [2, 5]
    assert [required(row).relative_drop for row in (bracket.before, bracket.after)] == pytest.approx([0.01, 0.03])
    assert not bracket.non_monotone


def test_fewer_bits_are_a_stronger_attack(bench: Bench) -> None:
    """For an attack whose strength falls, the bracket is read downwards."""
    owner = bench.embed("adi", 0, 0.8)
    at(bench, owner, "bits", {2: (0.2, LOST), 4: (0.05, LOST), 8: (0.01, FOUND)}, attack="quantize")

    tested = sweep_of(bench, "quantize")
    (bracket,) = tested.brackets

    assert tested.direction == -1
    assert [required(row).strength for row in (bracket.before, bracket.after)] == [8, 4]
    assert not bracket.non_monotone


def test_another_field_of_such_an_attack_grows_upwards(bench: Bench) -> None:
    """The direction belongs to the attack's own strength: a search over another field is read as usual."""
    owner = bench.embed("adi", 0, 0.8)
    at(bench, owner, "epochs", {1: (0.0, FOUND)}, attack="quantize", bits=8)

    assert sweep_of(bench, "quantize").direction == 1


def test_a_chain_is_as_strong_as_its_swept_part(bench: Bench) -> None:
    """Direction and family of a chain: of the part that has the strength, and of chains."""
    owner = bench.embed("adi", 0, 0.8)
    parts = [{"name": "quantize", "bits": 4}, {"name": "finetune", "variant": "ftal", "epochs": 2}]
    cell = {"strength_name": "epochs", "strength": 2.0}
    bench.attacked(owner, "quantize+finetune", {"attacks": parts}, 0.79, verdict(FOUND), **cell)
    parts = [{"name": "finetune", "variant": "ftal", "epochs": 2}, {"name": "quantize", "bits": 4}]
    cell = {"strength_name": "bits", "strength": 4.0}
    bench.attacked(owner, "finetune+quantize", {"attacks": parts}, 0.79, verdict(FOUND), **cell)

    rows = [row for row in rows_of(bench) if row.attack != "none"]

    assert [direction(row) for row in rows] == [1, -1]
    assert {family(row) for row in rows} == {"chain"}


def test_a_non_monotone_verdict_is_flagged(bench: Bench) -> None:
    """The mark is removed, then found again at a larger strength; the first flip is the bracket."""
    owner = bench.embed("adi", 0, 0.8)
    at(bench, owner, "epochs", {1: (0.0, FOUND), 2: (0.02, LOST), 3: (0.03, FOUND), 4: (0.04, LOST)})

    (bracket,) = sweep_of(bench).brackets

    assert bracket.non_monotone
    assert [required(row).strength for row in (bracket.before, bracket.after)] == [1, 2]


def test_a_mark_that_is_never_removed_has_a_censored_cost(bench: Bench) -> None:
    """No cost, and the largest drop tried instead."""
    owner = bench.embed("adi", 0, 0.8)
    at(bench, owner, "epochs", {1: (0.01, FOUND), 2: (0.04, FOUND)})

    (bracket,) = sweep_of(bench).brackets

    assert (bracket.cost, bracket.after, bracket.beats_scratch) == (None, None, None)
    assert bracket.kept == pytest.approx(0.04)
    assert median_cost([bracket]) == (pytest.approx(0.04), True)


@pytest.mark.parametrize("n", [2, 4, 6, 8, 10, 24, 28, 30, 38])
def test_with_an_even_number_of_seeds_the_cheaper_one_decides(n: int) -> None:
    """The median is the first cost at which half of the marks are gone: the lower of the two in the middle."""
    brackets = [Bracket(seed=i, cost=0.01 * (i + 1), kept=None) for i in range(n)]

    assert median_cost(brackets) == (brackets[n // 2 - 1].cost, False)


def test_a_censored_seed_counts_as_at_risk_up_to_the_largest_drop_tried() -> None:
    """Kaplan and Meier by hand: after 0.1 two thirds stand; the seed censored at 0.2 leaves; 0.3 takes the rest."""
    brackets = [
        Bracket(seed=0, cost=0.1, kept=None),
        Bracket(seed=1, cost=None, kept=0.2),
        Bracket(seed=2, cost=0.3, kept=None),
        Bracket(seed=3, cost=None, kept=None),  # nothing is known of it
    ]

    assert median_cost(brackets) == (0.3, False)
    assert median_cost(brackets[:2]) == (0.1, False)
    assert median_cost(brackets[1:2]) == (0.2, True)
    assert median_cost(brackets[3:]) is None


def test_a_cost_comes_before_a_seed_censored_at_the_same_drop() -> None:
    """The censored seed was still at risk there: of two at 0.1 one fell, which is half."""
    assert median_cost([Bracket(seed=0, cost=None, kept=0.1), Bracket(seed=1, cost=0.1, kept=None)]) == (0.1, False)


def test_a_removal_no_better_than_scratch_says_so(bench: Bench) -> None:
    """The cost stays, with a flag whether the suspect beats training from scratch."""
    for seed, scratch in ((0, 0.6), (1, 0.79)):
        owner = bench.embed("adi", seed, 0.8)
        cell = {"strength_name": "epochs", "strength": 1.0, "scratch": bench.scratch(seed, scratch).id}
        bench.attacked(owner, "finetune", {"epochs": 1}, 0.78, verdict(LOST), **cell)

    assert [b.beats_scratch for b in sweep_of(bench).brackets] == [True, False]


def test_a_seed_without_a_mark_has_no_cost(bench: Bench) -> None:
    """A seed whose published model has no mark is left out of costs and areas."""
    for seed, hits in ((0, FOUND), (1, LOST)):
        owner = bench.embed("adi", seed, 0.8)
        bench.judge(owner, owner, verdict(hits))
        at(bench, owner, "epochs", {1: (0.02, LOST)})

    tested = sweep_of(bench)

    assert [b.seed for b in tested.brackets] == [0]
    assert len(tested.aumc) == 1


def test_attacks_are_told_apart_by_all_but_their_strength(bench: Bench) -> None:
    """Other parameters, budgets and roles make separate sweeps; listed and searched strengths do not."""
    owner = bench.embed("adi", 0, 0.8)
    at(bench, owner, "epochs", {1: (0.0, FOUND)}, variant="ftal")
    at(bench, owner, "epochs", {1: (0.0, FOUND)}, variant="rtal")
    cell = {"strength_name": "epochs", "attack_params": {"variant": "ftal", "epochs": 3}, "strength": 3.0}
    suspect = bench.attack(owner, "finetune", {"variant": "ftal", "epochs": 3}, 0.79)
    cell |= {"attack": "finetune", "attack_task": suspect.id}
    bench.judge(owner, suspect, verdict(FOUND), budget=BUDGET, searched=True, **cell)
    bench.judge(owner, suspect, verdict(FOUND), budget=BUDGET, head="original", **cell)
    bench.judge(owner, suspect, verdict(FOUND), budget=BUDGET, claim=True, **cell)
    bench.judge(owner, bench.clean(0), verdict(9), control="clean")

    found = [[row.strength for row in c.rows] for c in attack_sweeps(rows_of(bench))]

    assert found == [[1.0, 3.0], [1.0], [3.0]]


def test_failed_rows_have_no_cost(bench: Bench) -> None:
    """A row without a verdict counts neither as kept nor as removed."""
    sweep(bench, bench.embed("adi", 0), [(0.89, FOUND), (0.88, LOST)])
    bench.fail(bench.plan.cells[1].suspect)

    (bracket,) = sweep_of(bench).brackets

    assert bracket.cost is None


# Families


def test_families_are_those_of_the_plugins(bench: Bench) -> None:
    """An attack that is not installed is of no known family."""
    owner = bench.embed("adi", 0)
    for attack in ("finetune", "prune_weights", "overwrite", "who_knows"):
        bench.attacked(owner, attack, {}, 0.89, verdict(FOUND))

    found = [c.family for c in attack_sweeps(rows_of(bench))]

    assert found == ["tune", "prune", "overwrite", UNKNOWN_FAMILY]


def test_a_family_costs_what_its_cheapest_attack_costs() -> None:
    """Seed by seed: the smallest cost; the largest drop tried where none of the family removed the mark."""
    attacks = [
        Bracket(seed=0, cost=0.05, kept=0.01),
        Bracket(seed=1, cost=None, kept=0.02),
        Bracket(seed=0, cost=0.03, kept=0.02),
        Bracket(seed=1, cost=None, kept=0.3),
        Bracket(seed=2, cost=None, kept=0.4),
        Bracket(seed=2, cost=0.1, kept=0.0),
    ]

    assert [(b.seed, b.cost, b.kept) for b in cheapest_of(attacks)] == [(0, 0.03, 0.02), (1, None, 0.3), (2, 0.1, 0.0)]


# Area under the margin


def row(drop: float | None, margin: float) -> ResultRow:
    """A suspect as far as the envelope reads it."""
    return row_of(relative_drop=drop, margin=margin)


def test_the_envelope_ignores_suspects_of_larger_drop_and_margin() -> None:
    """A suspect of larger drop and margin is no step; negative drops count as zero; margins stay in [0, 1]."""
    steps = envelope([row(0.1, 0.4), row(0.05, 0.6), row(0.07, 0.9), row(-0.01, 0.8), row(0.3, -2.0), row(None, 0)], 1)

    assert steps == [(0.0, 1.0), (0.0, 0.8), (0.05, 0.6), (0.1, 0.4), (0.3, 0.0)]


@pytest.mark.parametrize(
    ("rows", "start", "expected"),
    [
        ([], 1.0, 1.0),
        ([row(0.0, -0.5)], 1.0, 0.0),
        ([row(0.1, 0.0)], 1.0, 0.5),
        ([row(0.1, 0.5)], 1.0, 0.75),
        ([row(0.05, 0.5), row(0.15, 0.0)], 0.8, 0.25 * 0.8 + 0.5 * 0.5),
        ([row(0.9, 0.0)], 1.0, 1.0),  # beyond reach: nobody pays that
    ],
)
def test_the_area_is_the_share_of_the_mark_that_is_left(rows: list[ResultRow], start: float, expected: float) -> None:
    """1 if every margin within a drop of 20 % is 1, 0 if a drop of zero removes the mark."""
    assert aumc(rows, start) == pytest.approx(expected)


def test_a_locked_model_starts_at_its_own_margin(bench: Bench) -> None:
    """The published model has drop zero in the envelope, even if its own relative drop is large."""
    owner = bench.embed("dsn", 0, 0.8, unlicensed_test=0.1, unlicensed_val=0.1)
    bench.judge(owner, owner, verdict(100))
    at(bench, owner, "epochs", {1: (0.1, LOST)})

    (area,) = sweep_of(bench).aumc

    assert area == pytest.approx(0.5)
