"""A key comes back as it was saved or not at all, and says nothing secret."""

import json
import shutil
import stat
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from torch import Tensor

from wmarena.schemes.keys import Key, KeyFileError
from wmarena.schemes.params import Json
from wmarena.schemes.prf import Prf

FILES = ("key.json", "secret.safetensors", "SHA256SUMS")
SEED = bytes(range(100, 132))


def some_key() -> Key:
    """A key with a public part and tensors of several types."""
    secret: dict[str, Tensor] = {
        "head.weight": torch.linspace(-1, 1, 12).view(3, 4),
        "images": torch.arange(24, dtype=torch.uint8).view(2, 3, 4),
        "labels": torch.tensor([3, 1]),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "seed": torch.zeros(1),
    }
    public: dict[str, Json] = {
        "config": {"name": "toy", "n": 2},
        "workload": "digits_cnn",
        "shape": [1, 2],
        "none": None,
    }
    return Key("toy", SEED, public).with_parts(secret=secret)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved key."""
    some_key().save(tmp_path / "key")
    return tmp_path / "key"


def sign_again(folder: Path) -> None:
    """Make SHA256SUMS fit the files, as somebody would who alters a key on purpose."""
    lines = [f"{sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in FILES[:2]]
    (folder / "SHA256SUMS").write_text("".join(lines))


def test_key_comes_back(folder: Path) -> None:
    """Scheme, seed, public part and tensors, their types included; and so the commitment."""
    key, loaded = some_key(), Key.load(folder)

    assert (loaded.scheme, loaded.seed, loaded.public) == (key.scheme, key.seed, key.public)
    assert {n: (t.dtype, t.tolist()) for n, t in loaded.secret.items()} == {
        n: (t.dtype, t.tolist()) for n, t in key.secret.items()
    }
    assert loaded.commitment == key.commitment


def test_files_are_private(folder: Path) -> None:
    """The directory is 0700, its files 0600, also when an existing key is replaced."""
    some_key().save(folder)

    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == dict.fromkeys(FILES, 0o600)


@pytest.mark.parametrize("name", FILES)
def test_one_altered_byte_is_refused(folder: Path, name: str) -> None:
    """Whichever byte of whichever file is altered, the key is not read."""
    path = folder / name
    whole = path.read_bytes()
    places = {0, 1, len(whole) // 2, len(whole) - 2, len(whole) - 1, *range(3, len(whole), max(1, len(whole) // 60))}
    for place in sorted(places):
        for flip in (0x01, 0x20, 0x80):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
            with pytest.raises(KeyFileError):
                Key.load(folder)
    path.write_bytes(whole)

    assert Key.load(folder).commitment == some_key().commitment


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "damage",
    [lambda raw: raw[:-1], lambda raw: raw + b"\n", lambda raw: b"", lambda raw: raw[: len(raw) // 2]],
    ids=["cut", "longer", "empty", "half"],
)
def test_damaged_files_are_refused(folder: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    """Files that were cut short or grew are refused."""
    (folder / name).write_bytes(damage((folder / name).read_bytes()))

    with pytest.raises(KeyFileError):
        Key.load(folder)


@pytest.mark.parametrize("name", FILES)
def test_missing_files_are_named(folder: Path, name: str) -> None:
    """The message says which file is missing and what to pass instead."""
    (folder / name).unlink()

    with pytest.raises(KeyFileError, match=rf"{name} cannot be read .*pass the folder"):
        Key.load(folder)


def test_alteration_with_new_sums_is_refused(folder: Path) -> None:
    """Whoever alters the public part and the sums still fails to open the key's own commitment."""
    content = json.loads((folder / "key.json").read_text())
    content["public"]["workload"] = "another"
    (folder / "key.json").write_text(json.dumps(content))
    sign_again(folder)

    with pytest.raises(KeyFileError, match="opens its own commitment"):
        Key.load(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("key.json", b"{}"),
        ("key.json", b"[]"),
        ("key.json", b"\xff"),
        ("key.json", b'{"scheme": 1, "public": 2, "format": 1, "commitment": null}'),
        ("secret.safetensors", b"no tensors"),
        ("secret.safetensors", b""),
    ],
)
def test_signed_nonsense_is_refused(folder: Path, name: str, content: bytes) -> None:
    """Files that are no key are a KeyFileError, whatever they hold, even with fitting sums."""
    (folder / name).write_bytes(content)
    sign_again(folder)

    with pytest.raises(KeyFileError):
        Key.load(folder)


def test_files_of_another_key_are_refused(folder: Path, tmp_path: Path) -> None:
    """The secret of one key under the public part of another does not open its commitment."""
    replace(some_key(), seed=SEED[::-1]).save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "secret.safetensors", folder)
    sign_again(folder)

    with pytest.raises(KeyFileError):
        Key.load(folder)


def test_commitment_covers_everything() -> None:
    """Scheme, seed, public part, each tensor's name and bytes: another one of them is another commitment."""
    key = some_key()
    others = [
        replace(key, scheme="other"),
        replace(key, seed=SEED[::-1]),
        key.with_parts(public={"workload": "digits_mlp"}),
        key.with_parts(secret={"labels": torch.tensor([3, 2])}),
        key.with_parts(secret={"labels": torch.tensor([3, 1], dtype=torch.int32)}),
        key.with_parts(secret={"more": torch.zeros(1)}),
        replace(key, secret={n: t for n, t in key.secret.items() if n != "half"}),
    ]

    assert key.verifies(key.commitment)
    assert not any(other.verifies(key.commitment) for other in others)
    assert len({other.commitment for other in others}) == len(others)


def test_commitment_hides_the_content() -> None:
    """Equal content under another seed has an unrelated commitment: it cannot be guessed from the public part."""
    bare = Key("toy", SEED, {"n": 1})

    assert bare.commitment != replace(bare, seed=SEED[::-1]).commitment
    assert bare.commitment == Key("toy", SEED, {"n": 1}).commitment


def test_completed_key_owns_its_tensors() -> None:
    """A head that is trained further does not change the key that it was put into."""
    head = torch.zeros(3, requires_grad=True)
    key = Key("toy", SEED).with_parts(secret={"head": head})
    before = key.commitment
    with torch.no_grad():
        head += 1

    assert key.commitment == before
    assert not key.secret["head"].requires_grad


def test_secrets_are_not_shown() -> None:
    """Text of a key shows neither seed nor tensors, nor does what ``key.json`` holds."""
    key = some_key()

    assert repr(SEED) not in repr(key)
    assert "tensor" not in repr(key)


def test_published_file_holds_no_seed(folder: Path) -> None:
    """``key.json`` may be shown: commitment and public part, no seed, no opening."""
    raw = (folder / "key.json").read_bytes()
    opening = Prf(SEED).stream("opening", 32)

    assert all(secret not in raw and secret.hex().encode() not in raw for secret in (SEED, opening))
    assert set(json.loads(raw)) == {"format", "scheme", "public", "commitment"}
