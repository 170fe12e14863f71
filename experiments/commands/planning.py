"""``wmarena plan``: show what a spec would run."""

from argparse import Namespace
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

from rich.table import Table

from wmarena.experiments.commands.simulating import show, simulation
from wmarena.experiments.commands.terminal import Terminal
from wmarena.experiments.planning.expand import Expansion, expand
from wmarena.experiments.running.progress import duration
from wmarena.experiments.spec.experiment import ExperimentSpec
from wmarena.experiments.spec.problems import SpecError
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.plan_file import plan_document
from wmarena.orchestrator.plan.task import Kind, Task, TaskId
from wmarena.orchestrator.running.durations import expected_seconds
from wmarena.orchestrator.running.resume import already_done

_SHAPES = {Kind.TRAIN: ("[", "]"), Kind.EMBED: ("([", "])"), Kind.ATTACK: ("{{", "}}"), Kind.VERIFY: ("(", ")")}


def plan(terminal: Terminal, args: Namespace) -> int:
    """Print the plan as text, Mermaid or JSON; with ``--simulate`` also its schedule, as text or JSON."""
    if args.simulate and args.format == "mermaid":
        raise SpecError.of("expected --format text or json with --simulate, got mermaid; leave one of them out")
    spec = ExperimentSpec.load(args.spec, overrides=args.overrides, data_root=terminal.data_root)
    expansion = expand(spec, data_root=terminal.data_root)
    simulated = simulation(terminal, expansion, args.simulate) if args.simulate else None
    if simulated is not None and (terminal.json or args.format == "json"):
        terminal.document(simulated)
        return 0
    cached, seconds, measured = _known(terminal, expansion.plan)
    if terminal.json or args.format == "json":
        document = plan_document(expansion.plan, cached)
        terminal.document(
            {
                "tasks": document["tasks"],
                "counts": document["counts"],
                "cached": document["cached"],
                "rows": len(expansion.plan.cells),
                "shared": expansion.plan.shared,
                "left_out": list(expansion.left_out),
                "notes": list(spec.notes),
            }
        )
    elif args.format == "mermaid":
        terminal.text("\n".join(mermaid(expansion.plan, cached)))
    else:
        _show(terminal, spec, expansion, cached, seconds)
        if measured < len(expansion.plan) - len(cached):
            terminal.out.print("Seconds of tasks without measurements are rough guesses.", style="dim")
        if simulated is not None:
            show(terminal, simulated)
    return 0


def _known(terminal: Terminal, plan: Plan) -> tuple[set[TaskId], Callable[[Task], float], int]:
    """Return finished tasks, expected seconds of a task, and the number of open tasks with measured durations."""
    store = terminal.open_store()
    if store.shared:
        store.root.mkdir(parents=True, exist_ok=True)
    elif not terminal.has_journal(store):
        return set(), lambda task: task.cost, 0
    with terminal.journal(store) as journal:
        cached = set(already_done(plan, store, journal))
        durations = journal.durations()
    open_tasks = [task for task in plan if task.id not in cached]
    measured = sum((t.kind.value, t.workload, t.scheme, t.attack) in durations for t in open_tasks)
    return cached, expected_seconds(durations), measured


def _show(
    terminal: Terminal,
    spec: ExperimentSpec,
    expansion: Expansion,
    cached: set[TaskId],
    seconds: Callable[[Task], float],
) -> None:
    plan, out = expansion.plan, terminal.out
    out.print(f"[bold]{spec.name}[/bold]  {_question(spec)}: {len(plan.cells)} rows")
    for note in spec.notes:
        out.print(note, markup=False)
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for column in ("kind", "tasks", "in store", "to run", "expected"):
        table.add_column(column, justify="left" if column == "kind" else "right")
    known = Counter(plan.tasks[t].kind.value for t in cached)
    cost: dict[str, float] = defaultdict(float)
    for task in plan:
        cost[task.kind.value] += 0.0 if task.id in cached else seconds(task)
    for kind, n in plan.counts().items():
        left = duration(cost[kind]) if n > known[kind] else ""
        table.add_row(kind, str(n), str(known[kind]), str(n - known[kind]), left)
    total = sum(cost.values())
    table.add_section()
    table.add_row(
        "all", str(len(plan)), str(len(cached)), str(len(plan) - len(cached)), duration(total) if total else ""
    )
    out.print(table)
    out.print(f"Sharing saved {plan.shared} of {plan.requested} tasks; seconds are for one worker.")
    if len(expansion.searches):
        found = expansion.searches
        out.print(f"{len(found)} searches for the flip add up to {found.most_rows} attacks during the run.")
    if expansion.left_out:
        out.print("Left out, because it does not apply:")
        for line in expansion.left_out:
            out.print(f"  {line}", markup=False)


def _question(spec: ExperimentSpec) -> str:
    parts = ((len(spec.workloads), "workload"), (len(spec.schemes), "scheme"), (len(spec.attacks), "attack"))
    shown = [f"{n} {name}{'' if n == 1 else 's'}" for n, name in (*parts, (len(spec.seeds), "seed"))]
    return " × ".join(shown)


def mermaid(plan: Plan, cached: set[TaskId]) -> Iterator[str]:
    """Write the graph in Mermaid's language, for Markdown pages."""
    yield "graph LR"
    number = {task_id: f"t{i}" for i, task_id in enumerate(plan.tasks)}
    for task in plan:
        left, right = _SHAPES[task.kind]
        label = task.label.replace('"', "'")
        yield f'  {number[task.id]}{left}"{label}"{right}'
        for parent in task.parent_ids:
            yield f"  {number[parent]} --> {number[task.id]}"
    yield "  classDef cached fill:#d7e8d4,stroke:#6a9a62,color:#1c2b1a"
    done = [number[t] for t in plan.tasks if t in cached]
    if done:
        yield f"  class {','.join(done)} cached"
