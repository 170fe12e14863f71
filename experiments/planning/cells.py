"""Plans one scheme on one workload: its attacks, and the rows of the table for each seed."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from wmarena.attacks.base import Attack
from wmarena.experiments.planning.workload_planner import TaskConfig, WorkloadPlanner
from wmarena.experiments.spec.entries import AttackEntry, Bisection
from wmarena.experiments.spec.labels import flat, short, strength_path, table_name, telling
from wmarena.orchestrator.plan.identity import canonical
from wmarena.orchestrator.plan.plan import Cell, Plan
from wmarena.orchestrator.plan.task import Kind, Task
from wmarena.schemes.base import Scheme

ControlKind = Literal["clean", "null_model", "stranger_key", "calibration"]

_VERIFY_SECONDS = 0.5
_ATTACK_PASSES = 10.0
"""Assumed passes of an attack that has no number of epochs."""


def fields(config: TaskConfig) -> TaskConfig:
    """Return a plugin's configuration without its name."""
    return {k: v for k, v in config.items() if k != "name"}


class Defence:
    """One configured scheme on one workload."""

    def __init__(self, planner: WorkloadPlanner, scheme: Scheme, label: str) -> None:
        self.planner = planner
        self.scheme = scheme
        self.label = label
        self.config = scheme.config()
        self.marking = scheme.config(until="embed")
        self.params = fields(self.config)
        self.recipe = planner.twin_recipe(scheme)
        self.code = planner.code(planner.workload, scheme)

    def embed(self, seed: int) -> Task:
        """Make the task of the marked model and its key."""
        planner = self.planner
        passes = planner.passes(None if self.scheme.from_scratch else self.recipe)
        return planner.task(
            Kind.EMBED,
            {"scheme": self.marking, "root": planner.root},
            seed,
            (("clean", planner.clean(seed).id),),
            code=self.code,
            label=f"embed/{self.label}{planner.suffix}/seed{seed}",
            cost=2 * planner.seconds(passes),
            scheme=self.scheme.name,
        )


@dataclass(frozen=True)
class PlannedAttack:
    """One configured attack on one defence, resolved against it.

    Attributes:
        stem, label: its name and what tells it from siblings, without and with its strength.
        config, params: fields that act until the attack, and all fields without the name.
        budget, adversary: all that is granted, and the part that the attack itself depends on.
        code, claimed_code: digests for the attack, and for verifying a claim.
        data: fingerprint of all data that the attack reads.
        search: the bisection that this strength belongs to, or None.
        claimed: configuration of the scheme that a claim is made with.
        trajectory: equal for strengths that share one; "" where strengths share nothing.
    """

    attack: Attack
    stem: str
    label: str
    config: TaskConfig
    params: TaskConfig
    budget: TaskConfig
    adversary: TaskConfig
    code: str
    claimed: TaskConfig
    claimed_code: str
    trajectory: str
    cost: float
    strength_name: str | None
    strength: float | None
    data: str
    search: Bisection | None = None

    @property
    def name(self) -> str:
        """The name in the table's attack column."""
        return table_name(self.attack)


def plan_attacks(defence: Defence, entries: Iterable[AttackEntry]) -> list[PlannedAttack]:
    """Plan the attacks of a spec, except ``none``, against one defence."""
    asked = [_granted(defence, entry) for entry in entries if entry.attack.family != "none"]
    # Different entries may resolve to one configuration against this victim (a default that it fills in).
    resolved = list({canonical([e.attack.config(), e.budget.config(), _field(e)]): e for e in asked}.values())
    shown: list[TaskConfig] = []
    for entry in resolved:
        config = flat(entry.attack.config(until="attack"))
        config.pop(str(_field(entry)), None)
        shown.append(config | fields(entry.budget.config(until="attack")))
    labels = telling([e.attack.label for e in resolved], shown)
    return [plan_attack(defence, entry, label) for entry, label in zip(resolved, labels, strict=True)]


def _granted(defence: Defence, entry: AttackEntry) -> AttackEntry:
    """Resolve the entry against this victim, within the granted passes over the adversary's data."""
    attack, budget = entry.attack.resolved(defence.scheme), entry.budget
    if budget.max_epochs is not None:
        attack = attack.within(budget.max_epochs, defence.planner.adversary_samples(budget))
    return replace(entry, attack=attack)


def _field(entry: AttackEntry) -> str | None:
    """Return the field of the entry's strength: the one that is searched, else the attack's own."""
    return strength_path(entry.attack) if entry.search is None else entry.search.field


def plan_attack(defence: Defence, entry: AttackEntry, label: str) -> PlannedAttack:
    """Plan one attack on one defence; ``label`` is its name without the strength."""
    planner, attack, budget = defence.planner, entry.attack, entry.budget
    config = attack.config(until="attack")
    path = _field(entry)
    strength = attack.strength if entry.search is None else float(str(config[entry.search.field]))
    others = [planner.other(name) for name in attack.data_sets()]
    named = None if path is None else path.rpartition(".")[2]
    epochs = config.get("epochs")
    passes = float(epochs) if isinstance(epochs, int | float) else _ATTACK_PASSES
    claimed = next((p for p in reversed(attack.plugins()) if isinstance(p, Scheme)), defence.scheme)
    adversary = fields(budget.config(until="attack"))
    return PlannedAttack(
        attack=attack,
        stem=label,
        label=label if named is None else f"{label}/{named}={short(strength)}",
        config=config,
        params=fields(attack.config()),
        budget=fields(budget.config()),
        adversary=adversary,
        code=planner.code(planner.workload, defence.scheme, attack, *others),
        claimed=claimed.config(),
        claimed_code=planner.code(planner.workload, claimed),
        trajectory=canonical([attack.trajectory(), adversary]) if attack.incremental else "",
        cost=planner.seconds(passes * budget.data_fraction),
        strength_name=named,
        strength=strength,
        data=planner.data_with(others),
        search=entry.search,
    )


def trajectories(attacks: Iterable[PlannedAttack]) -> list[list[PlannedAttack]]:
    """Group attacks by shared trajectory, weakest first: each continues from the previous one's checkpoint."""
    groups: dict[str, list[PlannedAttack]] = defaultdict(list)
    for number, attack in enumerate(attacks):
        groups[attack.trajectory or f"#{number}"].append(attack)
    return [sorted(group, key=lambda a: a.strength or 0.0) for group in groups.values()]


@dataclass(frozen=True, kw_only=True)
class PlannedCell:
    """What one verify task judges: a suspect with the owner's key, or with the adversary's (``claim``).

    Attributes:
        what: the label's middle part.
        needs: tasks behind the suspect, besides the defence's own; parents first.
    """

    suspect: Task
    what: str
    needs: tuple[Task, ...] = ()
    attack: PlannedAttack | None = None
    attack_task: Task | None = None
    scratch: Task | None = None
    control: ControlKind | None = None
    head: Literal["deployed", "original"] = "deployed"
    claim: bool = False
    realigned: bool = False


TasksAndCell = tuple[list[Task], Cell]
"""The tasks of one row, parents first and the verify task last, and its cell."""


class CellPlanner:
    """The rows of one defence for one seed.

    Args:
        other_seed: the seed whose twin is the independent null model.
    """

    def __init__(self, defence: Defence, seed: int, other_seed: int) -> None:
        planner = defence.planner
        self.defence = defence
        self.seed = seed
        self.twin = planner.twin(seed, defence.recipe)
        self.embed = defence.embed(seed)
        self._basis = (planner.clean(seed), self.twin, self.embed)
        self._null = (planner.clean(other_seed), planner.twin(other_seed, defence.recipe))
        self._longest: dict[str, Task] = {}

    def add_to(self, plan: Plan, attacks: Sequence[PlannedAttack]) -> None:
        """Add the marked model itself, its controls, and every attack."""
        for row in self._all(attacks):
            tasks, cell = self._planned(row)
            plan.add(tasks, [cell])

    def _all(self, attacks: Sequence[PlannedAttack]) -> Iterator[PlannedCell]:
        yield PlannedCell(suspect=self.embed, what="none")
        yield PlannedCell(suspect=self.twin, what="control-clean", control="clean")
        yield PlannedCell(suspect=self._null[-1], what="control-null_model", needs=self._null, control="null_model")
        yield PlannedCell(suspect=self.embed, what="control-stranger_key", control="stranger_key")
        for group in trajectories(attacks):
            for attack in group:
                yield from self._attacked(attack)

    def rows_of(self, attack: PlannedAttack) -> list[TasksAndCell]:
        """Plan one more attack, as a search adds it."""
        return [self._planned(row) for row in self._attacked(attack)]

    def calibration(self, null_models: Sequence[Task], n_keys: int) -> Iterator[TasksAndCell]:
        """Plan ``n_keys`` fresh keys, embedded nowhere, on each independent clean model."""
        for number, model in enumerate(null_models):
            row = PlannedCell(suspect=model, what=f"calibration-{number}", needs=(model,), control="calibration")
            yield self._planned(row, calibration=n_keys)

    def _planned(self, row: PlannedCell, calibration: int = 0) -> TasksAndCell:
        verify = self._verify(row, calibration)
        return [*{t.id: t for t in (*self._basis, *row.needs, verify)}.values()], self._cell(row, verify)

    def _attack_task(self, attack: PlannedAttack) -> Task:
        """Make the attack's task; it waits for the next weaker one of its trajectory, to use its checkpoints."""
        defence = self.defence
        shorter = self._longest.get(attack.trajectory) if attack.trajectory else None
        config = {"attack": attack.config, "adversary": attack.adversary, "root": defence.planner.root}
        task = defence.planner.task(
            Kind.ATTACK,
            {"scheme": defence.marking, **config},
            self.seed,
            (("victim", self.embed.id),),
            code=attack.code,
            label=f"attack/{defence.label}/{attack.label}{defence.planner.suffix}/seed{self.seed}",
            after=() if shorter is None else (shorter.id,),
            cost=attack.cost,
            scheme=defence.scheme.name,
            attack=attack.name,
            data=attack.data,
        )
        if attack.trajectory:
            self._longest[attack.trajectory] = task
        return task

    def _attacked(self, attack: PlannedAttack) -> Iterator[PlannedCell]:
        """Yield the owner's rows on the attacked model, and the adversary's row if the attack ends in a claim."""
        task, makes, what = self._attack_task(attack), attack.attack.makes, attack.label
        row = PlannedCell(suspect=task, what=what, needs=(task,), attack=attack, attack_task=task)
        if "model" in makes:
            scratch = self.defence.planner.scratch(self.seed, attack.adversary)
            judged = replace(row, needs=(task, scratch), scratch=scratch)
            yield judged
            # A black-box mark is read through the output layer: the owner also plugs back the one that was replaced.
            if attack.attack.replaces_head and self.defence.scheme.access == "black":
                yield replace(judged, what=f"{what}/original-head", head="original")
            # Reordered weights compute the same function: the owner of a white-box mark restores the order first.
            if attack.attack.rewrites and self.defence.scheme.access == "white":
                yield replace(judged, what=f"{what}/realigned", realigned=True)
        if "claim" in makes:
            yield replace(row, suspect=task if "model" in makes else self.embed, what=f"{what}/claim", claim=True)

    def _verify(self, row: PlannedCell, calibration: int) -> Task:
        defence, attack = self.defence, row.attack
        config, code, owner = defence.config, defence.code, ("owner", self.embed.id)
        how: TaskConfig = {"control": row.control, "head": row.head, "claim": row.claim}
        if row.realigned:
            how["realigned"] = True
            code = defence.planner.code(defence.planner.workload, defence.scheme, "wmarena.schemes.symmetry.realign")
        if calibration:
            how["calibration"] = calibration
        if row.claim and attack is not None and row.attack_task is not None:
            config, code = attack.claimed, attack.claimed_code
            owner = ("claim", row.attack_task.id)
        return defence.planner.task(
            Kind.VERIFY,
            {"scheme": config, **how},
            self.seed,
            (("suspect", row.suspect.id), owner),
            code=code,
            label=f"verify/{defence.label}/{row.what}{defence.planner.suffix}/seed{self.seed}",
            cost=_VERIFY_SECONDS,
            scheme=defence.scheme.name,
            attack=attack.name if attack else "none",
        )

    def _cell(self, row: PlannedCell, verify: Task) -> Cell:
        defence, attack = self.defence, row.attack
        return Cell(
            verify=verify.id,
            embed=self.embed.id,
            suspect=row.suspect.id,
            clean=self.twin.id,
            workload=defence.planner.workload.name,
            metric=defence.planner.metric,
            scheme=defence.scheme.name,
            scheme_params=defence.params,
            attack=attack.name if attack else "none",
            attack_params=attack.params if attack else {},
            seed=self.seed,
            attack_task=row.attack_task.id if row.attack_task else None,
            scratch=row.scratch.id if row.scratch else None,
            strength_name=attack.strength_name if attack else None,
            strength=attack.strength if attack else None,
            control=row.control,
            head=row.head,
            claim=row.claim,
            realigned=row.realigned,
            searched=attack is not None and attack.search is not None,
            budget=attack.budget if attack else {},
        )
