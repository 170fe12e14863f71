"""Verdicts: a statistic with its threshold, its p-value and the null model of the p-value."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Required, TypedDict, Unpack

from wmarena.schemes.params import Json
from wmarena.schemes.statistics import (
    LEVEL,
    binomial_threshold,
    correlation_threshold,
    log10_adjusted,
    log10_binomial_tail,
    log10_correlation_tail,
    margin,
)

Access = Literal["black", "white"]
PMethod = Literal["binomial", "key_randomisation", "gauss", "hash"]


class VerdictContext(TypedDict, total=False):
    """Arguments that all constructors of a verdict share; only ``access`` is required."""

    access: Required[Access]
    queries: int
    details: Mapping[str, Json] | None
    caveats: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A decision with its statistics (specs 0.2-0.4, 5.2).

    Attributes:
        statistic: k / n for exact binomial tests; else the scheme's own statistic (a correlation may be negative).
        threshold: smallest passing statistic at ``level``; above 1 where nothing passes.
        log10_p: log10 of the p-value under ``p_method``'s null model.
        log10_p_adj: the same, corrected for 2^64 tried keys (or the number really tried).
        verdict: log10_p <= log10(level).
        verdict_paper: the paper's own rule, None where it has none.
        reason: "structure" when the suspect does not fit the key, else None.
    """

    statistic: float
    n: int
    k: int | None
    null_q: float | None
    threshold: float
    level: float
    log10_p: float
    log10_p_adj: float
    p_method: PMethod
    verdict: bool
    verdict_paper: bool | None
    margin: float
    access: Access
    queries: int = 0
    reason: str | None = None
    details: Mapping[str, Json] = field(default_factory=dict)
    caveats: tuple[str, ...] = ()

    @classmethod
    def binomial(
        cls, k: int, n: int, q: float, *, paper: bool | None, level: float = LEVEL, **context: Unpack[VerdictContext]
    ) -> "Verdict":
        """Judge k of n independent matches, each with probability q under the null (exact)."""
        k_pass = binomial_threshold(n, q, level)
        tested = _Tested(k / n, n, k_pass / n, level, log10_binomial_tail(k, n, q), "binomial", k=k, null_q=q)
        return cls._of(tested, k >= k_pass, paper, **context)

    @classmethod
    def gauss(
        cls, r: float, n: int, *, paper: bool | None, level: float = LEVEL, **context: Unpack[VerdictContext]
    ) -> "Verdict":
        """Judge a Pearson correlation of n values: atanh(r) sqrt(n - 3) is standard normal under the null (Fisher)."""
        log10_p, threshold = log10_correlation_tail(r, n), correlation_threshold(n, level)
        tested = _Tested(r, n, threshold, level, log10_p, "gauss")
        return cls._of(tested, log10_p <= math.log10(level), paper, **context)

    @classmethod
    def randomised(
        cls,
        k: int,
        n: int,
        random_counts: Sequence[int],
        n_keys: int,
        *,
        paper: bool,
        paper_threshold: float,
        **context: Unpack[VerdictContext],
    ) -> "Verdict":
        """Judge k of n matches against the counts of random keys on the same suspect; ties count against the claimant.

        p = (1 + #{r: T_r >= T}) / (R + 1); the level is the smallest attainable p, and the paper's rule must hold
        too (specs 0.2, A.7). A search that was stopped early (Besag and Clifford 1991) passes fewer counts than keys:
        p is then exceedances / draws.

        Args:
            random_counts: matches of the random keys that were drawn, at most ``n_keys``.
            n_keys: R, the planned number of random keys.
            paper_threshold: smallest statistic that passes the paper's rule.
        """
        # Under the null the key's own count is one of R + 1 exchangeable draws, hence the 1 in both sums.
        exceeding = sum(count >= k for count in random_counts)
        stopped = len(random_counts) < n_keys
        p = exceeding / len(random_counts) if stopped else (1 + exceeding) / (n_keys + 1)
        level = 1 / (n_keys + 1)
        beyond = (max(random_counts, default=-1) + 1) / n
        tested = _Tested(k / n, n, max(beyond, paper_threshold), level, math.log10(p), "key_randomisation", k=k)
        verdict = cls._of(tested, exceeding == 0 and paper, paper, **context)
        return replace(verdict, details={**verdict.details, "random_keys": len(random_counts)})

    @classmethod
    def structure(
        cls, n: int, q: float | None, *, access: Access, found: str, p_method: PMethod = "binomial"
    ) -> "Verdict":
        """Judge a suspect that lacks the parts that the key names: not found, p = 1."""
        details: dict[str, Json] = {"found": found}
        if p_method == "binomial" and q is not None:
            base = cls.binomial(0, n, q, access=access, paper=False, details=details)
        elif p_method == "gauss":
            base = cls.gauss(0.0, n, access=access, paper=False, details=details)
        else:
            base = cls.randomised(0, n, [0], 1, access=access, paper=False, paper_threshold=1.0, details=details)
        return replace(base, reason="structure", log10_p=0.0, log10_p_adj=0.0)

    @classmethod
    def _of(
        cls,
        tested: "_Tested",
        verdict: bool,
        paper: bool | None,
        *,
        access: Access,
        queries: int = 0,
        details: Mapping[str, Json] | None = None,
        caveats: Sequence[str] = (),
    ) -> "Verdict":
        return cls(
            **vars(tested),
            log10_p_adj=log10_adjusted(tested.log10_p),
            margin=margin(tested.statistic, tested.threshold),
            verdict=verdict,
            verdict_paper=paper,
            access=access,
            queries=queries,
            details=dict(details or {}),
            caveats=tuple(caveats),
        )


@dataclass(frozen=True)
class _Tested:
    """The fields of a verdict that its test decides."""

    statistic: float
    n: int
    threshold: float
    level: float
    log10_p: float
    p_method: PMethod
    k: int | None = None
    null_q: float | None = None
