"""Keys on disk: sealed or plain, and complete at every moment of being sealed."""

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

from tests.orchestrator.files.writers import started
from wmarena.orchestrator.keys.encryption import Cost, Passphrase, SealError
from wmarena.orchestrator.keys.storage import is_sealed, load_key, save_key, seal_key
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
    """Return the names in a folder."""
    return {p.name for p in folder.iterdir()}


def hidden(folder: Path, key: Key) -> bool:
    """True if no file holds the seed or a secret tensor."""
    raw = b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())
    return all(secret not in raw for secret in (key.seed, *(tensor_bytes(t) for t in key.secret.values())))


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


def test_a_plain_key_comes_back(tmp_path: Path) -> None:
    """Its files are those of ``Key.to_files``, private also when they are replaced; a passphrase does not disturb."""
    for _ in range(2):
        save_key(some_key(), tmp_path / "one", None)

        assert {p.name: p.read_bytes() for p in (tmp_path / "one").iterdir()} == some_key().to_files()
        assert stat.S_IMODE((tmp_path / "one").stat().st_mode) == 0o700
        assert {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "one").iterdir()} == {0o600}
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
    """Recompute the sums, as a deliberate forger would."""
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
    save_key(some_key(), tmp_path / "one", None)
    save_key(some_key(1), tmp_path / "one", RIGHT)

    assert names(tmp_path / "one") == SEALED_FILES
    assert load_key(tmp_path / "one", RIGHT).commitment == some_key(1).commitment


WRITER = """
import os, sys
from pathlib import Path
from wmarena.orchestrator.keys.storage import save_key
from tests.orchestrator.keys.test_storage import RIGHT, some_key
os.fsync = lambda handle: None  # durability takes most of the time, and is not what is tested
keys, own = Path(sys.argv[1]), some_key(int(sys.argv[2]))
for _ in range(300):
    save_key(some_key(), keys / "plain", None)
    save_key(some_key(), keys / "sealed", RIGHT)
    save_key(own, keys / "either", RIGHT)
"""


def test_two_processes_save_into_one_folder(tmp_path: Path) -> None:
    """One key, plain and sealed, and two different ones: no save of 1,800 fails, and every read finds a whole key."""
    expected = {
        "plain": {some_key().commitment},
        "sealed": {some_key().commitment},
        "either": {some_key(n).commitment for n in (0, 1)},
    }
    for name in expected:
        save_key(some_key(), tmp_path / name, None if name == "plain" else RIGHT)
    with started(WRITER, [str(tmp_path), "0"], [str(tmp_path), "1"]) as running:
        while running():
            for name, commitments in expected.items():
                assert load_key(tmp_path / name, RIGHT).commitment in commitments

    for name, commitments in expected.items():
        assert load_key(tmp_path / name, RIGHT).commitment in commitments
        assert names(tmp_path / name) == (PLAIN_FILES if name == "plain" else SEALED_FILES)


def test_a_key_is_read_from_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    """A reader makes no lock, and a damaged key is damaged where nobody has ever held one."""
    some = tmp_path / "keys" / "one"
    some.mkdir(parents=True)
    for name, raw in some_key().to_files().items():
        (some / name).write_bytes(raw)

    assert load_key(some, None).commitment == some_key().commitment
    (some / "key.json").write_bytes(b"{}")
    with pytest.raises(KeyFileError, match="altered or damaged"):
        load_key(some, None)
    assert names(tmp_path / "keys") == {"one"}


# Sealing what is there


class Killed(BaseException):
    """Raised where the process is killed."""


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
        save_key(some_key(), folder, None)
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


def test_the_order_of_fields_is_no_identity(tmp_path: Path) -> None:
    """A public part that was written with other spaces still belongs to its secret: it opens its commitment."""
    key = replace(some_key(), public={"b": 1, "a": 2})
    save_key(key, tmp_path / "one", RIGHT)
    text = (tmp_path / "one" / "key.json").read_text()
    (tmp_path / "one" / "key.json").write_text(text.replace("\n", " \n"))
    sign_again(tmp_path / "one")

    assert load_key(tmp_path / "one", RIGHT).commitment == key.commitment
