"""``wmarena store``: list artifacts, check their hashes, seal keys, remove unreachable ones."""

from argparse import Namespace
from dataclasses import asdict
from typing import Any

from rich.table import Table

from wmarena.experiments.commands.terminal import Terminal
from wmarena.experiments.planning.expand import expand
from wmarena.experiments.spec.experiment import ExperimentSpec
from wmarena.experiments.spec.problems import SpecError
from wmarena.orchestrator.keys.encryption import PASSPHRASE, Passphrase, SealError
from wmarena.orchestrator.plan.task import Task, TaskId
from wmarena.orchestrator.store.keys import seal_store, sealed_keys
from wmarena.orchestrator.store.local import Store
from wmarena.orchestrator.worker.context import trajectory_id

_UNITS = ("B", "KiB", "MiB", "GiB")


def _opened(terminal: Terminal) -> Store:
    store = terminal.open_store()
    if not store.shared and not (store.root / "artifacts").is_dir():
        raise SpecError.of(f"expected a store, got {store.root}, which is none; pass --store DIR")
    return store


def ls(terminal: Terminal, args: Namespace) -> int:
    """List every artifact."""
    store = _opened(terminal)
    sealed = set(sealed_keys(store))
    rows = [{**row, "sealed": row["task_id"] in sealed} for row in store.ls()]
    if terminal.json:
        terminal.document(rows)
        return 0
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for column in ("task", "kind", "workload", "scheme", "attack", "seed"):
        table.add_column(column, no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    for row in rows:
        names = [row.get(c) for c in ("kind", "workload", "scheme", "attack", "seed")]
        shown = ["" if name is None else str(name) for name in names]
        if "damaged" in row:
            shown[0] = "damaged"
        table.add_row(row["task_id"][:12], *shown, size(row["bytes"]))
    terminal.out.print(table)
    terminal.text(f"{len(rows)} artifacts, {size(sum(row['bytes'] for row in rows))}, in {store.address}")
    return 0


def verify(terminal: Terminal, args: Namespace) -> int:
    """Check all hashes; 1 if a file is damaged."""
    found = _opened(terminal).verify()
    if terminal.json:
        terminal.document(found)
    else:
        terminal.text(f"{found['checked']} artifacts with {found['files']} files checked")
        terminal.text(f"{len(found['damaged'])} damaged, {found['unfinished']} unfinished")
        for damage in found["damaged"]:
            terminal.text(f"  {damage['task_id'][:12]}  {damage['detail']}")
    return 1 if found["damaged"] else 0


def encrypt(terminal: Terminal, args: Namespace) -> int:
    """Seal every plain key with the environment's passphrase; 1 if a key is damaged and was left unchanged."""
    store = _opened(terminal)
    passphrase = Passphrase.find()
    if passphrase is None:
        raise SealError(f"expected a passphrase to seal keys with, got none; set {PASSPHRASE} and repeat")
    found = seal_store(store, passphrase)
    if terminal.json:
        terminal.document(asdict(found))
    else:
        terminal.text(f"sealed {len(found.sealed)} keys; {len(found.before)} were sealed before")
        for task_id, detail in found.damaged.items():
            terminal.text(f"  {task_id[:12]}  {detail}")
    return 1 if found.damaged else 0


def gc(terminal: Terminal, args: Namespace) -> int:
    """Count unreachable artifacts, or remove them with --apply."""
    store = _opened(terminal)
    if store.shared and args.apply and not args.keep:
        raise SpecError.of("expected --keep SPEC, got none: the runs of other drivers are not known here")
    if args.keep:
        tasks = _reached(terminal, args.keep)
        keep, trajectories = {task.id for task in tasks}, {trajectory_id(task) for task in tasks}
    else:
        keep, trajectories = _newest(terminal, store), set()
    found = store.gc(keep, apply=args.apply, trajectories=trajectories)
    if terminal.json:
        terminal.document(found)
        return 0
    verb = "removed" if args.apply else "would remove"
    terminal.text(f"{verb} {found['removed']} folders ({size(found['bytes'])}); kept {found['kept']} artifacts")
    if not args.apply and found["removed"]:
        terminal.text("nothing was changed; pass --apply to remove them")
    return 0


def _reached(terminal: Terminal, specs: list[str]) -> list[Task]:
    """Return all tasks of the plans of ``specs``."""
    loaded = [ExperimentSpec.load(spec, data_root=terminal.data_root) for spec in specs]
    return [task for spec in loaded for task in expand(spec, data_root=terminal.data_root).plan]


def _newest(terminal: Terminal, store: Store) -> set[TaskId]:
    """Return all tasks of the newest run of each experiment."""
    if not terminal.has_journal(store):
        raise SpecError.of(f"expected a journal in {store.root}, got none; say what to keep with --keep SPEC")
    newest: dict[str, dict[str, Any]] = {}
    with terminal.journal(store) as journal:
        for run in journal.runs():
            newest.setdefault(run["experiment"], run)
        return {task_id for run in newest.values() for _, task_id, _, _ in journal.run_tasks(run["id"])}


def size(n_bytes: float) -> str:
    """Format a number of bytes: ``3.4 MiB``."""
    for unit in _UNITS[:-1]:
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} {_UNITS[-1]}"
