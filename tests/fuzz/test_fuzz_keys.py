"""Keys, passphrases and roots: any file content gives a key or an error that names the fault."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.experiments.conftest import Finished
from tests.fuzz.mutations import DEPTH, VALUES, altered_bytes, altered_value, fenced
from wmarena.experiments.cli import main
from wmarena.experiments.commands.dispatch import INPUT_ERRORS
from wmarena.orchestrator.keys.derivation import KeyRoot
from wmarena.orchestrator.keys.encryption import Cost, Passphrase, SealError
from wmarena.orchestrator.keys.storage import is_sealed, load_key, save_key, seal_key
from wmarena.orchestrator.store.local import tensors_to_bytes
from wmarena.schemes.keys import Key, KeyFileError
from wmarena.schemes.params import Json

RIGHT = Passphrase(b"the right passphrase", Cost(log2_n=4, r=1, p=1))
PUBLIC: dict[str, Json] = {
    "config": {"bits": 24, "epochs": 1, "layer": None},
    "workload": {"name": "digits_mlp", "epochs": 1},
    "simulated": True,
}
KEY = Key("uchida", bytes(range(32)), PUBLIC).with_parts(secret={"projection": torch.ones(3, 4)})
PLAIN = ("key.json", "secret.safetensors")


def written(folder: Path, passphrase: Passphrase | None) -> tuple[str, str]:
    """A key on disk; returns the names of its two files."""
    save_key(KEY, folder, passphrase)
    return ("key.json", "secret.sealed") if passphrase else PLAIN


def sign(folder: Path, names: tuple[str, str]) -> None:
    """Matching checksums, as a deliberate forger would write them."""
    lines = [f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in sorted(names)]
    (folder / "SHA256SUMS").write_text("".join(lines))


def read(folder: Path) -> Key | None:
    """The key, if it is one."""
    try:
        with fenced(folder):
            key = load_key(folder, RIGHT)
    except (KeyFileError, SealError) as error:
        assert str(folder) in str(error) or "sealed" in str(error) or "scrypt" in str(error)
        return None
    assert key.verifies(key.commitment)
    return key


@given(data=st.data(), sealed=st.booleans())
def test_rotten_keys(data: st.DataObject, sealed: bool, tmp_path: Path) -> None:
    """Any mutation of the three files is refused, or gives the original key."""
    names = written(tmp_path, RIGHT if sealed else None)
    path = tmp_path / data.draw(st.sampled_from([*names, "SHA256SUMS"]))
    path.write_bytes(data.draw(altered_bytes(path.read_bytes())))
    key = read(tmp_path)

    assert key is None or key.commitment == KEY.commitment


@given(data=st.data(), sealed=st.booleans())
def test_forged_keys(data: st.DataObject, sealed: bool, tmp_path: Path) -> None:
    """Altered on purpose, sums and all: a key that is read opens the commitment that stands beside it."""
    names = written(tmp_path, RIGHT if sealed else None)
    path = tmp_path / data.draw(st.sampled_from(names))
    raw = path.read_bytes()
    other = altered_value(json.loads(raw)).map(lambda v: json.dumps(v).encode()) if path.suffix == ".json" else None
    path.write_bytes(data.draw(altered_bytes(raw) if other is None else altered_bytes(raw) | other))
    sign(tmp_path, names)
    read(tmp_path)


@given(data=st.data())
def test_keys_of_strangers(data: st.DataObject, finished_once: Finished, tmp_path: Path) -> None:
    """A real key whose public part a claimant has altered, commitment and sums to match: a verdict or a refusal."""
    owned = load_key(finished_once.key, None)
    scheme = data.draw(st.just(owned.scheme) | st.sampled_from([*VALUES, "uchida", "adi", "mtlsign"]))
    public = data.draw(altered_value(dict(owned.public)))
    try:
        contents = replace(owned, scheme=scheme, public=public).to_files()
    except (TypeError, ValueError, AttributeError):
        return  # no such file can be written
    (tmp_path / "key").mkdir(exist_ok=True)
    for name, raw in contents.items():
        (tmp_path / "key" / name).write_bytes(raw)
    with fenced(tmp_path):
        status = main(["verify", "--model", str(finished_once.marked), "--key", str(tmp_path / "key")])

    assert status in (0, 1, 2)


@given(raw=st.binary(max_size=80) | altered_bytes(b"a passphrase in eight words\n"))
def test_any_secret_files(raw: bytes, tmp_path: Path) -> None:
    """Any bytes are a passphrase and a root, or too short for one; what is in them is not said."""
    path = tmp_path / "secret"
    path.write_bytes(raw)
    with fenced(tmp_path):
        try:
            found = Passphrase.find(path)
            assert found is not None
            assert found.open(Passphrase(found.secret, RIGHT.cost).seal(b"x", b""), b"") == b"x"
        except SealError as error:
            assert "at least 8 bytes" in str(error)
        try:
            assert len(KeyRoot.from_file(path).commitment) == 64
        except ValueError as error:
            assert "at least 32 secret bytes" in str(error)


# What was found


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize(
    "public",
    [
        b"[" * 100_000,
        json.dumps({"format": 1, "scheme": "x", "public": {"deep": DEPTH}, "commitment": 3}).encode(),
        b'{"format": 1, "scheme": "x", "public": {}, "commitment": "\\ud800"}',
        b'{"format": 1, "scheme": "\\ud800", "public": {"a": 1e999}, "commitment": ""}',
    ],
    ids=["deep", "number", "surrogate", "infinite"],
)
def test_found_in_keys(public: bytes, sealed: bool, tmp_path: Path) -> None:
    """Public parts that ended readers with another error than ours."""
    names = written(tmp_path, RIGHT if sealed else None)
    (tmp_path / "key.json").write_bytes(public)
    sign(tmp_path, names)

    with pytest.raises(INPUT_ERRORS):
        load_key(tmp_path, RIGHT)
    with pytest.raises(INPUT_ERRORS):
        seal_key(tmp_path, RIGHT)
    assert is_sealed(tmp_path) == sealed


def test_a_seed_that_is_no_seed_is_refused(tmp_path: Path) -> None:
    """Bytes of another type in the seed's place do not open the commitment."""
    written(tmp_path, None)
    (tmp_path / "secret.safetensors").write_bytes(tensors_to_bytes({"seed": torch.ones(3, dtype=torch.bfloat16)}))
    sign(tmp_path, PLAIN)

    with pytest.raises(KeyFileError):
        load_key(tmp_path, None)
