"""Ranks trials: Pareto fronts, hypervolumes, and a test whether trials differ at all."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

import numpy as np
from scipy.stats import f_oneway

from wmarena.experiments.study.documents import TrialDocument
from wmarena.experiments.study.spec import StudySpec
from wmarena.orchestrator.plan.proposals import Direction

ObjectivePoint = tuple[float, ...]
"""Values of a trial, all to be minimised."""


def directions_of(study: StudySpec) -> dict[str, Direction]:
    """Return objectives as text, with their directions."""
    return {str(asked): direction for asked, direction in study.objectives.items()}


def feasible(documents: Iterable[TrialDocument]) -> list[TrialDocument]:
    """Select trials that keep every limit."""
    return [document for document in documents if document["feasible"]]


def costs(document: TrialDocument, directions: Mapping[str, Direction]) -> ObjectivePoint:
    """Return a trial's values, negated where they are maximised."""
    return tuple(-document["values"][n] if d == "maximize" else document["values"][n] for n, d in directions.items())


def front(documents: Iterable[TrialDocument], directions: Mapping[str, Direction]) -> list[TrialDocument]:
    """Select feasible trials that no other feasible one dominates; of equal ones the first."""
    out: dict[ObjectivePoint, TrialDocument] = {}
    for document in feasible(documents):
        point = costs(document, directions)
        if point not in out and not any(_dominates(other, point) for other in out):
            out = {p: d for p, d in out.items() if not _dominates(point, p)} | {point: document}
    return list(out.values())


def _dominates(one: ObjectivePoint, other: ObjectivePoint) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def best_of(documents: Iterable[TrialDocument], study: StudySpec) -> TrialDocument | None:
    """Select the best trial; of a front, the one nearest to the ideal point, objectives scaled to the front."""
    directions = directions_of(study)
    found = front(documents, directions)
    if not found:
        return None
    points = np.array([costs(document, directions) for document in found])
    span = np.ptp(points, axis=0)
    scaled = (points - points.min(axis=0)) / np.where(span > 0, span, 1.0)
    return found[int(np.linalg.norm(scaled, axis=1).argmin())]


def hypervolumes(documents: Sequence[TrialDocument], directions: Mapping[str, Direction]) -> list[float]:
    """After each feasible trial, in order: the volume that the front so far dominates, up to the worst point seen."""
    points = [costs(document, directions) for document in feasible(documents)]
    if not points:
        return []
    worst = tuple(max(axis) for axis in zip(*points, strict=True))
    # Only the front matters for the volume, so it is updated point by point instead of recomputed.
    fronts = accumulate(points, _with, initial=list[ObjectivePoint]())
    return [_volume(some, worst) for some in fronts][1:]


def _with(some: list[ObjectivePoint], point: ObjectivePoint) -> list[ObjectivePoint]:
    if any(_dominates(other, point) or other == point for other in some):
        return some
    return [other for other in some if not _dominates(point, other)] + [point]


def _volume(points: Sequence[ObjectivePoint], worst: ObjectivePoint) -> float:
    """Compute the volume of the union of boxes from each point to ``worst``, in slices along the first axis."""
    inside = sorted({p for p in points if all(a < b for a, b in zip(p, worst, strict=True))})
    if not inside:
        return 0.0
    if len(worst) == 1:
        return worst[0] - inside[0][0]
    # Between two neighbours on the first axis the cross-section is the union of all boxes begun so far.
    ends = [p[0] for p in inside[1:]] + [worst[0]]
    return sum(
        (end - point[0]) * _volume([p[1:] for p in inside[: i + 1]], worst[1:])
        for i, (point, end) in enumerate(zip(inside, ends, strict=True))
        if end > point[0]
    )


def flatness(documents: Iterable[TrialDocument], objective: str) -> float | None:
    """Return the p-value that all trials are equal: one-way ANOVA of seeds within trials.

    None with fewer than three trials of two or more seeds.
    """
    samples = [d["by_seed"][objective] for d in feasible(documents)]
    samples = [values for values in samples if len(values) > 1]
    if len(samples) < 3:
        return None
    if len({value for values in samples for value in values}) == 1:
        return 1.0
    if all(len(set(values)) == 1 for values in samples):
        return 0.0
    p = float(f_oneway(*samples).pvalue)
    return None if math.isnan(p) else p
