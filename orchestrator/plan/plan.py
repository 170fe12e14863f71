"""The graph of tasks and the table cells that it computes. It may grow during a run."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from wmarena.orchestrator.plan.graph import reach
from wmarena.orchestrator.plan.identity import digest
from wmarena.orchestrator.plan.task import Kind, Task, TaskId


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A row of the results table before it has results; one per verify task.

    Attributes:
        verify, embed: the verify task and the embed task whose mark (or key) is judged.
        suspect: task that made the suspect (embed, attack, or a train task in controls).
        attack_task: the attack task, None for ``none`` and controls.
        clean: train task of the compute-matched clean twin (``metric_clean``).
        scratch: train task on the adversary's data alone, None where no removal is judged.
        scheme_params, attack_params: resolved configurations without the name.
        head: "deployed", or "original" when the owner's output layer is plugged back.
        claim: True if the adversary's own key is judged (ambiguity, piracy) instead of the owner's.
        control: None, "clean", "null_model" or "stranger_key"; "calibration" makes no row of the table.
        realigned: True if the suspect's channels are brought into the owner's order before it is judged.
        searched: True if the strength was chosen by a search, not listed.
        budget: the adversary's budget, with ``max_drop``.
    """

    verify: TaskId
    embed: TaskId
    suspect: TaskId
    clean: TaskId
    workload: str
    metric: str
    scheme: str
    scheme_params: dict[str, Any]
    attack: str
    attack_params: dict[str, Any]
    seed: int
    attack_task: TaskId | None = None
    scratch: TaskId | None = None
    strength_name: str | None = None
    strength: float | None = None
    control: str | None = None
    head: str = "deployed"
    claim: bool = False
    realigned: bool = False
    searched: bool = False
    budget: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """Return all fields as JSON values; mappings are not copied."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


class Plan:
    """Tasks by id, edges both ways, and cells. Adding the same task twice shares it."""

    def __init__(self, tasks: Iterable[Task] = (), cells: Iterable[Cell] = ()) -> None:
        self.tasks: dict[TaskId, Task] = {}
        self.cells: list[Cell] = []
        self.requested = 0
        self._children: dict[TaskId, list[TaskId]] = {}
        self.add(tasks, cells)

    def add(self, tasks: Iterable[Task], cells: Iterable[Cell] = ()) -> list[Task]:
        """Add tasks (parents first) and cells; return the new tasks.

        Raises:
            KeyError: a parent is not in the plan.
        """
        new: list[Task] = []
        for task in tasks:
            self.requested += 1
            if task.id in self.tasks:
                continue
            absent = next((b for b in task.waits_for if b not in self.tasks), None)
            if absent is not None:
                raise KeyError(f"expected parents to be planned first, got {task.label!r} before task {absent[:12]}")
            for before in task.waits_for:
                self._children.setdefault(before, []).append(task.id)
            self.tasks[task.id] = task
            new.append(task)
        self.cells.extend(cells)
        return new

    def children(self, task_id: TaskId) -> list[TaskId]:
        """Return the tasks that wait for ``task_id``, in planning order."""
        return self._children.get(task_id, [])

    def with_ancestors(self, ids: Iterable[TaskId]) -> list[Task]:
        """Return tasks with all tasks that they wait for, directly or indirectly, in planning order."""
        wanted = reach(ids, lambda i: self.tasks[i].waits_for)
        return [task for task in self if task.id in wanted]

    def with_consumers(self, task_id: TaskId) -> set[TaskId]:
        """Return a task and all tasks that consume it, directly or indirectly; ``after`` does not count."""
        return reach([task_id], lambda i: (c for c in self.children(i) if i in self.tasks[c].parent_ids))

    def counts(self) -> dict[str, int]:
        """Return the number of tasks by kind, in pipeline order."""
        found = Counter(t.kind for t in self.tasks.values())
        return {kind.value: found[kind] for kind in Kind if found[kind]}

    @property
    def shared(self) -> int:
        """Number of requested tasks saved by sharing."""
        return self.requested - len(self.tasks)

    @property
    def digest(self) -> str:
        """Hex digest of the set of tasks."""
        return digest("plan", sorted(self.tasks))

    def __len__(self) -> int:
        return len(self.tasks)

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks.values())
