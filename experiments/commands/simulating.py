"""``wmarena plan --simulate``: how long the plan would take on N workers, by the loop that would run it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from wmarena.experiments.commands.terminal import Terminal
from wmarena.experiments.planning.expand import Expansion
from wmarena.experiments.running.progress import duration
from wmarena.orchestrator.plan.events import Event
from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.task import Task, TaskClass, TaskId, task_class
from wmarena.orchestrator.running.durations import expected_seconds
from wmarena.orchestrator.running.resume import already_done
from wmarena.orchestrator.running.simulate import simulate


@dataclass(frozen=True)
class Durations:
    """How long tasks take, as far as a store knows.

    Attributes:
        own: of tasks that are done.
        sorts: medians of tasks of one sort.
        done: records of the plan's finished tasks.
    """

    own: Mapping[TaskId, float]
    sorts: Mapping[TaskClass, float]
    done: Mapping[TaskId, Record]

    @classmethod
    def of(cls, terminal: Terminal, plan: Plan) -> "Durations":
        """What the store's journal has; nothing where there is none."""
        store = terminal.home()
        if not terminal.has_journal(store):
            return cls({}, {}, {})
        with terminal.journal(store) as journal:
            return cls(journal.seconds(plan.tasks), journal.durations(), already_done(plan, store, journal))

    def actual(self, task: Task) -> float:
        """What the task took, else what a run would expect of it."""
        own = self.own.get(task.id)
        return expected_seconds(self.sorts)(task) if own is None else own

    def source(self, task: Task) -> str:
        """Where ``actual`` is from."""
        return "recorded" if task.id in self.own else "median" if task_class(task) in self.sorts else "guessed"


class StartedTasks:
    """Notes what ran."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []

    def __call__(self, event: Event) -> None:
        if event.kind == "started":
            self.tasks.append(event.task)


def simulation(terminal: Terminal, expansion: Expansion, asked: Mapping[str, str]) -> dict[str, Any]:
    """The schedule as JSON values, with what is known of its durations and what is not simulated."""
    plan, store = expansion.plan, terminal.home()
    known = Durations.of(terminal, plan)
    finished = known.done if asked["tasks"] == "missing" else {}
    begun = StartedTasks()
    found = simulate(
        plan,
        int(asked["workers"]),
        store=store,
        expected=expected_seconds(known.sorts),
        actual=known.actual,
        finished=finished,
        listeners=[begun],
    )
    sources = Counter(map(known.source, begun.tasks))
    return {
        **found.document(),
        "simulated": asked["tasks"],
        "durations": {source: sources[source] for source in ("recorded", "median", "guessed")},
        "searches_not_simulated": len(expansion.searches),
    }


def show(terminal: Terminal, found: Mapping[str, Any]) -> None:
    """The same for people."""
    out = terminal.out
    what = "what is not in the store" if found["simulated"] == "missing" else "the whole plan"
    out.print(
        f"\nSimulated on {found['workers']} workers: {what}, {found['tasks']} tasks, by the loop that would run it."
    )
    table = Table(box=None, padding=(0, 2), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, key in (
        ("makespan", "makespan_s"),
        ("total work", "total_work_s"),
        ("critical path", "critical_path_s"),
        ("lower bound", "lower_bound_s"),
        ("what the graph allows", "graph_bound_s"),
    ):
        table.add_row(name, duration(found[key]))
    table.add_row("makespan / lower bound", f"{found['makespan_over_lower_bound']:.3f}")
    table.add_row("utilisation", f"{100 * found['utilisation']:.1f} %")
    out.print(table)
    parts = {"recorded": "recorded for the task", "median": "medians of their sort", "guessed": "rough guesses"}
    known = ", ".join(f"{n} {parts[source]}" for source, n in found["durations"].items() if n)
    out.print(f"Seconds: {known}.", style="dim")
    if found["searches_not_simulated"]:
        out.print("Searches are simulated at their planned size: what they add on the way is not in it.", style="dim")
