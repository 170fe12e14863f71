"""Bounds of papers: above the exact tail, best at their optimum, and what MTLSign's figure really is."""

import math

import pytest

from wmarena.schemes.bounds import best_exponent, log10_chernoff, log10_hoeffding
from wmarena.schemes.statistics import log10_binomial_tail

CASES = [(420, 600, 0.5), (420, 600, 0.575), (30, 100, 0.1), (64, 64, 0.5)]


@pytest.mark.parametrize(("k", "n", "q"), CASES)
def test_bounds_lie_above_the_exact_tail(k: int, n: int, q: float) -> None:
    """Exact tail <= best Chernoff <= Hoeffding, and <= Chernoff with any other exponent."""
    exact, best = log10_binomial_tail(k, n, q), log10_chernoff(k, n, q)

    assert exact <= best + 1e-9
    assert best <= log10_hoeffding(k, n, q) + 1e-9
    for exponent in (0.1, 0.34, 1.0):
        assert best <= log10_chernoff(k, n, q, exponent) + 1e-9


def test_best_chernoff_is_a_divergence() -> None:
    """At its optimum the bound is exp(-n KL(a || q)); where all match it is the exact tail q^n."""
    a, q = 0.7, 0.5
    divergence = a * math.log(a / q) + (1 - a) * math.log((1 - a) / (1 - q))

    assert log10_chernoff(420, 600, q) == pytest.approx(-600 * divergence / math.log(10))
    assert log10_chernoff(64, 64, q) == pytest.approx(log10_binomial_tail(64, 64, q))
    assert math.isinf(best_exponent(64, 64, q))


def test_the_published_bound_of_mtlsign_needs_another_exponent() -> None:
    """At q = .575 an exponent of .34 gives 3.37e-8; 2.69e-8 needs .3486; the best, .545, gives 2.23e-9."""
    assert 10 ** log10_chernoff(420, 600, 0.575, 0.34) == pytest.approx(3.37e-8, rel=2e-3)
    assert 10 ** log10_chernoff(420, 600, 0.575, 0.3486) == pytest.approx(2.69e-8, rel=2e-3)
    assert best_exponent(420, 600, 0.575) == pytest.approx(0.545, abs=5e-4)
    assert 10 ** log10_chernoff(420, 600, 0.575) == pytest.approx(2.23e-9, rel=2e-3)
    assert log10_binomial_tail(420, 600, 0.5) == pytest.approx(-22.65, abs=5e-3)


def test_lower_tails_are_refused() -> None:
    """A share at or below q has no upper-tail bound of this kind."""
    for bound in (log10_hoeffding, log10_chernoff):
        with pytest.raises(ValueError, match="expected more than"):
            bound(50, 100, 0.5)
