"""All keys of a store: sealed at once, and opened by one passphrase before a run."""

from pathlib import Path

import pytest

from tests.orchestrator.keys.test_storage import PLAIN_FILES, RIGHT, SEALED_FILES, WRONG, hidden, names, some_key
from wmarena.orchestrator.files.errors import StoreBusy
from wmarena.orchestrator.keys.encryption import SealError
from wmarena.orchestrator.keys.storage import load_key, save_key, seal_key
from wmarena.orchestrator.plan.task import TaskId
from wmarena.orchestrator.store.keys import check_passphrase, seal_store, sealed_keys
from wmarena.orchestrator.store.local import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with three plain keys."""
    made = Store(tmp_path / "store").open()
    for number in range(3):
        save_key(some_key(number), made.key_dir(task_id(number)), None)
    return made


def task_id(number: int) -> TaskId:
    """The task whose key has that number."""
    return TaskId(f"{number:064x}")


def test_a_store_is_sealed(store: Store) -> None:
    """Every key, and nothing secret stays; a second time there is nothing to do."""
    first = seal_store(store, RIGHT)
    again = seal_store(store, RIGHT)

    assert (first.sealed, first.before) == ([task_id(n) for n in range(3)], [])
    assert (again.sealed, again.before) == ([], first.sealed)
    assert sealed_keys(store) == first.sealed
    for number in range(3):
        assert names(store.key_dir(task_id(number))) == SEALED_FILES
        assert hidden(store.root / "keys", some_key(number))
        assert load_key(store.key_dir(task_id(number)), RIGHT).commitment == some_key(number).commitment


def test_another_passphrase_changes_nothing(store: Store) -> None:
    """A store has one passphrase: sealing the rest with another is refused before the first file."""
    seal_key(store.key_dir(task_id(1)), RIGHT)
    with pytest.raises(SealError, match="got another for 1 key"):
        seal_store(store, WRONG)

    assert sealed_keys(store) == [task_id(1)]
    assert names(store.key_dir(task_id(0))) == PLAIN_FILES


def test_a_damaged_key_is_left_as_it_is(store: Store) -> None:
    """It is named, the others are sealed."""
    path = store.key_dir(task_id(1)) / "secret.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    before = path.read_bytes()
    found = seal_store(store, RIGHT)

    assert (found.sealed, list(found.damaged)) == ([task_id(0), task_id(2)], [task_id(1)])
    assert path.read_bytes() == before


def test_a_store_in_use_is_not_sealed(store: Store) -> None:
    """A run may be writing keys."""
    with store.exclusive(), pytest.raises(StoreBusy):
        seal_store(Store(store.root), RIGHT)

    assert sealed_keys(store) == []


# Before a run


def test_all_keys_that_cannot_be_opened_are_named_at_once(store: Store) -> None:
    """Missing or wrong: one message for all keys; plain ones need nothing."""
    check_passphrase(store, [task_id(0)], None)
    seal_store(store, RIGHT)
    check_passphrase(store, [task_id(0)], RIGHT)

    with pytest.raises(SealError, match="for 3 sealed keys"):
        check_passphrase(store, [], None)
    with pytest.raises(SealError, match="got another for 3 keys") as caught:
        check_passphrase(store, [task_id(n) for n in range(3)], WRONG)
    assert all(task_id(n)[:12] in str(caught.value) for n in range(3))


def test_one_store_has_one_passphrase(store: Store) -> None:
    """Also where a run reads none of the sealed keys: its own would be sealed with another."""
    seal_key(store.key_dir(task_id(2)), RIGHT)

    with pytest.raises(SealError, match="got another for 1 key"):
        check_passphrase(store, [], WRONG)


def test_damage_does_not_stop_a_run(store: Store) -> None:
    """A damaged sealed key is computed again: no passphrase could help."""
    seal_store(store, RIGHT)
    path = store.key_dir(task_id(0)) / "secret.sealed"
    path.write_bytes(path.read_bytes()[:-1])

    check_passphrase(store, [task_id(0)], RIGHT)
