"""Bounds on binomial tails that papers quote instead of the exact tail, for comparison (specs 0.4).

    Hoeffding      exp(-2 n (a - q)^2)                               a = k / n > q
    Chernoff       [(1 - q + q e^l) e^(-l a)]^n                       for any l > 0
    its optimum    exp(-n KL(a || q)) at l* = ln(a (1 - q) / (q (1 - a)))

All results are log10. Nothing decides a verdict by them: ``wmarena.schemes.statistics`` has the exact tail.
"""

import math


def _share(k: int, n: int, q: float) -> float:
    """Return k / n, checked to lie above q. Raises ValueError: the share is not above q."""
    share = k / n
    if not q < share <= 1:
        raise ValueError(f"expected more than {q:g} of {n}, got {k}: these bounds are of the upper tail")
    return share


def log10_hoeffding(k: int, n: int, q: float) -> float:
    """Return log10 of Hoeffding's bound on P[X >= k], X ~ Binomial(n, q)."""
    return -2 * n * (_share(k, n, q) - q) ** 2 / math.log(10)


def log10_chernoff(k: int, n: int, q: float, exponent: float | None = None) -> float:
    """Return log10 of Chernoff's bound on P[X >= k] with l = ``exponent``; None: with the best one."""
    share = _share(k, n, q)
    if exponent is None:
        exponent = best_exponent(k, n, q)
    if math.isinf(exponent):
        return n * math.log10(q)
    return n * (math.log(1 - q + q * math.exp(exponent)) - exponent * share) / math.log(10)


def best_exponent(k: int, n: int, q: float) -> float:
    """Return l*; infinite if all n match."""
    share = _share(k, n, q)
    return math.inf if share == 1 else math.log(share * (1 - q) / (q * (1 - share)))
