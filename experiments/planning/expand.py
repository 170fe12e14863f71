"""Expands a spec to the task graph: every cell of the table with its tasks, common work shared.

    train clean ──► embed ──► attack ──► verify          one row per verify task
        └─► train twin (same extra epochs, no mark)      controls for each (workload, scheme, seed)
    train scratch (adversary's data alone)               what a removal must beat

A task's configuration holds only what changes its result, so that equal tasks are shared. It omits fields of later
stages, the owner's threshold, the allowed accuracy drop, and the other strengths.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wmarena.attacks.knowledge import Budget
from wmarena.experiments.planning.cells import CellPlanner, Defence, PlannedAttack, plan_attack, plan_attacks
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
    """A plan, and the pairs of the spec that do not apply, with the reason.

    Attributes:
        searches: bisections that add to the plan while it runs: the loop's ``grow``.
    """

    plan: Plan
    left_out: tuple[str, ...] = ()
    searches: Searches = field(default_factory=Searches)


def expand(spec: ExperimentSpec, *, data_root: Path | None = None, planners: PlannerCache | None = None) -> Expansion:
    """Expand a spec to its plan.

    Args:
        data_root: the first place to look for data sets.
        planners: workloads and code that earlier expansions in this process have read.

    Raises:
        wmarena.orchestrator.worker.workload.MissingData: a data set is missing.
        SpecError: the key root cannot be read, or no data were reserved for a disjoint adversary.
    """
    try:
        root = KeyRoot.from_file(spec.keys.root if spec.keys else None)
    except ValueError as error:
        raise SpecError.of(str(error), "keys", "root") from None
    plan = Plan()
    left_out: list[str] = []
    searches = Searches()
    planners = planners or PlannerCache(data_root)
    labels = telling([w.name for w in spec.workloads], [w.config() for w in spec.workloads])
    for workload, label in zip(spec.workloads, labels, strict=True):
        shown = label if len(labels) > 1 else ""
        planner = planners.of(workload, shown, root.commitment)
        _check_budgets(planner, spec)
        left_out += _add_workload(plan, searches, planner, spec)
    return Expansion(plan, tuple(left_out), searches)


def _check_budgets(planner: WorkloadPlanner, spec: ExperimentSpec) -> None:
    """Refuse disjoint adversaries without a reserve, and counted passes over a share without samples."""
    name = planner.workload.name
    for budget in (entry.budget for entry in spec.attacks):
        if budget.disjoint and not planner.facts.reserve:
            message = f"expected data that the owner never trains on, for a disjoint adversary, got none in {name}"
            raise SpecError.of(f"{message}; set its `reserve`, for example reserve: 0.1", "adversary", "disjoint")
    for budget in (entry.budget for entry in spec.attacks if entry.budget.max_epochs is not None):
        try:
            planner.adversary_samples(budget)
        except ValueError as error:
            message = f"expected a share of {name} to train on; {error}"
            raise SpecError.of(message, "adversary", "data_fraction") from None


def _add_workload(plan: Plan, searches: Searches, planner: WorkloadPlanner, spec: ExperimentSpec) -> Iterator[str]:
    """Add all rows of one workload; yield what is left out."""
    labels = telling([s.name for s in spec.schemes], [s.config() for s in spec.schemes])
    for scheme, label in zip(spec.schemes, labels, strict=True):
        if not _wanted(spec.only, scheme=scheme.name, workload=planner.workload.name):
            continue
        reason = scheme.applicable(planner.workload.info)
        if reason is not None:
            yield f"{label} on {planner.workload.name}: {reason}"
            continue
        defence = Defence(planner, scheme, label)
        applicable: list[PlannedAttack] = []
        for planned in plan_attacks(defence, spec.attacks):
            if not _wanted(spec.only, attack=planned.attack.name, scheme=scheme.name, workload=planner.workload.name):
                continue
            reason = planned.attack.applicable(scheme, planner.workload.info)
            reason = reason or _own_data(planner, planned) or _unsearchable(planned)
            if reason is None:
                applicable.append(planned)
            else:
                yield f"{planned.label} against {label} on {planner.workload.name}: {reason}"
        for seed in spec.seeds:
            cells = CellPlanner(defence, seed, _other_seed(spec.seeds, seed))
            cells.add_to(plan, applicable)
            for search in _searches(defence, cells, applicable):
                searches.add(search)
        _calibrate(plan, defence, spec)


def _wanted(only: Mapping[str, Sequence[str]], **combination: str) -> bool:
    """Return False if ``only`` restricts one part of the combination to parts that are not in it."""
    for own, name in combination.items():
        listed = only.get(name, ())
        for kind, other in combination.items():
            known = {n for n in listed if n in names(kind)}
            if kind != own and known and other not in known:
                return False
    return True


def _own_data(planner: WorkloadPlanner, planned: PlannedAttack) -> str | None:
    """Refuse the owner's data set under another name: the adversary would get more of it than was granted."""
    own = planner.workload.data_set
    for name in planned.attack.data_sets():
        if planner.other(name).data_set == own:
            return f"{name} is the owner's own data set ({own}); name a workload with another one"
    return None


def _unsearchable(planned: PlannedAttack) -> str | None:
    if planned.search is not None and "model" not in planned.attack.makes:
        return "there is no suspect whose verdict could flip; list the strengths"
    return None


def _searches(defence: Defence, cells: CellPlanner, attacks: Sequence[PlannedAttack]) -> Iterator[Search]:
    """Yield the bisections among these attacks, each from the two attacks at its ends."""
    ends: dict[str, list[PlannedAttack]] = defaultdict(list)
    for planned in attacks:
        if planned.search is not None:
            ends[canonical([planned.stem, planned.budget, vars(planned.search)])].append(planned)
    for pair in ends.values():
        if len(pair) == 2:
            yield _search(defence, cells, pair)


def _search(defence: Defence, cells: CellPlanner, pair: Sequence[PlannedAttack]) -> Search:
    one = pair[0]
    assert one.search is not None
    # Resolving may have changed the ends (a budget caps epochs): the bracket is that of the planned attacks.
    ends = [float(a.strength or 0) for a in pair]
    bisection = replace(one.search, low=min(ends), high=max(ends))

    def probe(strength: float) -> PlannedAttack:
        value: Any = int(strength) if bisection.whole else strength
        changes = {bisection.field: value}
        entry = AttackEntry(replace(one.attack, **changes), Budget(**one.budget), bisection)
        return plan_attack(defence, entry, one.stem)

    verified = {owner_verdict(cell for _, cell in cells.rows_of(a)): end for a, end in zip(pair, ends, strict=True)}
    return Search(cells, bisection, probe, one.attack.direction, verified)


def _calibrate(plan: Plan, defence: Defence, spec: ExperimentSpec) -> None:
    """Add fresh keys on independent clean models; all schemes of a workload share the models."""
    if spec.calibration is None:
        return
    first = CellPlanner(defence, spec.seeds[0], _other_seed(spec.seeds, spec.seeds[0]))
    pool = [defence.planner.clean(CALIBRATION_SEED + number) for number in range(spec.calibration.models)]
    for tasks, cell in first.calibration(pool, spec.calibration.keys):
        plan.add(tasks, [cell])


def _other_seed(seeds: Sequence[int], seed: int) -> int:
    """Return the seed of the null model: the next one, whose model is trained anyway."""
    return seeds[(seeds.index(seed) + 1) % len(seeds)] if len(seeds) > 1 else seed + EXTRA_SEED
