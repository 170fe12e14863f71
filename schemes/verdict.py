"""A verdict: a statistic with its threshold, p-value and the null model of that p-value."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

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


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A claim with its statistics, never a bare True (specs 0.2-0.4, 5.2).

    Attributes:
        statistic: k / n for exact binomial tests; else the scheme's own statistic (a correlation may be negative).
        threshold: smallest passing statistic at ``level``; above 1 where nothing passes.
        log10_p: log10 of the p-value under ``p_method``'s null model.
        log10_p_adj: the same if 2^64 keys (or the number really tried) may have been ground through.
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
        cls,
        k: int,
        n: int,
        q: float,
        *,
        access: Access,
        paper: bool | None,
        queries: int = 0,
        level: float = LEVEL,
        details: Mapping[str, Json] | None = None,
        caveats: Sequence[str] = (),
    ) -> "Verdict":
        """k of n independent matches, each with probability q under the null (exact)."""
        log10_p = log10_binomial_tail(k, n, q)
        k_pass = binomial_threshold(n, q, level)
        return cls(
            statistic=k / n,
            n=n,
            k=k,
            null_q=q,
            threshold=k_pass / n,
            level=level,
            log10_p=log10_p,
            log10_p_adj=log10_adjusted(log10_p),
            p_method="binomial",
            verdict=k >= k_pass,
            verdict_paper=paper,
            margin=margin(k / n, k_pass / n),
            access=access,
            queries=queries,
            details=dict(details or {}),
            caveats=tuple(caveats),
        )

    @classmethod
    def gauss(
        cls,
        r: float,
        n: int,
        *,
        access: Access,
        paper: bool | None,
        level: float = LEVEL,
        details: Mapping[str, Json] | None = None,
        caveats: Sequence[str] = (),
    ) -> "Verdict":
        """Pearson correlation ``r`` of n values: atanh(r) sqrt(n - 3) is standard normal under the null (Fisher)."""
        log10_p, threshold = log10_correlation_tail(r, n), correlation_threshold(n, level)
        return cls(
            statistic=r,
            n=n,
            k=None,
            null_q=None,
            threshold=threshold,
            level=level,
            log10_p=log10_p,
            log10_p_adj=log10_adjusted(log10_p),
            p_method="gauss",
            verdict=log10_p <= math.log10(level),
            verdict_paper=paper,
            margin=margin(r, threshold),
            access=access,
            details=dict(details or {}),
            caveats=tuple(caveats),
        )

    @classmethod
    def randomised(
        cls,
        k: int,
        n: int,
        random_counts: Sequence[int],
        n_keys: int,
        *,
        access: Access,
        paper: bool,
        paper_threshold: float,
        queries: int = 0,
        details: Mapping[str, Json] | None = None,
        caveats: Sequence[str] = (),
    ) -> "Verdict":
        """k of n matches against the counts of random keys on the same suspect; ties count against the claimant.

        p = (1 + #{r: T_r >= T}) / (R + 1); the level is the smallest attainable p, and the paper's rule must hold
        too (specs 0.2, A.7). A search that was stopped early (Besag and Clifford 1991) passes fewer counts than keys:
        p is then exceedances / draws.

        Args:
            random_counts: matches of the random keys that were drawn, at most ``n_keys``.
            n_keys: R, the random keys that would have been drawn.
            paper_threshold: smallest statistic that the paper's rule lets pass.
        """
        exceeding = sum(count >= k for count in random_counts)
        stopped = len(random_counts) < n_keys
        p = exceeding / len(random_counts) if stopped else (1 + exceeding) / (n_keys + 1)
        level = 1 / (n_keys + 1)
        beyond = (max(random_counts, default=-1) + 1) / n
        log10_p = math.log10(p)
        threshold = max(beyond, paper_threshold)
        return cls(
            statistic=k / n,
            n=n,
            k=k,
            null_q=None,
            threshold=threshold,
            level=level,
            log10_p=log10_p,
            log10_p_adj=log10_adjusted(log10_p),
            p_method="key_randomisation",
            verdict=exceeding == 0 and paper,
            verdict_paper=paper,
            margin=margin(k / n, threshold),
            access=access,
            queries=queries,
            details={**(details or {}), "random_keys": len(random_counts)},
            caveats=tuple(caveats),
        )

    @classmethod
    def structure(
        cls, n: int, q: float | None, *, access: Access, found: str, p_method: PMethod = "binomial"
    ) -> "Verdict":
        """The suspect does not have the parts that the key speaks of: not found, p = 1."""
        details: dict[str, Json] = {"found": found}
        if p_method == "binomial" and q is not None:
            base = cls.binomial(0, n, q, access=access, paper=False, details=details)
        elif p_method == "gauss":
            base = cls.gauss(0.0, n, access=access, paper=False, details=details)
        else:
            base = cls.randomised(0, n, [0], 1, access=access, paper=False, paper_threshold=1.0, details=details)
        return cls(**{**base.__dict__, "reason": "structure", "log10_p": 0.0, "log10_p_adj": 0.0})
