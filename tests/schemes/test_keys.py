"""A key is read from its files unchanged or refused, and its text shows no secret."""

import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256

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
def files() -> dict[str, bytes]:
    """The files of a key."""
    return some_key().to_files()


def signed_again(files: dict[str, bytes]) -> dict[str, bytes]:
    """An altered key with a SHA256SUMS that matches it, as a deliberate forger would write."""
    lines = [f"{sha256(files[name]).hexdigest()}  {name}\n" for name in FILES[:2]]
    return {**files, "SHA256SUMS": "".join(lines).encode()}


def test_key_comes_back(files: dict[str, bytes]) -> None:
    """Scheme, seed, public part and tensors, their types included; and so the commitment."""
    key, loaded = some_key(), Key.from_files(files)

    assert (loaded.scheme, loaded.seed, loaded.public) == (key.scheme, key.seed, key.public)
    assert {n: (t.dtype, t.tolist()) for n, t in loaded.secret.items()} == {
        n: (t.dtype, t.tolist()) for n, t in key.secret.items()
    }
    assert loaded.commitment == key.commitment


@pytest.mark.parametrize("name", FILES)
def test_one_altered_byte_is_refused(files: dict[str, bytes], name: str) -> None:
    """Whichever byte of whichever file is altered, the key is not read."""
    whole = files[name]
    places = {0, 1, len(whole) // 2, len(whole) - 2, len(whole) - 1, *range(3, len(whole), max(1, len(whole) // 60))}
    for place in sorted(places):
        for flip in (0x01, 0x20, 0x80):
            altered = whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :]
            with pytest.raises(KeyFileError):
                Key.from_files({**files, name: altered})

    assert Key.from_files(files).commitment == some_key().commitment


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "damage",
    [lambda raw: raw[:-1], lambda raw: raw + b"\n", lambda raw: b"", lambda raw: raw[: len(raw) // 2]],
    ids=["cut", "longer", "empty", "half"],
)
def test_damaged_files_are_refused(files: dict[str, bytes], name: str, damage: Callable[[bytes], bytes]) -> None:
    """Files that were cut short or grew are refused."""
    with pytest.raises(KeyFileError):
        Key.from_files({**files, name: damage(files[name])})


@pytest.mark.parametrize("name", FILES)
def test_missing_files_are_named(files: dict[str, bytes], name: str) -> None:
    """The message says which file is missing."""
    del files[name]

    with pytest.raises(KeyFileError, match=f"got no {name}"):
        Key.from_files(files)


def test_alteration_with_new_sums_is_refused(files: dict[str, bytes]) -> None:
    """Whoever alters the public part and the sums still fails to open the key's own commitment."""
    content = json.loads(files["key.json"])
    content["public"]["workload"] = "another"

    with pytest.raises(KeyFileError, match="opens its own commitment"):
        Key.from_files(signed_again({**files, "key.json": json.dumps(content).encode()}))


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
def test_signed_nonsense_is_refused(files: dict[str, bytes], name: str, content: bytes) -> None:
    """Files that are no key are a KeyFileError, whatever they hold, even with fitting sums."""
    with pytest.raises(KeyFileError):
        Key.from_files(signed_again({**files, name: content}))


def test_files_of_another_key_are_refused(files: dict[str, bytes]) -> None:
    """The secret of one key under the public part of another does not open its commitment."""
    other = replace(some_key(), seed=SEED[::-1]).to_files()

    with pytest.raises(KeyFileError):
        Key.from_files(signed_again({**files, "secret.safetensors": other["secret.safetensors"]}))


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


def test_published_file_holds_no_seed(files: dict[str, bytes]) -> None:
    """``key.json`` may be shown: commitment and public part, no seed, no opening."""
    raw = files["key.json"]
    opening = Prf(SEED).stream("opening", 32)

    assert all(secret not in raw and secret.hex().encode() not in raw for secret in (SEED, opening))
    assert set(json.loads(raw)) == {"format", "scheme", "public", "commitment"}
