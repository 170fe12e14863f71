"""One row of the results table: its columns, and properties that are derived from them.

A row is made from a plan and its records, or from ``results.parquet``. Only the properties below parse the columns
that hold JSON, at most once.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from operator import attrgetter
from typing import Any, Literal, TypeVar, get_type_hints

from wmarena.attacks.knowledge import Budget
from wmarena.experiments.spec.labels import flat
from wmarena.orchestrator.plan.identity import canonical
from wmarena.orchestrator.plan.task import TaskId

Params = dict[str, Any]

T = TypeVar("T")

UNREACHED = "not reached: the run ended before this task"
"""``error`` of a row whose verify task has no record."""

_MARKS = ("head", "claim", "realigned")
"""Keys of ``attack_params`` that tell how a suspect was judged; they configure no attack."""

_RATE = "[0, 1]"


def column(doc: str, unit: str = "", *, required: bool = False) -> Any:
    """Declare a column by its meaning and its unit or range; null by default unless ``required``."""
    metadata = {"doc": doc, "unit": unit}
    return field(metadata=metadata) if required else field(default=None, metadata=metadata)


class _Cache:
    """Adds the ``__dict__`` that ``cached_property`` needs to a class with slots."""

    __slots__ = ("__dict__",)


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultRow(_Cache):
    """One verification. The fields are the columns of ``results.parquet``, in order; None is null."""

    # Question.
    experiment: str = column("name of the spec", required=True)
    run_id: str = column("execution that wrote the table", required=True)
    task_id: TaskId = column("id of the verify task", required=True)
    workload: str = column("workload", required=True)
    workload_params: str | None = column("configuration of the workload, with its name", "JSON")
    scheme: str = column("watermarking scheme", required=True)
    scheme_params: str = column("configuration of the scheme", "JSON", required=True)
    attack: str = column("attack; the parts of a chain are joined by `+`", required=True)
    attack_params: str = column(
        "configuration of the attack; `head`, `claim` and `realigned` tell how its suspect was judged",
        "JSON",
        required=True,
    )
    strength_name: str | None = column("field of the attack that is its strength")
    strength: float | None = column("value of that field", "the field's own")
    budget: str = column("what the adversary was granted", "JSON", required=True)
    searched: bool = column("a search chose the strength", required=True)
    seed: int = column("seed of the models and keys", required=True)
    control: str | None = column(
        "negative control: `clean` (owner's key on the clean twin), `null_model` (owner's key on an independent "
        "model), `stranger_key` (a stranger's key on the marked model)"
    )
    # State.
    status: Literal["done", "failed", "skipped"] = column("how the row ended", required=True)
    cached: bool = column("the run found the verification finished", required=True)
    error: str | None = column("why there is no verdict")
    # Metrics.
    metric: str | None = column("name of the workload's metric")
    metric_clean: float | None = column("metric of the compute-matched clean twin, test data", _RATE)
    metric_marked: float | None = column("metric of the marked model, test data", _RATE)
    metric_suspect: float | None = column("metric of the suspect for those without a licence, test data", _RATE)
    metric_scratch: float | None = column("metric of a model trained on the adversary's data alone, test data", _RATE)
    metric_unlicensed: float | None = column("metric of the marked model for those without a licence", _RATE)
    metric_clean_val: float | None = column("metric of the clean twin, validation data", _RATE)
    metric_marked_val: float | None = column("metric of the marked model, validation data", _RATE)
    metric_suspect_val: float | None = column("metric of the suspect, validation data", _RATE)
    relative_drop: float | None = column("(metric_marked - metric_suspect) / metric_marked", "at most 1")
    beats_scratch: bool | None = column("the suspect is better than `metric_scratch` by more than half a point")
    # Evidence.
    statistic: float | None = column("test statistic; k/n where `p_method` is `binomial`", "the test's own")
    n: int | None = column("bits or triggers that were compared", "count")
    null_q: float | None = column("chance that one of them agrees with an unrelated key", _RATE)
    threshold: float | None = column("smallest statistic that passes at `level`", "as `statistic`")
    level: float | None = column("significance at which the verdict was taken", "(0, 1)")
    log10_p: float | None = column("log10 of the p-value", "at most 0")
    log10_p_adj: float | None = column("the same, corrected for the keys that may have been tried", "at most 0")
    p_method: str | None = column("how the p-value is computed")
    verdict: bool | None = column("the mark was found at `level`")
    verdict_paper: bool | None = column("the mark was found by the paper's own rule")
    margin: float | None = column("(statistic - threshold) / (1 - threshold)", "at most 1")
    removed: bool | None = column(
        "the verdict fell, the drop is within the budget, and the suspect beats training from scratch; "
        "null for controls and claims"
    )
    covertness_mean_abs_dev: float | None = column("mean |w - w0| of the embedding", "units of weights")
    covertness_ks: float | None = column("Kolmogorov-Smirnov distance of the weights' histograms", _RATE)
    covertness_relative_l2: float | None = column("||w - w0|| / ||w0|| of the embedding", "at least 0")
    # Effort.
    seconds_embed: float | None = column("computation of the embedding", "seconds")
    seconds_attack: float | None = column("computation of the attack", "seconds")
    seconds_verify: float | None = column("computation of the verification", "seconds")
    device: str | None = column("device of the verification")
    caveats: tuple[str, ...] = field(default=(), metadata={"doc": "named doubts about the row", "unit": ""})
    details: str | None = column("what verdict, attack and claim say beyond the columns", "JSON")
    # Models.
    embed_id: TaskId = column("id of the task that made the mark", required=True)
    suspect_id: TaskId = column("id of the task that made the suspect", required=True)
    clean_id: TaskId = column("id of the task that trained the clean twin", required=True)
    # Second edition.
    claimant: Literal["owner", "adversary", "stranger"] | None = column("whose key is judged")
    head: Literal["suspect", "owner"] | None = column("whose output layer the suspect is judged with")
    attack_label: str | None = column("name and variant of the attack")
    access: Literal["queries", "weights"] | None = column("what the verification reads of the suspect")
    knowledge: tuple[str, ...] | None = column(
        "what the adversary knows: `queries`, `weights`, `algorithm`, `key`, `other customers`"
    )
    outcome: Literal["found", "not_found", "undecided"] | None = column("result of the test at `level`")
    reason: Literal["structure", "no_commitment", "answers", "budget"] | None = column("why the outcome is what it is")
    outcome_common: Literal["found", "not_found", "undecided"] | None = column(
        "result of the test at 1e-4, the same level for all schemes"
    )
    evidence_bits: float | None = column("smallest of -log2 p, 256 and the entropy of the key", "bits, [0, 256]")
    fate: (
        Literal[
            "gone_model_ruined",
            "kept_model_ruined",
            "gone_over_budget",
            "kept_over_budget",
            "gone_no_better_than_scratch",
            "gone_structure",
            "lost_specificity",
            "gone",
            "survived",
        ]
        | None
    ) = column("what became of mark and model; the first that applies; null for controls and claims")
    agreement: float | None = column("share of test inputs on which suspect and marked model agree", _RATE)
    covertness_auc: float | None = column("how well a detector tells marked from clean models", _RATE)
    suite: str | None = column("name and version of the attack suite")
    run_label: str | None = column("label that the user gave the execution")
    peak_memory_mib: float | None = column("peak memory", "MiB")
    energy_j: float | None = column("energy", "joule")

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "ResultRow":
        """Read a row that ``to_record`` wrote; a column that ``record`` lacks is null."""
        found = {name: record[name] for name in COLUMN_TYPES if name in record}
        lists = {name: tuple(value) for name, value in found.items() if isinstance(value, list)}
        return cls(**{**found, **lists})

    def to_record(self) -> dict[str, Any]:
        """Return column -> value."""
        return dict(zip(COLUMN_TYPES, _VALUES(self), strict=True))

    # Configurations.

    @cached_property
    def workload_config(self) -> Params:
        """The workload's configuration; empty where it is not known."""
        return parsed(self.workload_params)

    @cached_property
    def scheme_config(self) -> Params:
        """The scheme's configuration."""
        return parsed(self.scheme_params)

    @cached_property
    def attack_config(self) -> Params:
        """The attack's configuration, one level of dotted names."""
        return flat(parsed(self.attack_params))

    @cached_property
    def granted(self) -> Params:
        """What the adversary was granted: fields of ``wmarena.attacks.knowledge.Budget``."""
        return parsed(self.budget)

    @cached_property
    def variant(self) -> Params:
        """``attack_config`` without the strength and ``_MARKS``."""
        out = {key: value for key, value in self.attack_config.items() if key.partition(".")[0] not in _MARKS}
        # A chain's strength belongs to its last part that has one.
        holders = [k for k in out if k.rsplit(".", 1)[-1] == self.strength_name and out[k] == self.strength]
        if self.strength_name in out:
            del out[self.strength_name]
        elif holders:
            del out[holders[-1]]
        return out

    @cached_property
    def setting(self) -> tuple[str, str, str]:
        """Attack, ``variant`` and budget: equal on rows that differ in their strength only."""
        return self.attack, canonical(self.variant), self.budget

    @property
    def victim(self) -> tuple[str | None, ...]:
        """Workload and scheme with their configurations: rows are compared within one victim."""
        return self.workload, self.workload_params, self.scheme, self.scheme_params

    # Metrics.

    @property
    def max_drop(self) -> float:
        """Largest absolute accuracy drop at which the row's adversary counts a removal."""
        granted = self.granted.get("max_drop")
        return float(Budget.defaults()["max_drop"] if granted is None else granted)

    @property
    def budget_drop(self) -> float | None:
        """Absolute drop to compare with the budget: on validation data where known, else on test data."""
        drop = _drop(self.metric_marked_val, self.metric_suspect_val)
        return self.test_drop if drop is None else drop

    @property
    def test_drop(self) -> float | None:
        """Absolute drop on test data, marked - suspect."""
        return _drop(self.metric_marked, self.metric_suspect)

    # Kind of row.

    @property
    def is_done(self) -> bool:
        """True if the row has a verdict."""
        return self.status == "done"

    @property
    def is_gated(self) -> bool:
        """True if a gate of the plan left the row out: neither a failure nor a gap."""
        return self.status == "skipped" and (self.error or "").startswith("gate:")

    @property
    def is_unreached(self) -> bool:
        """True if the run ended before the row's task."""
        return self.error == UNREACHED

    @property
    def is_unattacked(self) -> bool:
        """True if the row judges the owner's key on the marked model as it was published."""
        return self.attack == "none" and self.control is None

    @property
    def is_claim(self) -> bool:
        """True if the row judges the adversary's own key."""
        return bool(self.attack_config.get("claim") == "adversary")

    @property
    def is_random_claim(self) -> bool:
        """True if the row judges the best of many random keys (ambiguity level 0)."""
        return self.attack == "ambiguity" and self.is_claim and self.attack_config.get("level") == 0

    @property
    def has_original_head(self) -> bool:
        """True if the verdict was taken with the owner's output layer plugged back in."""
        return bool(self.attack_config.get("head") == "original")

    @property
    def is_realigned(self) -> bool:
        """True if the verdict was taken after bringing the suspect's channels into the owner's order and scale."""
        return bool(self.attack_config.get("realigned"))

    @property
    def is_as_deployed(self) -> bool:
        """True if the row judges the owner's key on the suspect as the adversary deploys it."""
        return self.control is None and not (self.is_claim or self.has_original_head or self.is_realigned)

    def detail(self, part: Literal["verdict", "attack", "claim"]) -> Params:
        """Return details of the scheme's verdict, the attack or the forger's claim; empty if there are none."""
        return self._details.get(part) or {}

    @cached_property
    def _details(self) -> Params:
        return parsed(self.details)


COLUMN_TYPES = {name: get_type_hints(ResultRow)[name] for name in (f.name for f in fields(ResultRow))}
"""Column -> type of its field, in order."""

_VALUES = attrgetter(*COLUMN_TYPES)


def required(value: T | None) -> T:
    """Return a number that every row with a verdict has. Raises ValueError if it is null."""
    if value is None:
        raise ValueError("expected a number in a row with a verdict, got null")
    return value


def parsed(text: str | None) -> Params:
    """Parse a column that holds a configuration as JSON; empty for null."""
    found: Params = json.loads(text or "{}")
    return found


def _drop(marked: float | None, suspect: float | None) -> float | None:
    return None if marked is None or suspect is None else float(marked - suspect)
