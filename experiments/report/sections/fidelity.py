"""Fidelity: marked models compared with their clean twins, paired by seed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from torch import Tensor

from wmarena.experiments.report.labels import Labels, Victim
from wmarena.experiments.results.rows import ResultRow
from wmarena.orchestrator.plan.task import TaskId
from wmarena.schemes.statistics import mcnemar

PREDICTIONS = "predictions.safetensors"


class TensorStore(Protocol):
    """Required methods of the store. Raises OSError if an artifact is missing or damaged."""

    def load_tensors(self, task_id: TaskId, name: str) -> Mapping[str, Tensor]:
        """Read the tensors of one file of an artifact."""
        ...


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One seed: the marked model and its clean twin on the same test samples.

    Attributes:
        only_clean, only_marked: discordant counts, None without stored predictions.
        agreement: share of test samples with equal predictions.
        p_value: exact two-sided McNemar (Psychometrika 1947), conditional on the discordant samples.
        unlicensed: the marked model's metric without a licence, None if none is needed.
    """

    seed: int
    clean: float
    marked: float
    only_clean: int | None = None
    only_marked: int | None = None
    agreement: float | None = None
    p_value: float | None = None
    unlicensed: float | None = None

    @property
    def difference(self) -> float:
        """marked - clean, absolute."""
        return self.marked - self.clean


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """All seeds of one scheme on one workload."""

    victim: Victim
    pairs: tuple[Pair, ...]

    @property
    def unlicensed(self) -> list[float]:
        """The marked model's metric without a licence, by seed; empty if none is needed."""
        return [pair.unlicensed for pair in self.pairs if pair.unlicensed is not None]

    @property
    def mean_difference(self) -> float:
        """Mean over seeds of marked - clean, absolute."""
        return float(np.mean([pair.difference for pair in self.pairs]))


def paired_fidelity(rows: Iterable[ResultRow], store: TensorStore | None) -> list[Fidelity]:
    """Pair models per scheme and workload, in the table's order; omit schemes without a marked model."""
    table = list(rows)
    labels = Labels(table)
    found: dict[Victim, dict[int, Pair]] = {}
    for row in table:
        if row.metric_clean is None or row.metric_marked is None:
            continue
        pairs = found.setdefault(labels.victim(row), {})
        if row.seed not in pairs:
            pair = Pair(
                seed=row.seed, clean=row.metric_clean, marked=row.metric_marked, unlicensed=row.metric_unlicensed
            )
            pairs[row.seed] = _compared(pair, row, store)
    return [
        Fidelity(victim=victim, pairs=tuple(pairs[seed] for seed in sorted(pairs))) for victim, pairs in found.items()
    ]


def _compared(pair: Pair, row: ResultRow, store: TensorStore | None) -> Pair:
    """Add the comparison of stored predictions to the pair."""
    if store is None or pair.unlicensed is not None:
        # Stored predictions are of unlicensed inputs: they do not measure a model for licensed users.
        return pair
    try:
        clean = store.load_tensors(row.clean_id, PREDICTIONS)
        marked = store.load_tensors(row.embed_id, PREDICTIONS)
    except OSError:
        # Only classification stores predictions, and a store may have been cleaned: keep the difference of the
        # metrics without the test.
        return pair
    first, second = clean["test"].numpy(), marked["test"].numpy()
    truth = clean["test_labels"].numpy()
    only_clean = int(np.sum((first == truth) & (second != truth)))
    only_marked = int(np.sum((first != truth) & (second == truth)))
    return replace(
        pair,
        only_clean=only_clean,
        only_marked=only_marked,
        agreement=float(np.mean(first == second)),
        p_value=mcnemar(only_clean, only_marked),
    )
