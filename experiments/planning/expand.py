"""From a spec to the graph: every cell of the table with the tasks that answer it, common work shared.

    train clean ──► embed ──► attack ──► verify          one row per verify task
        └─► train twin (same extra epochs, no mark)      controls, unasked, per (workload, scheme, seed)
    train scratch (adversary's data alone)               what a removal must beat

What does not change a result is left out of a task's configuration, so that tasks are shared: fields that act later,
the owner's threshold, the allowed accuracy drop, the other strengths that were asked for.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wmarena.attacks.knowledge import Budget
from wmarena.experiments.planning.cells import CellPlanner, Defence, PlannedAttack, assault_of, assaults
from wmarena.experiments.planning.search import Search, Searches, owner_verdict
from wmarena.experiments.planning.workload_planner import PlannerCache, WorkloadPlanner
from wmarena.experiments.spec.entries import AttackEntry
from wmarena.experiments.spec.experiment import ExperimentSpec
from wmarena.experiments.spec.labels import telling
from wmarena.experiments.spec.problems import SpecError
from wmarena.orchestrator.keys.derivation import KeyRoot
from wmarena.orchestrator.plan.identity import canonical
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.plugins import names

CALIBRATION_SEED = 2_000_003
"""Seed of the first independent clean model that calibrates the schemes; the others follow it."""

EXTRA_SEED = 1_000_003
"""Added to the seed for the null model of an experiment that has one seed only."""


@dataclass(frozen=True)
class Expansion:
    """A plan, and what was asked but means nothing (which pair, and why).

    Attributes:
        searches: bisections, which add to the plan while it runs: the loop's ``grow``.
    """

    plan: Plan
    left_out: tuple[str, ...] = ()
    searches: Searches = field(default_factory=Searches)


def expand(spec: ExperimentSpec, *, data_root: Path | None = None, grounds: PlannerCache | None = None) -> Expansion:
    """The plan of a spec.

    Args:
        data_root: where data sets are looked for first.
        grounds: what earlier expansions found out about workloads and code, for one more of the same kind.

    Raises:
        wmarena.orchestrator.worker.workload.MissingData: a data set is not there.
        SpecError: the key root cannot be read, or an adversary is promised data that were not set aside.
    """
    try:
        root = KeyRoot.from_file(spec.keys.root if spec.keys else None)
    except ValueError as error:
        raise SpecError.of(str(error), "keys", "root") from None
    plan = Plan()
    left_out: list[str] = []
    searches = Searches()
    grounds = grounds or PlannerCache(data_root)
    labels = telling([w.name for w in spec.workloads], [w.config() for w in spec.workloads])
    for workload, label in zip(spec.workloads, labels, strict=True):
        shown = label if len(labels) > 1 else ""
        ground = grounds.of(workload, shown, root.commitment)
        _check_reserve(ground, spec)
        _check_shares(ground, spec)
        left_out += _add_workload(plan, searches, ground, spec)
    return Expansion(plan, tuple(left_out), searches)


def _check_reserve(ground: WorkloadPlanner, spec: ExperimentSpec) -> None:
    if any(entry.budget.disjoint for entry in spec.attacks) and not ground.facts.reserve:
        message = (
            "expected data that the owner never trains on, for a disjoint adversary, got none in "
            f"{ground.workload.name}; set its `reserve`, for example reserve: 0.1"
        )
        raise SpecError.of(message, "adversary", "disjoint")


def _check_shares(ground: WorkloadPlanner, spec: ExperimentSpec) -> None:
    """Shares whose samples will be counted must have some."""
    for budget in (entry.budget for entry in spec.attacks if entry.budget.max_epochs is not None):
        try:
            ground.adversary_samples(budget)
        except ValueError as error:
            message = f"expected a share of {ground.workload.name} to train on; {error}"
            raise SpecError.of(message, "adversary", "data_fraction") from None


def _add_workload(plan: Plan, searches: Searches, ground: WorkloadPlanner, spec: ExperimentSpec) -> Iterator[str]:
    """Adds all rows of one workload; yields what is left out."""
    labels = telling([s.name for s in spec.schemes], [s.config() for s in spec.schemes])
    for scheme, label in zip(spec.schemes, labels, strict=True):
        if not _wanted(spec.only, scheme=scheme.name, workload=ground.workload.name):
            continue
        reason = scheme.applicable(ground.workload.info)
        if reason is not None:
            yield f"{label} on {ground.workload.name}: {reason}"
            continue
        defence = Defence(ground, scheme, label)
        meant: list[PlannedAttack] = []
        for assault in assaults(defence, spec.attacks):
            if not _wanted(spec.only, attack=assault.attack.name, scheme=scheme.name, workload=ground.workload.name):
                continue
            reason = assault.attack.applicable(scheme, ground.workload.info)
            reason = reason or _own_data(ground, assault) or _unsearchable(assault)
            if reason is None:
                meant.append(assault)
            else:
                yield f"{assault.label} against {label} on {ground.workload.name}: {reason}"
        for seed in spec.seeds:
            rows = CellPlanner(defence, seed, _other_seed(spec.seeds, seed))
            rows.add_to(plan, meant)
            for search in _searches(defence, rows, meant):
                searches.add(search)
        _calibrate(plan, defence, spec)


_KINDS = ("workload", "scheme", "attack")


def _wanted(only: Mapping[str, Sequence[str]], **combination: str) -> bool:
    """True unless ``only`` keeps one part of the combination to others than are in it."""
    for own, name in combination.items():
        listed = only.get(name, ())
        for kind, other in combination.items():
            known = {n for n in listed if n in names(kind)}
            if kind != own and known and other not in known:
                return False
    return True


def _own_data(ground: WorkloadPlanner, assault: PlannedAttack) -> str | None:
    """The owner's data set under another name would give the adversary more of it than was granted."""
    own = ground.workload.data_set
    for name in assault.attack.data_sets():
        if ground.other(name).data_set == own:
            return f"{name} is the owner's own data set ({own}); name a workload with another one"
    return None


def _unsearchable(assault: PlannedAttack) -> str | None:
    if assault.search is not None and "model" not in assault.attack.makes:
        return "there is no suspect whose verdict could flip; list the strengths"
    return None


def _searches(defence: Defence, rows: CellPlanner, assaults: Sequence[PlannedAttack]) -> Iterator[Search]:
    """The bisections among these attacks: two ends each."""
    ends: dict[str, list[PlannedAttack]] = defaultdict(list)
    for assault in assaults:
        if assault.search is not None:
            ends[canonical([assault.stem, assault.budget, vars(assault.search)])].append(assault)
    for pair in ends.values():
        if len(pair) == 2:
            yield _search(defence, rows, pair)


def _search(defence: Defence, rows: CellPlanner, pair: Sequence[PlannedAttack]) -> Search:
    one = pair[0]
    assert one.search is not None
    bisection = replace(one.search, low=min(float(a.strength or 0) for a in pair))
    bisection = replace(bisection, high=max(float(a.strength or 0) for a in pair))

    def probe(strength: float) -> PlannedAttack:
        value: Any = int(strength) if bisection.whole else strength
        changes = {bisection.field: value}
        attack = replace(one.attack, **changes)
        entry = AttackEntry(attack, Budget(**one.budget), bisection)
        return assault_of(defence, entry, one.stem)

    verified = {owner_verdict(cell for _, cell in rows.rows_of(a)): float(a.strength or 0) for a in pair}
    return Search(rows, bisection, probe, one.attack.direction, verified)


def _calibrate(plan: Plan, defence: Defence, spec: ExperimentSpec) -> None:
    """Fresh keys on independent clean models, for each scheme on each workload; the models are shared by all."""
    if spec.calibration is None:
        return
    first = CellPlanner(defence, spec.seeds[0], _other_seed(spec.seeds, spec.seeds[0]))
    pool = [defence.ground.clean(CALIBRATION_SEED + number) for number in range(spec.calibration.models)]
    for tasks, cell in first.calibration(pool, spec.calibration.keys):
        plan.add(tasks, [cell])


def _other_seed(seeds: Sequence[int], seed: int) -> int:
    """Whose model is the null model: the next seed's, which is trained anyway."""
    return seeds[(seeds.index(seed) + 1) % len(seeds)] if len(seeds) > 1 else seed + EXTRA_SEED
