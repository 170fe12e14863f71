"""``wmarena plan --simulate``: schedule the plan on N workers in virtual time, with the real loop."""

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
    """Durations of tasks from a store's journal.

    Attributes:
        own: of tasks that are done.
        medians: of each class of tasks.
        done: records of the plan's finished tasks.
    """

    own: Mapping[TaskId, float]
    medians: Mapping[TaskClass, float]
    done: Mapping[TaskId, Record]

    @classmethod
    def of(cls, terminal: Terminal, plan: Plan) -> "Durations":
        """Read the store's journal; nothing without one."""
        store = terminal.open_store()
        if not terminal.has_journal(store):
            return cls({}, {}, {})
        with terminal.journal(store) as journal:
            return cls(journal.seconds(plan.tasks), journal.durations(), already_done(plan, store, journal))

    def actual(self, task: Task) -> float:
        """Return the task's measured seconds, else its expected ones."""
        own = self.own.get(task.id)
        return expected_seconds(self.medians)(task) if own is None else own

    def source(self, task: Task) -> str:
        """Name the source of ``actual``."""
        return "recorded" if task.id in self.own else "median" if task_class(task) in self.medians else "guessed"


def simulation(terminal: Terminal, expansion: Expansion, asked: Mapping[str, str]) -> dict[str, Any]:
    """Simulate the schedule; return it as JSON values, with the sources of its durations."""
    plan, store = expansion.plan, terminal.open_store()
    known = Durations.of(terminal, plan)
    finished = known.done if asked["tasks"] == "missing" else {}
    sources = Counter[str]()

    def count(event: Event) -> None:
        if event.kind == "started":
            sources[known.source(event.task)] += 1

    found = simulate(
        plan,
        int(asked["workers"]),
        store=store,
        expected=expected_seconds(known.medians),
        actual=known.actual,
        finished=finished,
        listeners=[count],
    )
    return {
        **found.document(),
        "simulated": asked["tasks"],
        "durations": {source: sources[source] for source in ("recorded", "median", "guessed")},
        "searches_not_simulated": len(expansion.searches),
    }


def show(terminal: Terminal, found: Mapping[str, Any]) -> None:
    """Print the schedule for people."""
    out = terminal.out
    what = "tasks missing in the store" if found["simulated"] == "missing" else "the whole plan"
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
    parts = {"recorded": "recorded for the task", "median": "medians of their class", "guessed": "rough guesses"}
    known = ", ".join(f"{n} {parts[source]}" for source, n in found["durations"].items() if n)
    out.print(f"Seconds: {known}.", style="dim")
    if found["searches_not_simulated"]:
        out.print("Attacks that searches add during the run are not simulated.", style="dim")
