"""``wmarena store``: list artifacts, check their hashes, remove what nothing reaches."""

from argparse import Namespace
from typing import Any

from rich.table import Table

from experiments.commands.terminal import Terminal
from experiments.expand import expand
from experiments.problems import Problem, SpecError
from experiments.spec import ExperimentSpec
from orchestrator.journal import Journal
from orchestrator.store import Store
from orchestrator.task import TaskId

_UNITS = ("B", "KiB", "MiB", "GiB")


def store(terminal: Terminal, args: Namespace) -> int:
    """ls: 0; verify: 1 if anything is damaged; gc: counts, or removes with --apply."""
    home = Store(terminal.store)
    if not (home.root / "artifacts").is_dir():
        raise SpecError([Problem(f"expected a store, got {home.root} where none is; pass --store DIR")])
    if args.action == "gc":
        return _gc(terminal, home, args)
    if args.specs or args.apply:
        raise SpecError([Problem(f"expected no SPEC and no --apply with `store {args.action}`; both belong to gc")])
    return _ls(terminal, home) if args.action == "ls" else _verify(terminal, home)


def _ls(terminal: Terminal, home: Store) -> int:
    rows = home.ls()
    if terminal.json:
        terminal.document(rows)
        return 0
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for column in ("task", "kind", "workload", "scheme", "attack", "seed"):
        table.add_column(column)
    table.add_column("size", justify="right")
    for row in rows:
        names = [row.get(c) for c in ("kind", "workload", "scheme", "attack", "seed")]
        shown = ["" if name is None else str(name) for name in names]
        if "damaged" in row:
            shown[0] = "damaged"
        table.add_row(row["task_id"][:12], *shown, size(row["bytes"]))
    terminal.out.print(table)
    terminal.text(f"{len(rows)} artifacts, {size(sum(row['bytes'] for row in rows))}, in {home.root}")
    return 0


def _verify(terminal: Terminal, home: Store) -> int:
    found = home.verify()
    if terminal.json:
        terminal.document(found)
    else:
        terminal.text(f"{found['checked']} artifacts with {found['files']} files checked")
        terminal.text(f"{len(found['damaged'])} damaged, {found['unfinished']} unfinished")
        for damage in found["damaged"]:
            terminal.text(f"  {damage['task_id'][:12]}  {damage['detail']}")
    return 1 if found["damaged"] else 0


def _gc(terminal: Terminal, home: Store, args: Namespace) -> int:
    keep = _reached(terminal, args.specs) if args.specs else _newest(home)
    found = home.gc(keep, apply=args.apply)
    if terminal.json:
        terminal.document(found)
        return 0
    verb = "removed" if args.apply else "would remove"
    terminal.text(f"{verb} {found['removed']} folders ({size(found['bytes'])}); kept {found['kept']} artifacts")
    if not args.apply and found["removed"]:
        terminal.text("nothing was changed; pass --apply to remove them")
    return 0


def _reached(terminal: Terminal, specs: list[str]) -> set[TaskId]:
    """Everything that the plans of ``specs`` hold."""
    loaded = [ExperimentSpec.load(spec, data_root=terminal.data_root) for spec in specs]
    return {task.id for spec in loaded for task in expand(spec, data_root=terminal.data_root).plan}


def _newest(home: Store) -> set[TaskId]:
    """Everything that the newest execution of each experiment holds."""
    if not home.journal_path.is_file():
        raise SpecError([Problem(f"expected a journal in {home.root}, got none; name the specs whose results to keep")])
    newest: dict[str, dict[str, Any]] = {}
    with Journal(home.journal_path) as journal:
        for run in journal.runs():
            newest.setdefault(run["experiment"], run)
        return {task_id for run in newest.values() for _, task_id, _, _ in journal.run_tasks(run["id"])}


def size(n_bytes: float) -> str:
    """``3.4 MiB``."""
    for unit in _UNITS[:-1]:
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} {_UNITS[-1]}"
