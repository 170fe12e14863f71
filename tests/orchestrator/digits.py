"""A real worker context on scikit-learn's digits, with the tasks of one small experiment."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from wmarena.attacks.base import Attack
from wmarena.experiments.workloads import WORKLOADS
from wmarena.orchestrator.executors.inline import InlineExecutor
from wmarena.orchestrator.journal.journal import Journal
from wmarena.orchestrator.keys.derivation import KeyRoot
from wmarena.orchestrator.keys.storage import load_key, save_key
from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.plugins import build, build_attack, build_scheme, use_workloads
from wmarena.orchestrator.plan.task import Failure, Kind, Task, TaskId
from wmarena.orchestrator.running.runner import RunRequest, run_plan
from wmarena.orchestrator.store.checkpoints import Curves
from wmarena.orchestrator.store.local import Store
from wmarena.orchestrator.worker.attempt import attempt_task
from wmarena.orchestrator.worker.context import Setup, WorkerContext
from wmarena.orchestrator.worker.roles import TaskContext
from wmarena.schemes.base import Scheme
from wmarena.schemes.keys import Key

ADVERSARY = {"data_fraction": 0.2, "disjoint": False}
QUICK: dict[str, dict[str, Any]] = {
    "uchida": {"bits": 32, "epochs": 2},
    "adi": {"n_triggers": 20, "epochs": 2},
    "mtlsign": {"n": 40, "steps": 6, "tuning_steps": 2, "pool": 1, "mark_batch": 20, "check_every": 3, "hidden": 16},
}
"""Fields that make a scheme quick on digits."""


class Bench:
    """A store, a worker context on it, and the tasks: train -> embed -> attacks -> verify.

    Args:
        cancelled: what running tasks are told when they ask.
    """

    def __init__(
        self,
        root: Path,
        *,
        workload: str = "digits_mlp",
        root_file: Path | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        checkpoint_s: float = 3600.0,
    ) -> None:
        use_workloads(WORKLOADS)
        self.setup = Setup(
            store=root, device="cpu", root_file=root_file, workloads=WORKLOADS, checkpoint_s=checkpoint_s
        )
        self.store = Store(root).open()
        self.context = WorkerContext(self.setup, cancelled)
        self.root = KeyRoot.from_file(root_file)
        self.workload = build("workload", {"name": workload, "epochs": 2}).config()
        self.train = self.task(Kind.TRAIN, {"recipe": None, "adversary": None})
        self.embed = self.train

    def task(self, kind: Kind, config: dict[str, Any], *parents: tuple[str, Task], **rest: Any) -> Task:
        """A task on the workload, seed 0."""
        full = {"workload": self.workload, **config}
        roles = tuple((role, parent.id) for role, parent in parents)
        return Task(kind, full, 0, roles, "data", "code", label=f"{kind.value}-{len(parents)}", **rest)

    def defended(self, name: str) -> list[Task]:
        """train -> embed -> finetune -> verify, with a quick form of the scheme."""
        scheme = build_scheme({"name": name, **QUICK[name]})
        self.embed = self.task(
            Kind.EMBED, {"scheme": scheme.config(until="embed"), "root": self.root.commitment}, ("clean", self.train)
        )
        attack = self.attack_task(build_attack({"name": "finetune", "epochs": 1}))
        return [self.train, self.embed, attack, self.verify_task(scheme, attack)]

    def attack_task(self, attack: Attack, **rest: Any) -> Task:
        """``attack`` on the marked model."""
        config = {"scheme": self.embed.config["scheme"], "attack": attack.config(until="attack")}
        return self.task(
            Kind.ATTACK,
            config | {"adversary": ADVERSARY, "root": self.root.commitment},
            ("victim", self.embed),
            **rest,
        )

    def verify_task(
        self, scheme: Scheme, suspect: Task, *, control: str | None = None, claim: Task | None = None
    ) -> Task:
        """The owner's key on a suspect; with ``claim`` the adversary's."""
        config = {"scheme": scheme.config(), "control": control, "head": "deployed", "claim": claim is not None}
        owner = ("owner", self.embed) if claim is None else ("claim", claim)
        return self.task(Kind.VERIFY, config, ("suspect", suspect), owner)

    def run(self, tasks: Iterable[Task]) -> dict[TaskId, Record]:
        """Execute tasks in this process, with a journal."""
        with Journal(self.store.journal_path) as journal:
            request = RunRequest(f"run-{len(journal.runs())}", "digits", "")
            executor = InlineExecutor(self.setup)
            return run_plan(Plan(tasks), request, store=self.store, journal=journal, executor=executor)

    def attempt(self, task: Task) -> dict[str, Any] | Failure:
        """Attempt a task once in this worker context."""
        return attempt_task(self.context, task)

    def job(self, task: Task) -> TaskContext:
        """Return the task context that computes a task."""
        curves = Curves()
        return TaskContext(
            self.context, self.context.workload(self.workload), task, curves, self.context.checkpoints(task, curves)
        )

    def copied(self, folder: Path, **options: Any) -> "Bench":
        """Return a bench on a new store that has the clean and the marked model already."""
        other = Bench(folder / "store", **options)
        other.embed = self.embed
        for task in (self.train, self.embed):
            manifest = self.store.manifest(task.id)
            assert manifest is not None
            files = {name: self.store.read(task.id, name) for name in manifest["files"]}
            other.store.commit(task.id, task.identity(), manifest["result"], files)
        save_key(self.key(), other.store.key_dir(self.embed.id), None)
        return other

    def key(self) -> Key:
        """The owner's key."""
        return load_key(self.store.key_dir(self.embed.id), None)

    def result(self, task: Task) -> dict[str, Any]:
        """Return the stored result of a task."""
        manifest = self.store.manifest(task.id)
        assert manifest is not None
        found: dict[str, Any] = manifest["result"]
        return found

    def files(self, task: Task) -> dict[str, str]:
        """File name -> hash."""
        manifest = self.store.manifest(task.id)
        assert manifest is not None
        return {name: entry["sha256"] for name, entry in manifest["files"].items()}

    def journal_rows(self) -> int:
        """Return the number of finished tasks in the journal."""
        with Journal(self.store.journal_path) as journal:
            return len(journal.finished(self.store.task_ids()))
