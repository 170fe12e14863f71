"""A small store and journal with hand-made results, for tests of recorders."""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from wmarena.orchestrator.journal.journal import Journal
from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.plan import Cell, Plan
from wmarena.orchestrator.plan.plan_file import save_plan
from wmarena.orchestrator.plan.task import Kind, State, Task, TaskId
from wmarena.orchestrator.store.local import Store, tensors_to_bytes
from wmarena.schemes.base import Verdict

WORKLOAD = {"name": "digits_mlp", "epochs": 3}
SCHEME = {"name": "toy", "lambda1": 0.1, "gamma": 0.9}
ADVERSARY = {"data_fraction": 0.1, "disjoint": False}
EXPERIMENT = "digits-toy"
SPEC = "name: digits-toy\nworkloads: [digits_mlp]\n"
INFO = {"description": "Does the toy mark survive?", "code_version": "0.1.0+abc", "data_sets": {"digits_mlp": "digits"}}


class World:
    """One seed of one scheme: clean model, its twin, marked model, controls, fine-tuning at two strengths."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root / "store").open()
        self.journal = Journal(self.store.journal_path)
        self.clean = self.task(Kind.TRAIN, {"recipe": None}, (), "train/clean/seed0")
        self.twin = self.task(Kind.TRAIN, {"recipe": {"epochs": 1}}, (("start", self.clean.id),), "train/twin/seed0")
        marking = {"scheme": {"name": "toy", "lambda1": 0.1}}
        self.embed = self.task(Kind.EMBED, marking, (("clean", self.clean.id),), "embed/toy/seed0", scheme="toy")
        self.none = self.verify(self.embed, "none")
        self.control = self.verify(self.twin, "control/clean", control="clean")
        self.attacks = {epochs: self.attack(epochs) for epochs in (1, 5)}
        self.cells = {
            epochs: self.verify(a, f"finetune/epochs={epochs}", "finetune") for epochs, a in self.attacks.items()
        }
        self.original = self.verify(self.attacks[5], "finetune/epochs=5/original-head", "finetune", head="original")

    @property
    def tasks(self) -> list[Task]:
        """All tasks, parents first."""
        first = [self.clean, self.twin, self.embed, self.none, self.control]
        return [*first, *self.attacks.values(), *self.cells.values(), self.original]

    @property
    def entries(self) -> list[Task]:
        """Tasks with an entry of their own in a tracker: all but attacks."""
        return [t for t in self.tasks if t.kind is not Kind.ATTACK]

    def task(
        self, kind: Kind, config: Mapping[str, Any], parents: tuple[tuple[str, TaskId], ...], label: str, **names: str
    ) -> Task:
        """A task on the world's workload, seed 0."""
        config = {"workload": WORKLOAD, **config}
        return Task(kind, config, 0, parents, "f" * 64, "c" * 64, label=label, workload="digits_mlp", **names)

    def attack(self, epochs: int) -> Task:
        """Fine-tuning for some epochs."""
        config = {"scheme": {"name": "toy", "lambda1": 0.1}, "attack": {"name": "finetune", "epochs": epochs}}
        return self.task(
            Kind.ATTACK,
            config | {"adversary": ADVERSARY},
            (("victim", self.embed.id),),
            f"attack/toy/finetune/epochs={epochs}/seed0",
            scheme="toy",
            attack="finetune",
        )

    def verify(
        self, suspect: Task, what: str, attack: str = "none", *, control: str | None = None, head: str = "deployed"
    ) -> Task:
        """A verification with the owner's key."""
        config = {"scheme": SCHEME, "control": control, "head": head, "claim": False}
        parents = (("suspect", suspect.id), ("owner", self.embed.id))
        return self.task(Kind.VERIFY, config, parents, f"verify/toy/{what}/seed0", scheme="toy", attack=attack)

    def plan(self, tasks: Iterable[Task] | None = None) -> Plan:
        """Some of the tasks (all by default) with the cells that they answer."""
        chosen = list(self.tasks if tasks is None else tasks)
        plan = Plan(chosen)
        plan.cells += [self._cell(t) for t in chosen if t.kind is Kind.VERIFY]
        return plan

    def _cell(self, verify: Task) -> Cell:
        epochs = next((e for e, a in self.attacks.items() if a.id == verify.parent("suspect")), None)
        return Cell(
            verify=verify.id,
            embed=self.embed.id,
            suspect=verify.parent("suspect"),
            clean=self.twin.id,
            workload="digits_mlp",
            metric="accuracy",
            scheme="toy",
            scheme_params={},
            attack=verify.attack,
            attack_params={},
            seed=0,
            strength_name=None if epochs is None else "epochs",
            strength=None if epochs is None else float(epochs),
            control=verify.config["control"],
        )

    def start(self, run: str, plan: Plan | None = None, cached: Collection[Task] = (), save: bool = True) -> None:
        """Open an execution, its plan saved beside the report to come."""
        plan, ids = plan or self.plan(), {t.id for t in cached}
        self.journal.start_run(run, EXPERIMENT, SPEC, INFO, plan, ids)
        if save:
            save_plan(plan, self.store.report_dir(EXPERIMENT, run), ids)

    def finish(self, run: str, *tasks: Task) -> None:
        """Settle tasks as done, with artifacts and results."""
        for task in tasks:
            result = self.result(task)
            files: dict[str, bytes] = {}
            if task.kind is not Kind.VERIFY:
                curve = [{"step": s, "loss": 1.0 / s, "accuracy": 0.1 * s} for s in (1, 2, 3)]
                weights = {"w": torch.arange(4, dtype=torch.float32) + len(task.label)}
                files = {"model.safetensors": tensors_to_bytes(weights), "history.json": json.dumps(curve).encode()}
            if not self.store.has(task.id):
                self.store.commit(task.id, task.identity(), result, files)
            record = Record(task.id, State.DONE, result=result, seconds=2.5, attempt=1, worker="cpu-0")
            self.journal.record(run, task, record)
        self.journal.flush()

    def fail(self, run: str, task: Task, *skipped: Task) -> None:
        """Settle a task as failed, others as skipped because of it."""
        error = "diverged: loss is not finite"
        self.journal.record(
            run, task, Record(task.id, State.FAILED, error=error, seconds=1.0, attempt=1, worker="cpu-0")
        )
        for lost in skipped:
            self.journal.record(run, lost, Record(lost.id, State.SKIPPED, error=f"skipped: {task.label} failed"))
        self.journal.flush()

    def result(self, task: Task) -> dict[str, Any]:
        """What the task would return."""
        common = {"seconds": 2.0, "device": "cpu"}
        if task.kind is Kind.VERIFY:
            found = task.id not in (self.control.id, self.cells[5].id)
            verdict = Verdict.binomial(95 if found else 12, 100, 0.1, access="black", paper=found)
            return {"verdict": {**asdict(verdict), "caveats": list(verdict.caveats)}, **common}
        scores = {self.clean.id: 0.96, self.twin.id: 0.97, self.embed.id: 0.95}
        score = scores.get(task.id, 0.95 - 0.001 * len(task.label))
        out = {"metric": "accuracy", "metric_test": score, "metric_val": score - 0.01, **common}
        extra = {"commitment": "ab" * 32, "covertness_mean_abs_dev": 0.004}
        return out | (extra if task.kind is Kind.EMBED else {})

    def whole_run(self, run: str) -> None:
        """An execution in which everything is computed and done."""
        self.start(run)
        self.finish(run, *self.tasks)
        self.journal.finish_run(run, "done")
