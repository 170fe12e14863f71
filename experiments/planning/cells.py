"""A scheme on a workload, the attacks on it, and the rows of the table that they make for one seed."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from wmarena.attacks.base import Attack
from wmarena.experiments.planning.workload_planner import TaskConfig, WorkloadPlanner
from wmarena.experiments.spec.entries import AttackEntry, Bisection
from wmarena.experiments.spec.labels import flat, short, strength_path, telling
from wmarena.orchestrator.plan.identity import canonical
from wmarena.orchestrator.plan.plan import Cell, Plan
from wmarena.orchestrator.plan.task import Kind, Task
from wmarena.schemes.base import Scheme

ControlKind = Literal["clean", "null_model", "stranger_key", "calibration"]

_VERIFY_SECONDS = 0.5
_ATTACK_PASSES = 10.0
"""Guess for an attack that names no number of epochs."""


def fields(config: TaskConfig) -> TaskConfig:
    """A plugin's configuration without its name."""
    return {k: v for k, v in config.items() if k != "name"}


class Defence:
    """One configured scheme on one workload."""

    def __init__(self, ground: WorkloadPlanner, scheme: Scheme, label: str) -> None:
        self.ground = ground
        self.scheme = scheme
        self.label = label
        self.config = scheme.config()
        self.marking = scheme.config(until="embed")
        self.params = fields(self.config)
        self.recipe = ground.twin_recipe(scheme)
        self.code = ground.code(ground.workload, scheme)

    def embed(self, seed: int) -> Task:
        """The marked model and its key."""
        ground = self.ground
        passes = ground.passes(None if self.scheme.from_scratch else self.recipe)
        return ground.task(
            Kind.EMBED,
            {"scheme": self.marking, "root": ground.root},
            seed,
            (("clean", ground.clean(seed).id),),
            code=self.code,
            label=f"embed/{self.label}{ground.suffix}/seed{seed}",
            cost=2 * ground.seconds(passes),
            scheme=self.scheme.name,
        )


@dataclass(frozen=True)
class PlannedAttack:
    """One configured attack on one defence, resolved against it.

    Attributes:
        stem, label: its name and what tells it from siblings, without and with its strength.
        config, params: what acts until the attack, and every field without the name.
        budget, adversary: what is granted, and the part of it that the attack itself depends on.
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
        """What the table's attack column says: a chain is called by its parts."""
        return self.attack.label if self.attack.family == "chain" else self.attack.name


def assaults(defence: Defence, entries: Iterable[AttackEntry]) -> list[PlannedAttack]:
    """The attacks of a spec against one defence; ``none`` is not one of them."""
    asked = [_granted(defence, entry) for entry in entries if entry.attack.family != "none"]
    # Different words may mean the same against this victim (a default that it fills in): answered once.
    resolved = list({canonical([e.attack.config(), e.budget.config(), _field(e)]): e for e in asked}.values())
    shown: list[TaskConfig] = []
    for entry in resolved:
        config = flat(entry.attack.config(until="attack"))
        config.pop(str(_field(entry)), None)
        shown.append(config | fields(entry.budget.config(until="attack")))
    labels = telling([e.attack.label for e in resolved], shown)
    return [assault_of(defence, entry, label) for entry, label in zip(resolved, labels, strict=True)]


def _granted(defence: Defence, entry: AttackEntry) -> AttackEntry:
    """The entry against this victim, with no more passes over the adversary's data than were granted."""
    attack, budget = entry.attack.resolved(defence.scheme), entry.budget
    if budget.max_epochs is not None:
        attack = attack.within(budget.max_epochs, defence.ground.adversary_samples(budget))
    return replace(entry, attack=attack)


def _field(entry: AttackEntry) -> str | None:
    """Where the entry's strength stands: the field that is searched, else the attack's own."""
    return strength_path(entry.attack) if entry.search is None else entry.search.field


def assault_of(defence: Defence, entry: AttackEntry, label: str) -> PlannedAttack:
    """One attack on one defence; ``label`` is its name without the strength."""
    ground, attack, budget = defence.ground, entry.attack, entry.budget
    config = attack.config(until="attack")
    path = _field(entry)
    strength = attack.strength if entry.search is None else float(str(config[entry.search.field]))
    others = [ground.other(name) for name in attack.data_sets()]
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
        code=ground.code(ground.workload, defence.scheme, attack, *others),
        claimed=claimed.config(),
        claimed_code=ground.code(ground.workload, claimed),
        trajectory=canonical([attack.trajectory(), adversary]) if attack.incremental else "",
        cost=ground.seconds(passes * budget.data_fraction),
        strength_name=named,
        strength=strength,
        data=ground.data_with(others),
        search=entry.search,
    )


def trajectories(attacks: Iterable[PlannedAttack]) -> list[list[PlannedAttack]]:
    """Attacks grouped by shared trajectory, weaker ones first: each continues from the checkpoint of the one before."""
    groups: dict[str, list[PlannedAttack]] = defaultdict(list)
    for number, assault in enumerate(attacks):
        groups[assault.trajectory or f"#{number}"].append(assault)
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
    assault: PlannedAttack | None = None
    attack: Task | None = None
    scratch: Task | None = None
    control: ControlKind | None = None
    head: Literal["deployed", "original"] = "deployed"
    claim: bool = False
    realigned: bool = False


class CellPlanner:
    """The rows of one defence for one seed.

    Args:
        other_seed: whose twin is the independent null model.
    """

    def __init__(self, defence: Defence, seed: int, other_seed: int) -> None:
        ground = defence.ground
        self.defence = defence
        self.seed = seed
        self.twin = ground.twin(seed, defence.recipe)
        self.embed = defence.embed(seed)
        self._basis = (ground.clean(seed), self.twin, self.embed)
        self._null = (ground.clean(other_seed), ground.twin(other_seed, defence.recipe))
        self._longest: dict[str, Task] = {}

    def add_to(self, plan: Plan, attacks: Sequence[PlannedAttack]) -> None:
        """The marked model itself, its controls, every attack."""
        for row in self._all(attacks):
            verify = self._verify(row)
            tasks = {task.id: task for task in (*self._basis, *row.needs, verify)}
            plan.add(tasks.values(), [self._cell(row, verify)])

    def _all(self, attacks: Sequence[PlannedAttack]) -> Iterator[PlannedCell]:
        yield PlannedCell(suspect=self.embed, what="none")
        yield PlannedCell(suspect=self.twin, what="control-clean", control="clean")
        yield PlannedCell(suspect=self._null[-1], what="control-null_model", needs=self._null, control="null_model")
        yield PlannedCell(suspect=self.embed, what="control-stranger_key", control="stranger_key")
        for group in trajectories(attacks):
            for assault in group:
                yield from self._attacked(assault, self._attack(assault))

    def rows_of(self, assault: PlannedAttack) -> list[tuple[list[Task], Cell]]:
        """One more attack, as a search adds it: for each row its tasks, parents first, the last one verifying."""
        out = []
        for row in self._attacked(assault, self._attack(assault)):
            verify = self._verify(row)
            out.append(([*{t.id: t for t in (*self._basis, *row.needs, verify)}.values()], self._cell(row, verify)))
        return out

    def calibration(self, null_models: Sequence[Task], n_keys: int) -> Iterator[tuple[list[Task], Cell]]:
        """Fresh keys that nobody embedded on independent clean models: ``n_keys`` on each."""
        for number, model in enumerate(null_models):
            row = PlannedCell(suspect=model, what=f"calibration-{number}", needs=(model,), control="calibration")
            verify = self._verify(row, calibration=n_keys)
            yield [*{t.id: t for t in (*self._basis, model, verify)}.values()], self._cell(row, verify)

    def _attack(self, assault: PlannedAttack) -> Task:
        """The attack's task; it waits for the one before of the same trajectory, whose checkpoints it goes on from."""
        defence = self.defence
        shorter = self._longest.get(assault.trajectory) if assault.trajectory else None
        task = self._attack_task(defence, assault, shorter)
        if assault.trajectory:
            self._longest[assault.trajectory] = task
        return task

    def _attack_task(self, defence: Defence, assault: PlannedAttack, shorter: Task | None) -> Task:
        return defence.ground.task(
            Kind.ATTACK,
            {
                "scheme": defence.marking,
                "attack": assault.config,
                "adversary": assault.adversary,
                "root": defence.ground.root,
            },
            self.seed,
            (("victim", self.embed.id),),
            code=assault.code,
            label=f"attack/{defence.label}/{assault.label}{defence.ground.suffix}/seed{self.seed}",
            after=() if shorter is None else (shorter.id,),
            cost=assault.cost,
            scheme=defence.scheme.name,
            attack=assault.name,
            data=assault.data,
        )

    def _attacked(self, assault: PlannedAttack, attack: Task) -> Iterator[PlannedCell]:
        """The owner's rows on the attacked model, the adversary's row if the attack ends in a claim."""
        makes, what = assault.attack.makes, assault.label
        if "model" in makes:
            scratch = self.defence.ground.scratch(self.seed, assault.adversary)
            row = PlannedCell(
                suspect=attack, what=what, needs=(attack, scratch), assault=assault, attack=attack, scratch=scratch
            )
            yield row
            # A black-box mark is read through the output layer: the owner also plugs back the one that was replaced.
            if assault.attack.replaces_head and self.defence.scheme.access == "black":
                yield replace(row, what=f"{what}/original-head", head="original")
            # Weights in another order compute the same: the owner of a white-box mark brings them back first.
            if assault.attack.rewrites and self.defence.scheme.access == "white":
                yield replace(row, what=f"{what}/realigned", realigned=True)
        if "claim" in makes:
            suspect = attack if "model" in makes else self.embed
            yield PlannedCell(
                suspect=suspect, what=f"{what}/claim", needs=(attack,), assault=assault, attack=attack, claim=True
            )

    def _verify(self, row: PlannedCell, calibration: int = 0) -> Task:
        defence = self.defence
        config, code, owner = defence.config, defence.code, ("owner", self.embed.id)
        how: TaskConfig = {"control": row.control, "head": row.head, "claim": row.claim}
        if row.realigned:
            how["realigned"] = True
            code = defence.ground.code(defence.ground.workload, defence.scheme, "wmarena.schemes.symmetry.realign")
        if calibration:
            how["calibration"] = calibration
        if row.claim and row.assault is not None and row.attack is not None:
            config, code = row.assault.claimed, row.assault.claimed_code
            owner = ("claim", row.attack.id)
        return defence.ground.task(
            Kind.VERIFY,
            {"scheme": config, **how},
            self.seed,
            (("suspect", row.suspect.id), owner),
            code=code,
            label=f"verify/{defence.label}/{row.what}{defence.ground.suffix}/seed{self.seed}",
            cost=_VERIFY_SECONDS,
            scheme=defence.scheme.name,
            attack=row.assault.name if row.assault else "none",
        )

    def _cell(self, row: PlannedCell, verify: Task) -> Cell:
        defence, assault = self.defence, row.assault
        return Cell(
            verify=verify.id,
            embed=self.embed.id,
            suspect=row.suspect.id,
            clean=self.twin.id,
            workload=defence.ground.workload.name,
            metric=defence.ground.metric,
            scheme=defence.scheme.name,
            scheme_params=defence.params,
            attack=assault.name if assault else "none",
            attack_params=assault.params if assault else {},
            seed=self.seed,
            attack_task=row.attack.id if row.attack else None,
            scratch=row.scratch.id if row.scratch else None,
            strength_name=assault.strength_name if assault else None,
            strength=assault.strength if assault else None,
            control=row.control,
            head=row.head,
            claim=row.claim,
            realigned=row.realigned,
            searched=assault is not None and assault.search is not None,
            budget=assault.budget if assault else {},
        )
