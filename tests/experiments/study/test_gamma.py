"""γ on stored statistics: bounds, power, choice."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, binom

from tests.experiments.evidence_factory import BUDGET, Bench, rows_of, verdict
from wmarena.experiments.study.gamma import Statistics, statistics_of

FOUND = Statistics(null=(0.4, 0.5, 0.6), marked=(1.0, 1.0), attacked={"finetune": (0.9, 0.7)}, n=100, q=0.5, own=0.7)


def test_exact_tail_bounds_false_positives() -> None:
    """Where outputs are random by construction, the bound is the binomial tail from ceil(γ n) on."""
    assert FOUND.false_positive_bound(0.7) == pytest.approx(binom.sf(69, 100, 0.5), rel=1e-9)
    assert FOUND.false_positive_bound(None) == FOUND.false_positive_bound(0.7)


def test_a_share_between_two_counts_needs_the_larger() -> None:
    """γ = 0.705 of 100 is 71 matches: 70 do not reach it."""
    assert FOUND.false_positive_bound(0.705) == pytest.approx(binom.sf(70, 100, 0.5), rel=1e-9)
    assert FOUND.false_positive_bound(0.0) == pytest.approx(1.0)


def test_rounding_adds_no_match() -> None:
    """γ = 0.57 of 100 is 57 matches, although 0.57 * 100 is a little more in floating point."""
    assert FOUND.false_positive_bound(0.57) == pytest.approx(binom.sf(56, 100, 0.5), rel=1e-9)


def test_without_a_null_model_the_observed_rate_is_bounded() -> None:
    """Clopper-Pearson, one-sided 95 %: no hit in three trials allows 63 %."""
    found = Statistics(null=FOUND.null, marked=(1.0,))
    assert found.false_positive_bound(0.65) == pytest.approx(beta.ppf(0.95, 1, 3))


def test_power_counts_marked_and_attacked() -> None:
    """The share that passes, of all or after one attack, with an interval around it."""
    assert FOUND.power(0.8) == 0.75
    assert FOUND.power(0.8, "finetune") == 0.5
    low, high = FOUND.power_interval(0.8)
    assert low < 0.75 < high


def test_the_smallest_threshold_that_keeps_a_rate_is_chosen() -> None:
    """A step below it breaks the rate; nothing above it has more power."""
    chosen = FOUND.choose(1e-6)
    assert chosen is not None
    assert (FOUND.false_positive_bound(chosen) or 1) <= 1e-6 < (FOUND.false_positive_bound(chosen - 0.01) or 0)


@given(st.lists(st.floats(0, 1), min_size=1), st.lists(st.floats(0, 1), min_size=1), st.floats(0, 1), st.floats(0, 1))
def test_a_higher_threshold_never_passes_more(null: list[float], marked: list[float], one: float, other: float) -> None:
    """False positives and power both fall with γ, whatever was measured."""
    found = Statistics(null=tuple(null), marked=tuple(marked))
    low, high = sorted((one, other))
    assert (found.false_positive_bound(low) or 0) >= (found.false_positive_bound(high) or 0)
    assert (found.power(low) or 0) >= (found.power(high) or 0)


def test_statistics_survive_the_journal() -> None:
    """What is read back equals what was written."""
    assert Statistics.of(FOUND.document()) == FOUND


def test_removals_count_within_the_budget_only() -> None:
    """A suspect beyond the budget is no positive; one with a drop of exactly the budget is.

    Neither are claims, controls, plugged-back heads or realigned suspects.
    """
    bench = Bench()
    owner = bench.embed("adi", 0, 0.75)
    bench.judge(owner, owner, verdict(100))
    for epochs, (metric, hits) in enumerate([(0.7, 90), (0.5, 80), (0.49, 20)], start=1):
        budget = {**BUDGET, "max_drop": 0.25}
        bench.attacked(owner, "finetune", {"epochs": epochs}, metric, verdict(hits), budget=budget)
    bench.attacked(owner, "overwrite", {"lr": 0.1}, 0.75, verdict(30), claim=True)
    bench.attacked(owner, "finetune", {"variant": "rtal"}, 0.75, verdict(31), head="original")
    bench.attacked(owner, "finetune", {"variant": "ftal"}, 0.75, verdict(32), realigned=True)
    bench.judge(owner, bench.clean(0), verdict(11), control="clean")

    found = statistics_of(rows_of(bench), bench.plan.cells, bench.records)

    assert found.attacked == {"finetune": (0.9, 0.8)}
    assert (found.marked, found.null) == ((1.0,), (0.11,))
    assert (found.n, found.q, found.own) == (100, 0.1, 0.28)
    assert found.power(0.75) == 1.0
    assert found.power(0.85, "finetune") == 0.5


def test_intervals_are_of_95_percent() -> None:
    """Three of four and two of three, as printed tables have them."""
    assert FOUND.power_interval(0.8) == pytest.approx((0.1941, 0.9937), abs=1e-4)
    assert FOUND.false_positive_interval(0.5) == pytest.approx((0.0943, 0.9916), abs=1e-4)


def test_known_choices() -> None:
    """74 of 100 coins; without a null model the smallest value seen that no unmarked model reaches."""
    observed = Statistics(null=FOUND.null, marked=(0.9, 1.0))

    assert FOUND.choose(1e-6) == 0.74
    assert observed.choose(0.65) == 0.9
    assert observed.choose(0.6) is None
    assert observed.thresholds() == [0.0, 0.4, 0.5, 0.6, 0.9, 1.0]


def test_without_evidence_there_are_no_rates() -> None:
    """No positives, no power; no unmarked model and no null model, no bound; no threshold, neither."""
    nothing, unset = Statistics(), replace(FOUND, own=None)

    assert (nothing.power(0.5), nothing.false_positive_bound(0.5)) == (None, None)
    assert (unset.power(None), unset.false_positive_bound(None)) == (None, None)
    assert FOUND.power(0.5, "never run") is None


def test_the_schemes_own_threshold_is_the_papers_or_the_verdicts() -> None:
    """γ where the scheme has one; a statistic that is no share of matches has neither n nor q."""
    bench = Bench()
    owner = bench.embed("mtlsign", 0)
    bench.judge(owner, owner, verdict(100, p_method="key_randomisation"), scheme_params={"gamma": 0.6})
    found = statistics_of(rows_of(bench), bench.plan.cells, bench.records)

    assert (found.own, found.n, found.q, found.marked) == (0.6, None, None, (1.0,))


def test_calibration_keys_count_as_unmarked() -> None:
    """The pairs of a finished calibration join the null statistics; those of other cells and failed ones do not."""
    bench = Bench()
    owner = bench.embed("adi", 0)
    cells = [bench.judge(owner, bench.clean(s), verdict(1), control="calibration") for s in (0, 1)]
    cells.append(bench.judge(owner, owner, verdict(1), control="clean"))
    pairs = {"calibration": {"pairs": [{"statistic": 0.1}, {"statistic": 0.2}]}}
    for cell in cells:
        bench.records[cell.verify] = replace(bench.records[cell.verify], result=pairs)
    bench.fail(cells[1].verify)

    assert statistics_of([], cells, bench.records).null == (0.1, 0.2)
