"""What each role is given: keys from its own domain, data from its own share, and an attack's whole view."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from wmarena.attacks.base import Attack, AttackView
from wmarena.attacks.knowledge import AuxiliaryData, AuxiliaryDataSet, Budget, NotGranted
from wmarena.orchestrator.keys.derivation import Role
from wmarena.orchestrator.plan.identity import canonical
from wmarena.orchestrator.plan.plugins import build
from wmarena.orchestrator.plan.task import Task
from wmarena.orchestrator.store.checkpoints import Curves, StoredCheckpoints
from wmarena.orchestrator.worker.context import WorkerContext
from wmarena.orchestrator.worker.workload import BoundWorkload, WorkloadConfig
from wmarena.schemes.base import Owner, Recipe, Samples, Scheme
from wmarena.schemes.prf import Prf, subseed

VAL_SHARE = 0.1
"""Part of the adversary's share that is held out for model selection."""

_SCRATCH_PASSES = 10


@dataclass(frozen=True)
class TaskContext:
    """One task on one workbench."""

    bench: WorkerContext
    arena: BoundWorkload
    task: Task
    curves: Curves
    checkpoints: StoredCheckpoints

    def prf(self, role: Role, scheme: Scheme, *purpose: str) -> Prf:
        """The stream that ``role`` draws a key of ``scheme`` from."""
        parts = (canonical(scheme.config(until="key")), str(self.task.config["workload"]["name"]), str(self.task.seed))
        return self.bench.root.prf(role, *purpose, *parts)


def owner_of(job: TaskContext) -> Owner:
    """What the owner embeds with."""
    return Owner(
        task=job.arena.task,
        train=job.arena.train,
        val=job.arena.val,
        seed=subseed(job.task.seed, "embed"),
        log=job.curves,
        checkpoints=job.checkpoints,
    )


def attack_view(job: TaskContext, attack: Attack, scheme: Scheme) -> AttackView:
    """Everything the attack is granted, and nothing else; the key is loaded only if the attack declares it."""
    needs, granted, seed = attack.needs(), job.task.config["adversary"], job.task.seed
    data, val = adversary_data(job.arena, granted, seed)
    # Strengths that share a trajectory share the adversary's keys as well.
    purpose = canonical(attack.trajectory())
    return AttackView(
        task=job.arena.task,
        scheme=scheme if needs & {"algorithm", "key"} else None,
        data=data,
        val=val,
        budget=Budget(**granted),
        seed=subseed(seed, "attack", attack.name),
        prf=job.prf("adversary", scheme, purpose),
        log=job.curves,
        checkpoints=job.checkpoints,
        key=job.bench.load_key(job.task.parent("victim")) if "key" in needs else None,
        auxiliary_data=_elsewhere(job, attack.data_sets()),
    )


def _elsewhere(job: TaskContext, names: Iterable[str]) -> AuxiliaryData:
    """The named workloads' data with these workloads' own defaults.

    Read now, so that nothing of the workbench, with its keys and its test data, stays within an attack's reach.

    Raises:
        NotGranted: a workload has the owner's data set: its samples are the owner's, beyond the adversary's share.
    """
    own = _data_set(job.task.config["workload"])
    found: dict[str, AuxiliaryDataSet] = {}
    for name in names:
        if _data_set({"name": name}) == own:
            raise NotGranted(f"expected a workload on another data set than the owner's {own}, got {name!r}")
        arena = job.bench.arena({"name": name})
        found[name] = arena.train, arena.val, arena.task.info
    return AuxiliaryData(found)


def _data_set(config: Mapping[str, Any]) -> str:
    workload: WorkloadConfig = build("workload", config)  # type: ignore[assignment]
    return workload.data_set


def adversary_data(arena: BoundWorkload, granted: Mapping[str, Any], seed: int) -> tuple[Samples, Samples]:
    """(training share, held-out tenth of it): what the adversary of this seed has; the same for every attack."""
    pool: Samples = arena.train
    fraction = float(granted["data_fraction"])
    if granted["disjoint"]:
        if arena.reserve is None:
            raise ValueError(
                "expected training data that the owner never saw for a disjoint adversary, got none; "
                "set the workload's `reserve` (for example 0.1)"
            )
        pool = arena.reserve
        fraction = min(1.0, fraction * len(arena.train) / len(pool))
    share = pool.share(fraction, domain="adversary", seed=seed)
    return share.split(VAL_SHARE, domain="adversary/val", seed=seed)


def scratch_recipe(recipe: Recipe, fraction: float) -> Recipe:
    """Training from nothing on a share: about as many steps as the victim's training, at most tenfold epochs."""
    factor = min(float(_SCRATCH_PASSES), 1.0 / fraction)
    return replace(
        recipe,
        epochs=max(1, round(recipe.epochs * factor)),
        milestones=tuple(round(m * factor) for m in recipe.milestones),
    )
