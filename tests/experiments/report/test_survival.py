"""Survival: labels, comparisons, the attacker's cost, curves."""

import pytest

from tests.experiments.evidence_factory import Bench, rows_of, sweep, verdict
from wmarena.experiments.report.labels import Labels
from wmarena.experiments.report.sections.curves import curve, mean_curve, swept
from wmarena.experiments.report.sections.survival import AttackComparison, comparisons
from wmarena.experiments.results.costs import Bracket, median_cost


def comparison_of(bench: Bench, attack: str = "finetune") -> AttackComparison:
    """The only comparison with an attack."""
    rows = rows_of(bench)
    (found,) = (d for d in comparisons(rows, Labels(rows)) if d.attack_label.name == attack)
    return found


# Names


def test_labels_show_distinguishing_parameters(bench: Bench) -> None:
    """A parameter is named only if one victim saw two values of it; words stand without their field."""
    owner = bench.embed("adi", 0)
    for variant in ("ftal", "rtal"):
        bench.attacked(owner, "finetune", {"variant": variant, "lr": 0.001}, 0.89, verdict(90))
    bench.attacked(owner, "prune", {"sparsity": 0.5}, 0.89, verdict(90))
    rows = rows_of(bench)

    found = [str(Labels(rows).attack_label(row)) for row in rows]

    assert found == ["finetune ftal", "finetune rtal", "prune"]


def test_defaults_resolved_from_the_victim_are_no_variants(bench: Bench) -> None:
    """The same attack filled in differently for two schemes is one line of the matrix."""
    for scheme in ("adi", "uchida"):
        owner = bench.embed(scheme, 0)
        bench.attacked(owner, "overwrite", {"scheme": {"name": scheme}}, 0.89, verdict(90))
    rows = rows_of(bench)
    labels = Labels(rows)

    assert len({labels.attack_label(row) for row in rows}) == 1


def test_schemes_and_workloads_are_told_apart(bench: Bench) -> None:
    """Two configurations of one scheme, and of one workload, have different names."""
    owner = bench.embed("adi", 0)
    for mode in ("scratch", "pretrained"):
        bench.judge(owner, owner, verdict(90), scheme_params={"mode": mode}, attack_params={"for": mode})
    bench.workload = {**bench.workload, "epochs": 20}
    longer = bench.embed("uchida", 0)
    bench.judge(longer, longer, verdict(90))
    rows = rows_of(bench)
    labels = Labels(rows)

    found = [(str(v.scheme), v.workload) for v in map(labels.victim, rows)]

    assert found == [
        ("adi scratch", "digits_mlp epochs=6"),
        ("adi pretrained", "digits_mlp epochs=6"),
        ("uchida", "digits_mlp epochs=20"),
    ]


def test_the_owners_head_is_another_line(bench: Bench) -> None:
    """Verdicts with the deployed and with the owner's output layer are not mixed."""
    owner = bench.embed("adi", 0)
    for head, hits in (("deployed", 15), ("original", 95)):
        bench.attacked(owner, "finetune", {"variant": "rtal"}, 0.89, verdict(hits), head=head)
    rows = rows_of(bench)

    found = {str(d.attack_label): d.outcome for d in comparisons(rows, Labels(rows))}

    assert found == {"finetune": "removed", "finetune, owner's head": "kept"}


# Survival


@pytest.mark.parametrize(
    ("outcomes", "expected", "decisive"),
    [
        ([(0.89, 95), (0.88, 70)], "kept", 2.0),  # smallest margin within the budget
        ([(0.89, 95), (0.70, 50)], "kept", 1.0),  # a weaker mark on an overpriced model does not decide
        ([(0.89, 95), (0.88, 15), (0.86, 11)], "removed", 2.0),  # the cheapest removal
        ([(0.89, 95), (0.70, 12)], "kept", 1.0),  # nor does a lost mark there
        ([(0.75, 12), (0.70, 11)], "worthless", 1.0),  # lost, but only on worthless models
        ([(0.59, 95), (0.86, 12)], "removed", 2.0),  # a removal decides, wherever the other rows are
        ([(0.80, 95), (0.70, 90)], "kept", 1.0),  # nothing within the budget: the gentlest
    ],
)
def test_the_adversary_chooses_the_strength(
    bench: Bench, outcomes: list[tuple[float, int]], expected: str, decisive: float
) -> None:
    """A seed is judged by the adversary's best row."""
    sweep(bench, bench.embed("adi", 0), outcomes)

    comparison = comparison_of(bench)

    assert (comparison.outcome, comparison.seeds[0].row.strength) == (expected, decisive)


def test_seeds_that_disagree_are_mixed(bench: Bench) -> None:
    """One seed lost of two is neither survived nor removed."""
    sweep(bench, bench.embed("adi", 0), [(0.89, 12)])
    sweep(bench, bench.embed("adi", 1), [(0.89, 95)])

    comparison = comparison_of(bench)

    assert (comparison.outcome, comparison.survived, comparison.removed) == ("mixed", 1, 1)


def test_a_missing_mark_is_not_removed(bench: Bench) -> None:
    """A seed without a mark counts neither as survived nor as removed."""
    owner = bench.embed("adi", 0)
    bench.judge(owner, owner, verdict(12))
    sweep(bench, owner, [(0.89, 12)])

    comparison = comparison_of(bench)

    assert (comparison.outcome, comparison.survived, comparison.removed) == ("unmarked", 0, 0)


def test_no_scratch_model_leaves_a_removal_open(bench: Bench) -> None:
    """Without the model to beat, a fallen verdict is undecided."""
    sweep(bench, bench.embed("adi", 0), [(0.89, 12)], scratch=None)

    assert comparison_of(bench).outcome == "undecided"


def test_a_suspect_no_better_than_scratch_is_worthless(bench: Bench) -> None:
    """A cheap removal on a model that the adversary could have trained alone counts as survived, and says why."""
    sweep(bench, bench.embed("adi", 0), [(0.88, 12)], scratch=bench.scratch(0, 0.88).id)

    comparison = comparison_of(bench)

    assert (comparison.outcome, comparison.survived) == ("worthless", 1)


def test_failed_rows_are_counted_not_judged(bench: Bench) -> None:
    """A comparison knows how many of its rows have no number."""
    sweep(bench, bench.embed("adi", 0), [(0.89, 95), (0.88, 12)])
    bench.fail(bench.plan.cells[1].suspect)

    comparison = comparison_of(bench)

    assert (comparison.outcome, comparison.unfinished) == ("kept", 1)


# Attacker's cost


@pytest.mark.parametrize(
    ("costs", "expected"),
    [
        ([(0.1, None), (0.2, None), (0.3, None)], (0.2, False)),
        ([(0.1, None), (None, 0.9), (None, 0.9)], (0.9, True)),
        ([(0.1, None), (0.2, None), (None, 0.9)], (0.2, False)),
        ([(None, 0.4), (None, 0.5)], (0.5, True)),
        ([(None, 0.05), (0.1, None), (0.2, None)], (0.1, False)),  # censored early: not at risk later
        ([(None, None)], None),
        ([], None),
    ],
)
def test_median_cost_knows_censoring(
    costs: list[tuple[float | None, float | None]], expected: tuple[float, bool] | None
) -> None:
    """Kaplan-Meier: a seed that never flipped costs more than the largest drop tried on it."""
    brackets = [Bracket(seed=i, cost=cost, kept=kept) for i, (cost, kept) in enumerate(costs)]

    assert median_cost(brackets) == expected


def test_brackets_hold_both_sides_of_the_flip(bench: Bench) -> None:
    """Per seed: the largest drop at which the verdict stood, the smallest at which it had fallen."""
    sweep(bench, bench.embed("adi", 0, 0.8), [(0.796, 95), (0.784, 60), (0.76, 12), (0.72, 11)])

    (bracket,) = comparison_of(bench).sweep.brackets

    assert bracket.kept == pytest.approx(0.02)
    assert bracket.cost == pytest.approx(0.05)


# Curves


def test_curves_follow_strength_not_planning_order(bench: Bench) -> None:
    """Points are sorted by strength; means are over seeds."""
    for seed, hits in ((0, 80), (1, 90)):
        owner = bench.embed("adi", seed)
        for strength in (2.0, 1.0):
            params = {"epochs": strength}
            more = {"strength_name": "epochs", "strength": strength}
            bench.attacked(owner, "finetune", params, 0.9 - 0.01 * strength, verdict(hits), **more)

    comparison = comparison_of(bench)

    assert [(p.strength, p.seed) for p in curve(comparison)] == [(1.0, 0), (1.0, 1), (2.0, 0), (2.0, 1)]
    margin = ((0.8 - 0.28) + (0.9 - 0.28)) / 2 / (1 - 0.28)
    assert mean_curve(curve(comparison)) == [pytest.approx((1.0, margin)), pytest.approx((2.0, margin))]
    assert swept([comparison]) == [comparison.attack_label]
