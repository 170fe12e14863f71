"""What owner and adversary get: keys from their own domains, data from their own shares, an attack's view."""

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
"""Part of the adversary's share that is its validation data."""

_SCRATCH_PASSES = 10


@dataclass(frozen=True)
class TaskContext:
    """One task with its worker context and bound workload."""

    context: WorkerContext
    bound: BoundWorkload
    task: Task
    curves: Curves
    checkpoints: StoredCheckpoints

    def prf(self, role: Role, scheme: Scheme, *purpose: str) -> Prf:
        """Return the stream from which ``role`` draws a key of ``scheme``."""
        parts = (canonical(scheme.config(until="key")), str(self.task.config["workload"]["name"]), str(self.task.seed))
        return self.context.root.prf(role, *purpose, *parts)


def owner_of(job: TaskContext) -> Owner:
    """Return the owner's view for embedding."""
    return Owner(
        task=job.bound.task,
        train=job.bound.train,
        val=job.bound.val,
        seed=subseed(job.task.seed, "embed"),
        log=job.curves,
        checkpoints=job.checkpoints,
    )


def attack_view(job: TaskContext, attack: Attack, scheme: Scheme) -> AttackView:
    """Return what the attack is granted and nothing else; the key is loaded only if the attack declares it."""
    needs, granted, seed = attack.needs(), job.task.config["adversary"], job.task.seed
    data, val = adversary_data(job.bound, granted, seed)
    # Strengths that share a trajectory share the adversary's keys too.
    purpose = canonical(attack.trajectory())
    return AttackView(
        task=job.bound.task,
        scheme=scheme if needs & {"algorithm", "key"} else None,
        data=data,
        val=val,
        budget=Budget(**granted),
        seed=subseed(seed, "attack", attack.name),
        prf=job.prf("adversary", scheme, purpose),
        log=job.curves,
        checkpoints=job.checkpoints,
        key=job.context.load_key(job.task.parent("victim")) if "key" in needs else None,
        auxiliary_data=_auxiliary_data(job, attack.data_sets()),
    )


def _auxiliary_data(job: TaskContext, names: Iterable[str]) -> AuxiliaryData:
    """Return the data of the named workloads with default fields.

    Loaded now, so that the attack gets no reference to the worker context, its keys and its test data.

    Raises:
        NotGranted: a workload uses the owner's data set, whose samples exceed the adversary's share.
    """
    own = _data_set(job.task.config["workload"])
    found: dict[str, AuxiliaryDataSet] = {}
    for name in names:
        if _data_set({"name": name}) == own:
            raise NotGranted(f"expected a workload on another data set than the owner's {own}, got {name!r}")
        bound = job.context.workload({"name": name})
        found[name] = bound.train, bound.val, bound.task.info
    return AuxiliaryData(found)


def _data_set(config: Mapping[str, Any]) -> str:
    workload: WorkloadConfig = build("workload", config)  # type: ignore[assignment]
    return workload.data_set


def adversary_data(bound: BoundWorkload, granted: Mapping[str, Any], seed: int) -> tuple[Samples, Samples]:
    """Return (training share, validation tenth) of this seed's adversary; the same for every attack."""
    pool: Samples = bound.train
    fraction = float(granted["data_fraction"])
    if granted["disjoint"]:
        if bound.reserve is None:
            raise ValueError(
                "expected training data that the owner never saw for a disjoint adversary, got none; "
                "set the workload's `reserve` (for example 0.1)"
            )
        pool = bound.reserve
        fraction = min(1.0, fraction * len(bound.train) / len(pool))
    share = pool.share(fraction, domain="adversary", seed=seed)
    return share.split(VAL_SHARE, domain="adversary/val", seed=seed)


def scratch_recipe(recipe: Recipe, fraction: float) -> Recipe:
    """Return the recipe for scratch training on a share: about the victim's number of steps, at most tenfold epochs."""
    factor = min(float(_SCRATCH_PASSES), 1.0 / fraction)
    return replace(
        recipe,
        epochs=max(1, round(recipe.epochs * factor)),
        milestones=tuple(round(m * factor) for m in recipe.milestones),
    )
