"""Tests the null model of a scheme's p-value with fresh keys on independent clean models.

    pairs        (clean model, key drawn for this pair and embedded nowhere)
    statistics   k/n of a binomial test should be distributed as Binomial(n, q)/n: discrete Kolmogorov-Smirnov distance
    rates        a level of 5 % should reject 5 % of the pairs: its share must lie in the 99 % Clopper-Pearson interval
                 of the hits (key randomisation and discrete tests may reject less, never more)
    verdicts     number of pairs that pass the test, with a 95 % interval: 0 of 300 is "below 1.2 %", not 0

Sources: null models after Lukas et al. 2022, whose 5 % rule of a Gaussian fit is reported beside our threshold; Clopper
and Pearson 1934. P-values stay as they are: a disagreement raises ``null_mismatch``.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wmarena.experiments.results.rows import Params, parsed
from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.identity import canonical
from wmarena.orchestrator.plan.plan import Cell
from wmarena.orchestrator.plan.task import TaskId
from wmarena.schemes.statistics import binomial_threshold, clopper_pearson, discrete_ks, log10_binomial_tail

CONTROL = "calibration"
"""``Cell.control`` of a calibration task, whose cells have no row in the results table."""

LEVELS = (0.05, 0.01)
KS_LEVEL = 1e-3
"""Kolmogorov-Smirnov p below which the null model is rejected; small, because a dozen schemes are tested."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Rejections by a test of ``level``.

    Attributes:
        hits: pairs with p <= level.
        low, high: 99 % Clopper-Pearson interval of the rate.
        expected: rate under the null model; for a discrete statistic, the largest attainable one within ``level``.
        agrees: ``expected`` is in the interval; for conservative tests, not below it.
    """

    level: float
    hits: int
    low: float
    high: float
    expected: float
    agrees: bool


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """One scheme on one workload over all pairs.

    Attributes:
        expected_mean, expected_sd: of the null model, None where it names none.
        ks_p: p-value of the discrete Kolmogorov-Smirnov test, None where the null has no closed form.
        false_positives: pairs with verdict 1; ``fpr_low``, ``fpr_high``: 95 % Clopper-Pearson.
        gauss_threshold: mean + 1.645 sd of the statistics, the 5 % rule of a Gaussian fit.
        threshold: the decision threshold (median over pairs where it depends on the suspect).
        mismatch: the null model is contradicted.
    """

    workload: str
    workload_params: str
    scheme: str
    scheme_params: str
    p_method: str
    n_models: int
    n_pairs: int
    mean: float
    sd: float
    largest: float
    expected_mean: float | None
    expected_sd: float | None
    ks_p: float | None
    rates: tuple[Rate, ...]
    false_positives: int
    fpr_low: float
    fpr_high: float
    gauss_threshold: float
    threshold: float
    mismatch: bool
    statistics: tuple[float, ...]

    @property
    def victim(self) -> tuple[str | None, ...]:
        """Workload and scheme with their configurations, as ``ResultRow.victim``."""
        return self.workload, self.workload_params, self.scheme, self.scheme_params

    @property
    def workload_config(self) -> Params:
        """The workload's configuration."""
        return parsed(self.workload_params)

    @property
    def scheme_config(self) -> Params:
        """The scheme's configuration."""
        return parsed(self.scheme_params)


def calibrations(
    cells: Iterable[Cell], records: Mapping[TaskId, Record], workload_params: Mapping[TaskId, str]
) -> list[Calibration]:
    """Compute one calibration per scheme and workload of a plan.

    Args:
        cells: of the plan; those with control ``calibration`` are used.
        records: of tasks that have ended; pairs without one are left out.
        workload_params: clean task of a cell -> the workload's configuration as JSON.
    """
    # Pairs of all models are pooled: the null model says that no clean model is special.
    gathered: dict[tuple[str, str, str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for cell in cells:
        record = records.get(cell.verify)
        if cell.control == CONTROL and record is not None and record.result:
            who = cell.workload, workload_params.get(cell.clean, "{}"), cell.scheme, canonical(cell.scheme_params)
            gathered[who].append(record.result["calibration"])
    return [_calibration(who, parts) for who, parts in gathered.items()]


def _calibration(who: tuple[str, str, str, str], parts: Sequence[Mapping[str, Any]]) -> Calibration:
    pairs = [pair for part in parts for pair in part["pairs"]]
    values = np.array([pair["statistic"] for pair in pairs])
    logs = [pair["log10_p"] for pair in pairs]
    method, n, q = parts[0]["p_method"], parts[0]["n"], parts[0]["q"]
    exact = method == "binomial" and q is not None
    hits = sum(bool(pair["verdict"]) for pair in pairs)
    low, high = clopper_pearson(hits, len(pairs))
    rates = tuple(_rate(level, logs, n, q if exact else None, method) for level in LEVELS)
    mean, spread = _expected(method, n, q)
    ks = discrete_ks([pair["k"] for pair in pairs], n, q) if exact else None
    return Calibration(
        **dict(zip(("workload", "workload_params", "scheme", "scheme_params"), who, strict=True)),
        p_method=method,
        n_models=len(parts),
        n_pairs=len(pairs),
        mean=float(values.mean()),
        sd=float(values.std(ddof=1)) if len(values) > 1 else 0.0,
        largest=float(values.max()),
        expected_mean=mean,
        expected_sd=spread,
        ks_p=ks,
        rates=rates,
        false_positives=hits,
        fpr_low=low,
        fpr_high=high,
        gauss_threshold=float(values.mean() + 1.645 * values.std()),
        threshold=float(np.median([pair["threshold"] for pair in pairs])),
        mismatch=any(not rate.agrees for rate in rates) or (ks is not None and ks < KS_LEVEL),
        statistics=tuple(values.tolist()),
    )


def _expected(method: str, n: int, q: float | None) -> tuple[float | None, float | None]:
    if method == "binomial" and q is not None:
        return q, math.sqrt(q * (1 - q) / n)
    return (0.0, 1 / math.sqrt(n - 1)) if method == "gauss" else (None, None)


def _rate(level: float, logs: Sequence[float], n: int, q: float | None, method: str) -> Rate:
    hits = sum(log10_p <= math.log10(level) + 1e-12 for log10_p in logs)
    low, high = clopper_pearson(hits, len(logs), 0.99)
    expected = level if q is None else 10 ** log10_binomial_tail(min(n, binomial_threshold(n, q, level)), n, q)
    # Ties count against the claimant, so key randomisation rejects at most ``level`` of strangers, often less.
    agrees = low <= expected if method == "key_randomisation" else low <= expected <= high
    return Rate(level=level, hits=hits, low=low, high=high, expected=expected, agrees=agrees)
