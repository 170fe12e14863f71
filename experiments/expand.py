"""From a spec to the graph: every cell of the table with the tasks that answer it, common work shared.

    train clean ──► embed ──► attack ──► verify          one row per verify task
        └─► train twin (same extra epochs, no mark)      controls, unasked, per (workload, scheme, seed)
    train scratch (adversary's data alone)               what a removal must beat

What does not change a result is left out of a task's configuration, so that tasks are shared: fields that act later,
the owner's threshold, the allowed accuracy drop, the other strengths that were asked for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.cells import Assault, Defence, Rows, assaults
from experiments.ground import CodeDigests, Ground
from experiments.labels import telling
from experiments.problems import Problem, SpecError
from experiments.spec import ExperimentSpec
from orchestrator.custody import KeyRoot
from orchestrator.plan import Plan

EXTRA_SEED = 1_000_003
"""Added to the seed for the null model of an experiment that has one seed only."""


@dataclass(frozen=True)
class Expansion:
    """A plan, and what was asked but means nothing (which pair, and why)."""

    plan: Plan
    left_out: tuple[str, ...] = ()


def expand(spec: ExperimentSpec, *, data_root: Path | None = None) -> Expansion:
    """The plan of a spec.

    Raises:
        orchestrator.arena.MissingData: a data set is not there.
        SpecError: the key root cannot be read, or an adversary is promised data that were not set aside.
    """
    try:
        root = KeyRoot.from_file(spec.keys.root if spec.keys else None)
    except ValueError as error:
        raise SpecError([Problem(str(error), ("keys", "root"))]) from None
    plan = Plan()
    left_out: list[str] = []
    code = CodeDigests()
    labels = telling([w.name for w in spec.workloads], [w.config() for w in spec.workloads])
    for workload, label in zip(spec.workloads, labels, strict=True):
        shown = label if len(labels) > 1 else ""
        ground = Ground(workload, label=shown, data_root=data_root, root=root.commitment, code=code)
        _check_reserve(ground, spec)
        left_out += _add_workload(plan, ground, spec)
    return Expansion(plan, tuple(left_out))


def _check_reserve(ground: Ground, spec: ExperimentSpec) -> None:
    if any(entry.budget.disjoint for entry in spec.attacks) and not ground.facts.reserve:
        message = (
            "expected data that the owner never trains on, for a disjoint adversary, got none in "
            f"{ground.workload.name}; set its `reserve`, for example reserve: 0.1"
        )
        raise SpecError([Problem(message, ("adversary", "disjoint"))])


def _add_workload(plan: Plan, ground: Ground, spec: ExperimentSpec) -> Iterator[str]:
    """Adds all rows of one workload; yields what is left out."""
    labels = telling([s.name for s in spec.schemes], [s.config() for s in spec.schemes])
    for scheme, label in zip(spec.schemes, labels, strict=True):
        reason = scheme.applicable(ground.workload.info)
        if reason is not None:
            yield f"{label} on {ground.workload.name}: {reason}"
            continue
        defence = Defence(ground, scheme, label)
        meant: list[Assault] = []
        for assault in assaults(defence, spec.attacks):
            reason = assault.attack.applicable(scheme, ground.workload.info.kind)
            if reason is None:
                meant.append(assault)
            else:
                yield f"{assault.label} against {label} on {ground.workload.name}: {reason}"
        for seed in spec.seeds:
            Rows(defence, seed, _other_seed(spec.seeds, seed)).add_to(plan, meant)


def _other_seed(seeds: Sequence[int], seed: int) -> int:
    """Whose model is the null model: the next seed's, which is trained anyway."""
    return seeds[(seeds.index(seed) + 1) % len(seeds)] if len(seeds) > 1 else seed + EXTRA_SEED
