"""The bound printed in MTLSign's paper (2.69e-8 at lambda = .34) compared with the formula and the exact tail.

python -m benchmarks.bounds
"""

from wmarena.schemes.bounds import best_exponent, log10_chernoff, log10_hoeffding
from wmarena.schemes.statistics import log10_binomial_tail

K, N = 420, 600
"""gamma N and N of the paper: 70 % of 600 labels."""

MEASURED, TRUE = 0.575, 0.5
"""Chance in the paper (the maximum of 5,000 measured accuracies), and for unbiased labels."""


def rows() -> list[tuple[str, float]]:
    """Compute (description, log10 of the probability)."""
    best = best_exponent(K, N, MEASURED)
    return [
        ("Chernoff, q = .575, lambda = .34 (the paper's)", log10_chernoff(K, N, MEASURED, 0.34)),
        ("Chernoff, q = .575, lambda = .3486", log10_chernoff(K, N, MEASURED, 0.3486)),
        (f"Chernoff, q = .575, best lambda = {best:.3f}", log10_chernoff(K, N, MEASURED)),
        ("Hoeffding, q = .575", log10_hoeffding(K, N, MEASURED)),
        ("exact, q = .575", log10_binomial_tail(K, N, MEASURED)),
        ("Chernoff, q = .5, best lambda", log10_chernoff(K, N, TRUE)),
        ("exact, q = .5", log10_binomial_tail(K, N, TRUE)),
    ]


def main() -> None:
    """Print the table."""
    print(f"P[{K} of {N} labels match by chance]; the paper prints 2.69e-08 for lambda = .34\n")
    for what, log10_p in rows():
        print(f"{what:<50} {10**log10_p:9.2e}")


if __name__ == "__main__":
    main()
