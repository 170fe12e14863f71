"""Exact evidence: binomial tails in the log domain, thresholds, margins (specs 0.2-0.4, 5.2).

Tails are never computed as 1 - cdf; log10 p is stored, not p: 600 matching bits have p = 10^-180.6.
"""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy.special import logsumexp
from scipy.stats import binom, binomtest, norm

LEVEL = 1e-6
"""Significance at which ``verdict`` is decided for exact null models."""

GRINDING_KEYS_LOG10 = 64 * math.log10(2)
"""log10 of the 2^64 keys that a claimant might have tried before showing one."""

_LOG_TINY = -600.0
"""Natural logarithm below which a float64 tail loses digits (1e-261; the smallest normal number is 2e-308)."""


def log10_binomial_tail(k: int, n: int, q: float) -> float:
    """Return log10 P[X >= k], X ~ Binomial(n, q), exact; finite however small P is."""
    if not 0 <= k <= n:
        raise ValueError(f"expected 0 <= k <= n, got k={k}, n={n}")
    if k == 0:
        return 0.0
    tail = float(binom.logsf(k - 1, n, q))
    if tail < _LOG_TINY:
        # scipy takes the logarithm of the tail itself, which underflows for 1,100 matching bits.
        tail = float(logsumexp(binom.logpmf(np.arange(k, n + 1), n, q)))
    return min(0.0, tail / math.log(10))


@cache
def binomial_threshold(n: int, q: float, level: float = LEVEL) -> int:
    """Return the smallest k with P[X >= k] <= level; n + 1 when even k = n does not reach it."""
    goal = math.log10(level)
    # Bisection: the tail falls monotonically with k.
    low, high = 0, n + 1
    while low < high:
        middle = (low + high) // 2
        if middle > n or log10_binomial_tail(middle, n, q) <= goal:
            high = middle
        else:
            low = middle + 1
    return low


def log10_correlation_tail(r: float, n: int) -> float:
    """Return log10 P[R >= r] for n independent pairs: atanh(r) sqrt(n - 3) is standard normal (Fisher)."""
    if n < 4:
        raise ValueError(f"expected 4 values or more to correlate, got {n}")
    # atanh is infinite at 1, which a forged picture can reach.
    z = math.atanh(min(max(r, -1 + 1e-15), 1 - 1e-15)) * math.sqrt(n - 3)
    return min(0.0, float(norm.logsf(z)) / math.log(10))


def correlation_threshold(n: int, level: float = LEVEL) -> float:
    """Return the smallest correlation of n values with P[R >= r] <= level."""
    return math.tanh(float(norm.isf(level)) / math.sqrt(n - 3))


def margin(statistic: float, threshold: float) -> float:
    """Return (statistic - threshold) / (1 - threshold): 1 is perfect, 0 at the threshold, negative below."""
    if threshold >= 1.0:
        return 0.0 if statistic >= threshold else -1.0
    return (statistic - threshold) / (1.0 - threshold)


def log10_adjusted(log10_p: float, log10_keys: float = GRINDING_KEYS_LOG10) -> float:
    """Return log10 min(1, G p): the p-value if G keys may have been tried."""
    return min(0.0, log10_p + log10_keys)


def clopper_pearson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact confidence interval of a rate from k hits in n trials."""
    interval = binomtest(k, n).proportion_ci(confidence, method="exact")
    return float(interval.low), float(interval.high)


def binomial_band(n: int, q: float, confidence: float = 0.999) -> tuple[float, float]:
    """Return the central band of k/n under Binomial(n, q): where an unrelated model's statistic falls."""
    low, high = binom.interval(confidence, n, q)
    return float(low) / n, float(high) / n


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the exact two-sided McNemar p-value from the discordant counts of two paired classifiers."""
    discordant = only_first + only_second
    return 1.0 if discordant == 0 else float(binomtest(only_first, discordant, 0.5).pvalue)


def discrete_ks(counts: Sequence[int], n: int, q: float, *, draws: int = 2000) -> float:
    """Return the p-value of the hypothesis that ``counts`` are Binomial(n, q).

    The Kolmogorov-Smirnov distance is compared with its simulated distribution under the hypothesis: the textbook
    distribution holds for continuous variables only and would hide a shift.
    """
    rng = np.random.default_rng(20171208)
    cdf = binom.cdf(np.arange(n + 1), n, q)

    def distance(sample: np.ndarray) -> float:
        empirical = np.cumsum(np.bincount(sample, minlength=n + 1)) / len(sample)
        return float(np.abs(empirical - cdf).max())

    found = distance(np.asarray(counts))
    simulated = rng.binomial(n, q, size=(draws, len(counts)))
    return (1 + sum(distance(sample) >= found for sample in simulated)) / (draws + 1)
