"""Keys at rest: sealed, still readable when plain, whole at every moment of being sealed."""

import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

from wmarena.orchestrator.keyring import (
    check_passphrase,
    encoded,
    is_sealed,
    load_key,
    save_key,
    seal_key,
    seal_store,
    sealed_keys,
)
from wmarena.orchestrator.plan.task import TaskId
from wmarena.orchestrator.sealing import Cost, Passphrase, SealError
from wmarena.orchestrator.store.local import Store, StoreBusy
from wmarena.schemes.commitment import tensor_bytes
from wmarena.schemes.keys import Key, KeyFileError

CHEAP = Cost(log2_n=4, r=1, p=1)
RIGHT = Passphrase(b"the right passphrase", CHEAP)
WRONG = Passphrase(b"the wrong passphrase", CHEAP)
PLAIN_FILES = {"key.json", "secret.safetensors", "SHA256SUMS"}
SEALED_FILES = {"key.json", "secret.sealed", "SHA256SUMS"}


def some_key(number: int = 0) -> Key:
    """A key with secret tensors of several types."""
    secret = {
        "head": torch.linspace(-1, 1, 12).view(3, 4),
        "labels": torch.tensor([3, 1]),
        "half": torch.ones(9, dtype=torch.bfloat16),
    }
    return Key("toy", bytes(range(number, number + 32)), {"n": number, "workload": "digits_mlp"}).with_parts(
        secret=secret
    )


def names(folder: Path) -> set[str]:
    """What is in a folder."""
    return {p.name for p in folder.iterdir()}


def hidden(folder: Path, key: Key) -> bool:
    """True if no file holds the seed or a secret tensor."""
    raw = b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())
    return all(secret not in raw for secret in (key.seed, *(tensor_bytes(t) for t in key.secret.values())))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with three plain keys."""
    made = Store(tmp_path / "store").open()
    for number in range(3):
        some_key(number).save(made.key_dir(task_id(number)))
    return made


def task_id(number: int) -> TaskId:
    """The task whose key has that number."""
    return TaskId(f"{number:064x}")


def test_a_sealed_key_comes_back(tmp_path: Path) -> None:
    """Scheme, seed, public part and tensors; on disk nothing secret, folders 0700, files 0600."""
    folder = tmp_path / "keys" / "one"
    save_key(some_key(), folder, RIGHT)
    loaded = load_key(folder, RIGHT)

    assert loaded.commitment == some_key().commitment
    assert {n: t.dtype for n, t in loaded.secret.items()} == {n: t.dtype for n, t in some_key().secret.items()}
    assert names(folder) == SEALED_FILES
    assert hidden(folder, some_key())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()} == {0o600}


def test_plain_keys_are_those_of_key_save(tmp_path: Path) -> None:
    """Without a passphrase nothing changes, with one the same bytes are sealed: old stores stay readable."""
    save_key(some_key(), tmp_path / "one", None)
    some_key().save(tmp_path / "two")

    assert names(tmp_path / "one") == PLAIN_FILES
    for name, raw in encoded(some_key()).items():
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() == raw
    for passphrase in (None, RIGHT):
        assert load_key(tmp_path / "one", passphrase).commitment == some_key().commitment


def test_a_missing_or_wrong_passphrase_is_told(tmp_path: Path) -> None:
    """Neither is taken for damage, which would embed the mark again."""
    save_key(some_key(), tmp_path / "one", RIGHT)

    with pytest.raises(SealError, match="got none; set WMARENA_PASSPHRASE"):
        load_key(tmp_path / "one", None)
    with pytest.raises(SealError, match="expected the passphrase that sealed it, got another"):
        load_key(tmp_path / "one", WRONG)


@pytest.mark.parametrize("name", sorted(SEALED_FILES))
def test_an_altered_sealed_key_is_refused(tmp_path: Path, name: str) -> None:
    """One bit anywhere, a cut, or a missing file is damage, not a wrong passphrase."""
    save_key(some_key(), tmp_path / "one", RIGHT)
    path = tmp_path / "one" / name
    raw = path.read_bytes()
    for place in range(0, len(raw), max(1, len(raw) // 40)):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 4]) + raw[place + 1 :])
        with pytest.raises(KeyFileError):
            load_key(tmp_path / "one", RIGHT)
    path.write_bytes(raw[:-1])
    with pytest.raises(KeyFileError):
        load_key(tmp_path / "one", RIGHT)
    path.unlink()
    with pytest.raises(KeyFileError):
        load_key(tmp_path / "one", RIGHT)


def sign_again(folder: Path) -> None:
    """Make the sums fit, as somebody would who alters a key on purpose."""
    lines = [f"{sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in ("key.json", "secret.sealed")]
    (folder / "SHA256SUMS").write_text("".join(lines))


def test_a_secret_cannot_be_put_under_another_key(tmp_path: Path) -> None:
    """Sealed bytes are bound to scheme and commitment: under another public part they do not open."""
    for number in (0, 1):
        save_key(some_key(number), tmp_path / str(number), RIGHT)
    shutil.copy(tmp_path / "1" / "secret.sealed", tmp_path / "0")
    sign_again(tmp_path / "0")
    with pytest.raises(SealError, match="belongs to another key"):
        load_key(tmp_path / "0", RIGHT)

    text = (tmp_path / "1" / "key.json").read_text()
    save_key(some_key(1), tmp_path / "1", RIGHT)
    (tmp_path / "1" / "key.json").write_text(text.replace("digits_mlp", "digits_cnn"))
    sign_again(tmp_path / "1")
    with pytest.raises(KeyFileError, match="opens its own commitment"):
        load_key(tmp_path / "1", RIGHT)


def test_a_new_key_replaces_a_plain_one_by_a_sealed_one(tmp_path: Path) -> None:
    """The plain form does not stay beside it."""
    some_key().save(tmp_path / "one")
    save_key(some_key(1), tmp_path / "one", RIGHT)

    assert names(tmp_path / "one") == SEALED_FILES
    assert load_key(tmp_path / "one", RIGHT).commitment == some_key(1).commitment


# Sealing what is there


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


class Killed(BaseException):
    """The process ended here."""


def stop_after(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``n`` changes to the disk happen, and end before the next; every change passes one of these calls."""
    left = [n]

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return real(*args, **kwargs)

        return call

    for owner, name in ((Path, "replace"), (Path, "unlink"), (os, "open"), (os, "fsync")):
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))


def test_sealing_may_be_interrupted_anywhere(tmp_path: Path) -> None:
    """After any number of changes to the disk the key is whole; repeating ends with a sealed key and nothing plain."""
    for n in range(100):
        folder = tmp_path / str(n) / "key"
        some_key().save(folder)
        with pytest.MonkeyPatch.context() as patch:
            stop_after(n, patch)
            try:
                seal_key(folder, RIGHT)
                finished = True
            except Killed:
                finished = False

        assert load_key(folder, RIGHT).commitment == some_key().commitment
        seal_key(folder, RIGHT)
        assert load_key(folder, RIGHT).commitment == some_key().commitment
        assert is_sealed(folder)
        assert {name for name in names(folder) if not name.endswith(".part")} == SEALED_FILES
        assert hidden(folder, some_key())
        if finished:
            break
    assert n > 8
    assert names(folder) == SEALED_FILES


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


def test_the_order_of_fields_is_no_identity(tmp_path: Path) -> None:
    """A public part that was written with other spaces still belongs to its secret: it opens its commitment."""
    key = replace(some_key(), public={"b": 1, "a": 2})
    save_key(key, tmp_path / "one", RIGHT)
    text = (tmp_path / "one" / "key.json").read_text()
    (tmp_path / "one" / "key.json").write_text(text.replace("\n", " \n"))
    sign_again(tmp_path / "one")

    assert load_key(tmp_path / "one", RIGHT).commitment == key.commitment
