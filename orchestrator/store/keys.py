"""The keys of a store: which are sealed, whether the passphrase opens them, sealing plain ones."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from wmarena.orchestrator.keys.encryption import PASSPHRASE, Passphrase, SealError, missing_passphrase
from wmarena.orchestrator.keys.storage import is_sealed, load_key, seal_key
from wmarena.orchestrator.plan.task import TaskId
from wmarena.orchestrator.store.local import Store, subfolders
from wmarena.schemes.keys import KeyFileError

_MOST_NAMED = 5


def sealed_keys(store: Store) -> list[TaskId]:
    """Return the tasks of ``store`` whose keys are sealed, sorted."""
    return [TaskId(folder.name) for folder in _folders(store) if is_sealed(folder)]


def check_passphrase(store: Store, tasks: Iterable[TaskId], passphrase: Passphrase | None) -> None:
    """Check that the passphrase opens the keys of a run.

    Args:
        tasks: tasks whose keys may be read; all their sealed keys are opened, and at least one of the store's, because
            a store has one passphrase: a missing or other one would mix plain and sealed keys.

    Raises:
        SealError: naming every key that cannot be opened.
    """
    tasks = list(tasks)
    store.check_passphrase(passphrase)
    store.receive_keys(tasks)
    sealed = sealed_keys(store)
    if sealed and passphrase is None:
        raise missing_passphrase(_named(sealed, "sealed key"))
    wanted = {*sealed[:1], *tasks}
    locked = [task_id for task_id in sealed if task_id in wanted and not _opens(store, task_id, passphrase)]
    if locked:
        raise SealError(
            f"expected the passphrase that sealed them, got another for {_named(locked, 'key')} of {store.root}; "
            f"set {PASSPHRASE} or `keys: {{passphrase: FILE}}` to the right one"
        )


@dataclass
class Sealing:
    """Result of sealing a store's keys: task ids sealed now, sealed before, and damaged."""

    sealed: list[TaskId] = field(default_factory=list)
    before: list[TaskId] = field(default_factory=list)
    damaged: dict[TaskId, str] = field(default_factory=dict)


def seal_store(store: Store, passphrase: Passphrase) -> Sealing:
    """Seal every plain key of ``store``, and finish what a killed earlier attempt has left.

    Raises:
        StoreBusy: a run holds the store's lock.
        SealError: sealed keys have another passphrase; nothing was changed.
    """
    done = Sealing()
    with store.exclusive():
        check_passphrase(store, sealed_keys(store), passphrase)
        for folder in _folders(store):
            task_id = TaskId(folder.name)
            group = done.before if is_sealed(folder) else done.sealed
            try:
                seal_key(folder, passphrase)
                group.append(task_id)
            except KeyFileError as error:
                done.damaged[task_id] = str(error)
    return done


def _opens(store: Store, task_id: TaskId, passphrase: Passphrase | None) -> bool:
    """Return False if the passphrase is wrong; True for a damaged key, which will be computed again."""
    try:
        load_key(store.key_dir(task_id), passphrase)
    except (SealError, KeyFileError) as error:
        return isinstance(error, KeyFileError)
    return True


def _named(tasks: list[TaskId], what: str) -> str:
    shown = ", ".join(task_id[:12] for task_id in tasks[:_MOST_NAMED])
    more = f" and {len(tasks) - _MOST_NAMED} more" if len(tasks) > _MOST_NAMED else ""
    return f"{len(tasks)} {what}{'' if len(tasks) == 1 else 's'} ({shown}{more})"


def _folders(store: Store) -> list[Path]:
    return [folder for folder in subfolders(store.keys_root) if not folder.is_symlink()]
