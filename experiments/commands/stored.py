"""Finds models and keys in the store by the task that made them."""

import re
from pathlib import Path

from wmarena.experiments.commands.terminal import Terminal
from wmarena.experiments.spec.problems import SpecError
from wmarena.orchestrator.plan.task import TaskId
from wmarena.orchestrator.store.local import Store
from wmarena.orchestrator.store.manifest import CorruptArtifact
from wmarena.orchestrator.worker.context import MODEL

_TASK = re.compile(r"[0-9a-f]{12,64}")


def model_file(terminal: Terminal, given: str) -> Path:
    """Return the path given, or the checked weights of the task with this id or its first 12 digits.

    Raises:
        SpecError: the store has no such model, or a damaged one.
    """
    if not _names_task(given):
        return Path(given)
    store = terminal.open_store()
    try:
        return store.path(_task(store, given), MODEL)
    except CorruptArtifact as error:
        raise SpecError.of(f"expected weights of task {given}, got: {error}") from None


def key_folder(terminal: Terminal, given: str) -> Path:
    """Return the path given, or the key folder of the task with this id or its first 12 digits.

    Raises:
        SpecError: the store has no such task.
    """
    if not _names_task(given):
        return Path(given)
    store = terminal.open_store()
    task_id = _task(store, given)
    store.receive_keys([task_id])
    return store.key_dir(task_id)


def _names_task(given: str) -> bool:
    return _TASK.fullmatch(given) is not None and not Path(given).exists()


def _task(store: Store, given: str) -> TaskId:
    found = [task_id for task_id in store.task_ids() if task_id.startswith(given)]
    if len(found) != 1:
        raise SpecError.of(f"expected one task {given} in {store.address}, got {len(found)}; see `store ls`")
    return found[0]
