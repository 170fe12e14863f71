"""Evidence is exact: tails, thresholds, intervals, also where a probability is smaller than any float."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom, pearsonr

from wmarena.schemes.statistics import (
    GRINDING_KEYS_LOG10,
    LEVEL,
    binomial_band,
    binomial_threshold,
    clopper_pearson,
    correlation_threshold,
    discrete_ks,
    log10_adjusted,
    log10_binomial_tail,
    log10_correlation_tail,
    margin,
    mcnemar,
)

LEVELS = (1e-3, 1e-6, 1e-9, 2.0**-40, 2.0**-64, 2.0**-128)

THRESHOLDS: dict[tuple[int, int], tuple[int, ...]] = {
    (64, 2): (45, 51, 56, 59),
    (100, 2): (66, 74, 80, 85, 93),
    (128, 2): (82, 92, 98, 104, 113),
    (256, 2): (154, 167, 176, 184, 200, 227),
    (512, 2): (292, 311, 324, 336, 358, 400),
    (600, 2): (339, 359, 374, 387, 411, 457),
    (100, 10): (21, 28, 33, 37, 46),
    (100, 43): (9, 13, 17, 20, 26),
    (100, 100): (6, 9, 12, 15, 20),
    (100, 1000): (3, 5, 7, 8, 12),
    (250, 10): (42, 51, 58, 65, 78),
    (250, 100): (10, 14, 18, 21, 28),
}
"""(n, 1/q) -> smallest passing k at ``LEVELS``, checked in rational arithmetic."""


def exact_tail(k: int, n: int, q: Fraction) -> Fraction:
    """P[X >= k] without rounding."""
    return sum((math.comb(n, i) * q**i * (1 - q) ** (n - i) for i in range(k, n + 1)), Fraction(0))


def exact_log10(value: Fraction) -> float:
    """log10 of a fraction whose value may underflow a float."""
    return math.log10(value.numerator) - math.log10(value.denominator)


counts = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
chances = st.sampled_from([Fraction(1, 2), Fraction(1, 3), Fraction(1, 10), Fraction(1, 43), Fraction(1, 1000)])


@settings(deadline=None, max_examples=60)
@given(counts, chances)
def test_tail_is_exact(count: tuple[int, int], q: Fraction) -> None:
    """log10 P agrees with rational arithmetic to nine digits, from certainty to 10^-1200."""
    k, n = count
    expected = exact_log10(exact_tail(k, n, q))

    assert log10_binomial_tail(k, n, float(q)) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(counts, st.floats(0.01, 0.99))
def test_tail_is_scipys(count: tuple[int, int], q: float) -> None:
    """Where scipy's own logarithm has all its digits, log10 P is that number."""
    k, n = count
    expected = float(binom.logsf(k - 1, n, q)) / math.log(10)
    if expected > -250:
        assert log10_binomial_tail(k, n, q) == pytest.approx(min(0.0, expected), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("n", [600, 1100, 5000])
def test_perfect_mark_has_a_finite_p(n: int) -> None:
    """All of n bits: p = 2^-n, although no float is that small."""
    assert log10_binomial_tail(n, n, 0.5) == pytest.approx(-n * math.log10(2), rel=1e-12)


@settings(deadline=None)
@given(st.integers(900, 5000), st.floats(0.02, 0.5))
def test_tail_falls_without_a_step(n: int, q: float) -> None:
    """Every further match makes p smaller, also where one way of computing takes over from the other."""
    tails = [log10_binomial_tail(k, n, q) for k in range(n - 600, n + 1, 37)]

    assert all(math.isfinite(t) for t in tails)
    assert all(after < before or after == before == 0.0 for before, after in itertools.pairwise(tails))


@pytest.mark.parametrize(("k", "n", "q", "log10_p"), [(420, 600, 0.5, -22.65), (600, 600, 0.5, -180.6)])
def test_known_numbers(k: int, n: int, q: float, log10_p: float) -> None:
    """Figures that papers and manuals quote."""
    assert log10_binomial_tail(k, n, q) == pytest.approx(log10_p, abs=0.05)


@pytest.mark.parametrize(("case", "expected"), list(THRESHOLDS.items()))
def test_threshold_table(case: tuple[int, int], expected: tuple[int, ...]) -> None:
    """The published table of smallest passing counts; beyond it, levels that n outcomes cannot reach are n + 1."""
    n, classes = case
    found = tuple(binomial_threshold(n, 1 / classes, level) for level in LEVELS)

    assert found[: len(expected)] == expected


@settings(deadline=None)
@given(st.integers(1, 2000), chances, st.floats(1e-40, 0.5))
def test_threshold_is_the_smallest_that_passes(n: int, q: Fraction, level: float) -> None:
    """At the threshold p is at most the level, one match below it is not; n + 1 means that nothing passes."""
    k = binomial_threshold(n, float(q), level)
    goal = math.log10(level)

    assert k == n + 1 or log10_binomial_tail(k, n, float(q)) <= goal
    assert log10_binomial_tail(k - 1, n, float(q)) > goal


@pytest.mark.parametrize(("k", "n"), [(-1, 10), (11, 10)])
def test_impossible_counts_are_refused(k: int, n: int) -> None:
    """More matches than trials is a mistake, not strong evidence."""
    with pytest.raises(ValueError, match="expected 0 <= k <= n"):
        log10_binomial_tail(k, n, 0.5)


def test_margin_is_one_for_perfection_and_zero_at_the_threshold() -> None:
    """The scale of a margin; a test that nothing can pass has the margin -1, or 0 for a perfect statistic."""
    assert margin(1.0, 0.6) == 1.0
    assert margin(0.6, 0.6) == 0.0
    assert margin(0.3, 0.6) == pytest.approx(-0.75)
    assert (margin(0.9, 1.0), margin(1.0, 1.0)) == (-1.0, 0.0)


def test_grinding_costs_the_number_of_keys() -> None:
    """Evidence that 2^64 keys could have produced is none; stronger evidence is that much weaker."""
    assert log10_adjusted(-GRINDING_KEYS_LOG10) == 0.0
    assert log10_adjusted(-10.0) == 0.0
    assert log10_adjusted(-100.0) == pytest.approx(-100 + 64 * math.log10(2))
    assert log10_adjusted(-3.0, log10_keys=2.0) == -1.0


@settings(deadline=None)
@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.95, 0.99]))
def test_interval_is_clopper_and_pearsons(count: tuple[int, int], confidence: float) -> None:
    """The interval's ends are quantiles of beta distributions (Clopper and Pearson 1934)."""
    k, n = count
    half = (1 - confidence) / 2
    low = 0.0 if k == 0 else float(beta.ppf(half, k, n - k + 1))
    high = 1.0 if k == n else float(beta.ppf(1 - half, k + 1, n - k))

    assert clopper_pearson(k, n, confidence) == pytest.approx((low, high), abs=1e-8)


@pytest.mark.parametrize(("n", "q"), [(600, 0.5), (100, 0.1), (128, 0.5)])
def test_band_holds_what_it_says(n: int, q: float) -> None:
    """At most 0.1 % of unrelated models fall outside the band, and half of that on either side."""
    low, high = binomial_band(n, q)
    inside = binom.cdf(round(high * n), n, q) - binom.cdf(round(low * n) - 1, n, q)

    assert inside >= 0.999
    assert binom.cdf(round(low * n) - 1, n, q) <= 0.0005
    assert 10 ** log10_binomial_tail(round(high * n) + 1, n, q) <= 0.0005


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_the_sign_test(first: int, second: int) -> None:
    """Two-sided and exact: twice the smaller tail of the discordant pairs, at most 1, whichever comes first."""
    n = first + second
    tail = sum(math.comb(n, i) for i in range(min(first, second) + 1)) / 2**n

    assert mcnemar(first, second) == pytest.approx(min(1.0, 2 * tail))
    assert mcnemar(first, second) == mcnemar(second, first)


@pytest.mark.parametrize("n", [5, 10, 100, 1000])
def test_correlation_tail_is_the_level_of_scipys_interval(n: int) -> None:
    """P[R >= r] is the level at which scipy's own one-sided interval around r begins at zero."""
    turns = 2 * math.pi * np.arange(n) / n
    r = min(0.9, 2 / math.sqrt(n))
    found = pearsonr(np.cos(turns), r * np.cos(turns) + math.sqrt(1 - r * r) * np.sin(turns), alternative="greater")
    tail = 10 ** log10_correlation_tail(found.statistic, n)

    assert found.statistic == pytest.approx(r)
    assert found.confidence_interval(1 - tail).low == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("n", "threshold"), [(4, 0.999851), (10, 0.946455), (100, 0.448353), (1000, 0.149415)])
def test_known_correlations_pass(n: int, threshold: float) -> None:
    """The smallest r at the default level of 1e-6, as printed; there the tail is the level, for other levels too."""
    assert correlation_threshold(n) == pytest.approx(threshold, abs=1e-6)
    for level in (LEVEL, 1e-3, 1e-12):
        assert log10_correlation_tail(correlation_threshold(n, level), n) == pytest.approx(math.log10(level), rel=1e-6)


def test_correlation_needs_four_values() -> None:
    """With three the transform has no variance; a perfect correlation of four has a finite p-value."""
    with pytest.raises(ValueError, match="expected 4 values or more to correlate, got 3"):
        log10_correlation_tail(0.5, 3)
    assert log10_correlation_tail(0.0, 4) == pytest.approx(math.log10(0.5))
    assert -400 < log10_correlation_tail(1.0, 4) < -60
    assert log10_correlation_tail(-1.0, 4) == pytest.approx(0.0)


def test_confidence_is_95_and_99_9_percent_unless_stated() -> None:
    """Figures of printed tables: 8 of 10 is 44 to 97 %; 600 fair coins show 43.3 to 56.7 % heads."""
    assert LEVEL == 1e-6
    assert clopper_pearson(8, 10) == pytest.approx((0.4439, 0.9748), abs=1e-4)
    assert binomial_band(600, 0.5) == (260 / 600, 340 / 600)


def test_equal_distances_count_as_evidence_for_the_hypothesis() -> None:
    """One throw of a fair coin is as far from fair as every other: p = 1; without draws nothing is concluded."""
    assert discrete_ks([0], 1, 0.5) == 1.0
    assert discrete_ks([1], 1, 0.5, draws=0) == 1.0


def test_a_shifted_rate_is_noticed() -> None:
    """Counts of the stated rate are plausible, counts of another are as rare as the simulation can tell."""
    rng = np.random.default_rng(0)

    assert discrete_ks(rng.binomial(100, 0.5, 50).tolist(), 100, 0.5) > 0.05
    assert discrete_ks(rng.binomial(100, 0.6, 50).tolist(), 100, 0.5) == 1 / 2001
