"""Named doubts about results. Each check reads the evidence and returns the rows that it concerns.

After AutoAttack's flags (Croce and Hein, ICML 2020): every doubtful number carries the name of the doubt.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from wmarena.experiments.results.rows import ResultRow
from wmarena.experiments.workloads import WORKLOADS
from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.identity import canonical
from wmarena.orchestrator.plan.plugins import UnknownName, plugin_class, use_workloads
from wmarena.orchestrator.plan.task import TaskId
from wmarena.schemes.params import ConfigError
from wmarena.schemes.statistics import LEVEL

FIDELITY_LIMIT = 0.01
"""Accuracy that a watermark may cost before ``fidelity_missed`` is raised: one point."""

EXPLANATIONS: dict[str, str] = {
    "ambiguous": "A negative control fires, or a random key passes: this scheme's verdicts prove nothing here.",
    "mark_missing": "The owner's key is not found on the marked model itself, so no attack can be said to remove it.",
    "fidelity_missed": "The marked model is more than one point worse than its compute-matched clean twin.",
    "needs_prior_commitment": "Verification uses a part that was trained with the mark: it is evidence only if the "
    "key's commitment was published before the dispute.",
    "resolution_limited": "The p-value comes from a finite number of random keys and cannot reach 1e-6; the verdict "
    "is taken at the smallest attainable level, and the paper's rule must hold too.",
    "realigned": "The suspect's channels were brought into the order and scale of the owner's model before it was "
    "judged, so the p-value is a little too small: unrelated models match some points better by that alone.",
    "ruined": "The suspect lost half its skill above guessing: a mark removed by ruining the model is no removal.",
    "weights_unmoved": "The attack returned the victim's weights unchanged: it attacked nothing.",
    "structure": "The suspect lacks the parts that the key speaks of. The evidence counts as not found.",
    "non_monotone": "The verdict flips more than once as the attack grows stronger: the flip point is not unique.",
    "mixed_environment": "Some tasks ran under other library versions or another kind of device than most of the "
    "table, so differences in the last digits may not come from the method.",
    "parent_changed": "A model was computed again with other bytes after a later task had used it.",
    "recomputed": "A stored artifact was missing or damaged and was computed again.",
    "adopted": "The result was computed by an earlier version of the code, taken over after a random sample of it was "
    "recomputed bit for bit.",
    "null_mismatch": "Unrelated keys do not behave as the null model of the p-value says they should.",
}
"""Caveat -> its meaning."""


@dataclass(frozen=True)
class CaveatInputs:
    """The data that checks may read.

    Attributes:
        rows: the results table; ``caveats`` still empty.
        sources: task_id of a row -> the records of every task with a result in it.
        miscalibrated: schemes (``ResultRow.victim``) whose null model the calibration contradicts.
    """

    rows: Sequence[ResultRow]
    sources: Mapping[TaskId, Sequence[Record]]
    miscalibrated: Collection[tuple[str | None, ...]] = ()
    _chance: dict[tuple[str, str | None], float] = field(default_factory=dict)

    def done(self) -> list[ResultRow]:
        """Return rows with a verdict."""
        return [row for row in self.rows if row.is_done]

    def results(self, row: ResultRow) -> list[Mapping[str, Any]]:
        """Return the results of a row's tasks."""
        return [record.result for record in self.sources[row.task_id] if record.result]

    def with_result(self, condition: Callable[[Mapping[str, Any]], bool]) -> set[TaskId]:
        """Return rows with a verdict and a task whose result meets a condition."""
        return {row.task_id for row in self.done() if any(map(condition, self.results(row)))}

    def chance(self, row: ResultRow) -> float:
        """Return the metric of guessing on the row's workload, cached."""
        name = row.workload, row.workload_params
        if name not in self._chance:
            self._chance[name] = chance_level(row.workload, row.workload_config)
        return self._chance[name]


Check = Callable[[CaveatInputs], set[TaskId]]


def raised_caveats(evidence: CaveatInputs) -> dict[TaskId, tuple[str, ...]]:
    """Collect the caveats of every row by its task: from tasks, verdicts and checks."""
    found = {row.task_id: carried(evidence, row) for row in evidence.rows}
    for name, check in CHECKS.items():
        for task_id in check(evidence):
            found[task_id].add(name)
    return {task_id: tuple(_ranked(names)) for task_id, names in found.items()}


def _ranked(names: Iterable[str]) -> list[str]:
    """Sort caveats, most serious first."""
    rank = {name: i for i, name in enumerate(EXPLANATIONS)}
    return sorted(names, key=lambda name: (rank.get(name, len(rank)), name))


def carried(evidence: CaveatInputs, row: ResultRow) -> set[str]:
    """Collect the caveats of a row's tasks and of its verdict."""
    noted = {c for record in evidence.sources[row.task_id] for c in record.caveats}
    for result in evidence.results(row):
        noted |= set(result.get("caveats", ())) | set(result.get("verdict", {}).get("caveats", ()))
    return noted


def ambiguous(evidence: CaveatInputs) -> set[TaskId]:
    """Raised if any negative control of the scheme fires, or a random key (ambiguity level 0) passes.

    One hit on one seed labels every row of the scheme, because its verdicts then prove nothing.
    """
    fired = {r.victim for r in evidence.done() if r.verdict and (r.control or r.is_random_claim)}
    return {r.task_id for r in evidence.rows if r.victim in fired}


def mark_missing(evidence: CaveatInputs) -> set[TaskId]:
    """Raised if the owner's key is not found on the marked model before any attack, on all rows of that seed."""
    absent = {(r.victim, r.seed) for r in evidence.done() if r.is_unattacked and not r.verdict}
    return {r.task_id for r in evidence.rows if (r.victim, r.seed) in absent and not r.control}


def fidelity_missed(evidence: CaveatInputs) -> set[TaskId]:
    """Raised if the marked model is more than ``FIDELITY_LIMIT`` worse than the clean twin of the same seed."""
    pairs = ((r, r.metric_clean, r.metric_marked) for r in evidence.rows)
    return {
        r.task_id
        for r, clean, marked in pairs
        if clean is not None and marked is not None and marked < clean - FIDELITY_LIMIT
    }


def ruined(evidence: CaveatInputs) -> set[TaskId]:
    """Raised if an attacked suspect lost half its skill above chance."""
    out = set()
    for row in evidence.done():
        before, after = row.metric_marked, row.metric_suspect
        if before is not None and after is not None and row.control is None:
            chance = evidence.chance(row)
            if after - chance < 0.5 * (before - chance):
                out.add(row.task_id)
    return out


def weights_unmoved(evidence: CaveatInputs) -> set[TaskId]:
    """Raised if an attack's suspect has the victim's weights, bit for bit in the mean."""
    return evidence.with_result(lambda result: result.get("moved_mean_abs_dev") == 0)


def resolution_limited(evidence: CaveatInputs) -> set[TaskId]:
    """Raised if the verdict was taken at a coarser level than ``LEVEL``, for lack of random keys."""
    done = evidence.done()
    return {r.task_id for r in done if r.p_method == "key_randomisation" and (r.level or 0.0) > LEVEL}


def structure(evidence: CaveatInputs) -> set[TaskId]:
    """Raised if the suspect lacks tensors that the key names."""
    return evidence.with_result(lambda result: result.get("verdict", {}).get("reason") == "structure")


def non_monotone(evidence: CaveatInputs) -> set[TaskId]:
    """Raised if, on one seed, the verdict changes more than once along the attack's strength."""
    curves: dict[tuple[Any, ...], list[ResultRow]] = defaultdict(list)
    for row in evidence.done():
        if row.strength is not None and row.control is None:
            judged = row.has_original_head, row.is_claim, row.is_realigned
            curves[(row.victim, row.setting, judged, row.seed)].append(row)
    out: set[TaskId] = set()
    for curve in curves.values():
        verdicts = [r.verdict for r in sorted(curve, key=lambda r: r.strength or 0.0)]
        if sum(a != b for a, b in pairwise(verdicts)) > 1:
            out |= {r.task_id for r in curve}
    return out


def mixed_environment(evidence: CaveatInputs) -> set[TaskId]:
    """Raised on rows with a task that ran in another environment than most tasks of the table."""
    seen: dict[TaskId, str] = {}
    for row in evidence.rows:
        for record in evidence.sources[row.task_id]:
            if record.result and record.result.get("environment"):
                seen[record.task_id] = canonical(dict(record.result["environment"]))
    if not seen:
        return set()
    ((usual, _),) = Counter(seen.values()).most_common(1)
    return {
        row.task_id
        for row in evidence.rows
        if any(seen.get(record.task_id, usual) != usual for record in evidence.sources[row.task_id])
    }


def parent_changed(evidence: CaveatInputs) -> set[TaskId]:
    """Raised if two tasks of a row read the same parent with different bytes."""
    out = set()
    for row in evidence.rows:
        hashes: dict[str, set[str]] = defaultdict(set)
        for result in evidence.results(row):
            for parent, sha in result.get("consumed", {}).items():
                hashes[parent].add(sha)
        if any(len(found) > 1 for found in hashes.values()):
            out.add(row.task_id)
    return out


def null_mismatch(evidence: CaveatInputs) -> set[TaskId]:
    """Raised on all rows of a scheme whose p-values are wrong on independent clean models."""
    return {r.task_id for r in evidence.rows if r.victim in evidence.miscalibrated}


_CHECKS = (
    *(ambiguous, mark_missing, fidelity_missed, ruined, weights_unmoved, resolution_limited),
    *(structure, non_monotone, mixed_environment, parent_changed, null_mismatch),
)
CHECKS: dict[str, Check] = {check.__name__: check for check in _CHECKS}


def chance_level(workload: str, config: Mapping[str, Any]) -> float:
    """Return the metric of guessing: 1/C for classifiers, else 0, also without the plugin."""
    use_workloads(WORKLOADS)
    try:
        plugin: Any = plugin_class("workload", workload).from_config(config)
    except (UnknownName, ConfigError):
        return 0.0
    return 1.0 / int(plugin.info.num_classes) if plugin.info.kind in ("classification", "sentiment") else 0.0


def raised(rows: Iterable[ResultRow]) -> dict[str, int]:
    """Count the rows of each caveat, most serious first."""
    counts = Counter(name for row in rows for name in row.caveats)
    return {name: counts[name] for name in _ranked(counts)}
