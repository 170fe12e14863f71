"""Encryption of keys: a sealed file opens with its passphrase and identity only, and reveals nothing."""

import copy
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from wmarena.orchestrator.keys.encryption import (
    PASSPHRASE,
    Cost,
    Passphrase,
    SealError,
    without_passphrase,
    workers_passphrase,
)

CHEAP = Cost(log2_n=4, r=1, p=1)
SECRET = b"correct horse battery"
ONE = Passphrase(SECRET, CHEAP)
ANOTHER = Passphrase(b"incorrect horse battery", CHEAP)
RAW = b"a seed and some tensors"


@pytest.mark.parametrize("raw", [b"", b"x", RAW, bytes(100_000)], ids=len)
def test_what_was_sealed_comes_back(raw: bytes) -> None:
    """Any bytes, under any identity, byte for byte; also through the full cost."""
    assert ONE.open(ONE.seal(raw, b"identity"), b"identity") == raw
    assert replace(ONE, cost=Cost()).open(ONE.seal(raw, b""), b"") == raw


def test_the_full_cost_is_what_new_files_ask_for() -> None:
    """A passphrase that is found seals with scrypt N = 2^15, r = 8, p = 3: 32 MiB a guess."""
    sealed = Passphrase(SECRET).seal(RAW, b"")

    assert sealed[17:20] == bytes([15, 8, 3])
    assert ONE.open(sealed, b"") == RAW


def test_equal_secrets_give_unrelated_files() -> None:
    """Salt and nonce are fresh for every file; neither secret nor passphrase is in it."""
    files = [ONE.seal(RAW, b"identity") for _ in range(20)]

    assert len({f[20:36] for f in files}) == len({f[36:48] for f in files}) == len({f[48:] for f in files}) == 20
    assert all(RAW not in f and SECRET not in f for f in files)


def test_every_altered_bit_is_noticed() -> None:
    """Head and body alike: whichever bit of a sealed file is flipped, it is not opened."""
    sealed = ONE.seal(RAW, b"identity")
    for place in range(len(sealed)):
        for bit in range(8):
            wrong = bytearray(sealed)
            wrong[place] ^= 1 << bit
            if 17 <= place < 20 and max(wrong[17:20]) > 12:
                continue  # costs of minutes: see the bound below
            with pytest.raises(SealError):
                ONE.open(bytes(wrong), b"identity")


@pytest.mark.parametrize("length", [0, 1, 17, 47, 48, 63])
def test_a_cut_file_is_refused(length: int) -> None:
    """Wherever it was cut."""
    with pytest.raises(SealError):
        ONE.open(ONE.seal(RAW, b"")[:length], b"")


def test_another_passphrase_or_identity_is_refused() -> None:
    """A sealed file moved under another key's name does not open; the message tells the way out, not the secret."""
    sealed = ONE.seal(RAW, b"one")
    for opener, identity in ((ANOTHER, b"one"), (ONE, b"two"), (ONE, b"")):
        with pytest.raises(SealError, match="WMARENA_PASSPHRASE") as caught:
            opener.open(sealed, identity)
        assert SECRET.decode() not in str(caught.value)


@pytest.mark.parametrize(
    "cost", [(31, 8, 1), (20, 8, 1), (15, 255, 1), (10, 8, 255), (0, 8, 1), (10, 0, 1), (10, 8, 0)]
)
def test_a_forged_cost_is_refused(cost: tuple[int, int, int]) -> None:
    """A file cannot ask for gigabytes or hours: more than 256 MiB or 16 lanes is refused before any is spent."""
    sealed = bytearray(ONE.seal(RAW, b""))
    sealed[17:20] = bytes(cost)

    with pytest.raises(SealError, match="expected scrypt within 256 MiB"):
        ONE.open(bytes(sealed), b"")


def test_a_passphrase_stays_in_its_process() -> None:
    """It has no text and cannot be pickled, so that no task, actor or log holds it by accident."""
    assert SECRET.decode() not in repr(ONE) + str(ONE)
    with pytest.raises(TypeError, match="stay in its process"):
        pickle.dumps({"setup": [ONE]})
    with pytest.raises(TypeError):
        copy.copy(ONE)


# Where it comes from


def test_it_comes_from_the_environment_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is named counts before the environment; without both there is none."""
    path = tmp_path / "passphrase"
    path.write_bytes(b"from a file")
    monkeypatch.delenv(PASSPHRASE, raising=False)

    assert Passphrase.find() is None
    monkeypatch.setenv(PASSPHRASE, "from the environment")
    assert Passphrase.find() == Passphrase(b"from the environment")
    assert Passphrase.find(path) == Passphrase(b"from a file")


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_one_line_break_at_a_files_end_does_not_count(tmp_path: Path, end: bytes) -> None:
    """Editors add it, ``$(cat FILE)`` takes it away: all mean the same passphrase. Spaces count."""
    path = tmp_path / "passphrase"
    path.write_bytes(b" eight words " + end)

    assert Passphrase.find(path) == Passphrase(b" eight words ")


@pytest.mark.parametrize("content", [b"", b"\n", b"7 bytes\n", None])
def test_what_is_no_passphrase_is_refused(
    tmp_path: Path, content: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too short or unreadable; its content is not repeated."""
    path = tmp_path / "passphrase"
    if content is not None:
        path.write_bytes(content)
        monkeypatch.setenv(PASSPHRASE, os.fsdecode(content.strip()))
        with pytest.raises(SealError, match=f"at least 8 bytes in {PASSPHRASE}"):
            Passphrase.find()

    with pytest.raises(SealError, match=r"at least 8 bytes|chmod 600") as caught:
        Passphrase.find(path)
    assert "7 bytes" not in str(caught.value)


# Workers


def test_a_worker_proves_that_it_has_the_drivers_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it is sent opens with that passphrase only, and does not hold it; without one nothing is sealed."""
    challenge = ONE.challenge()
    assert SECRET not in challenge

    monkeypatch.setenv(PASSPHRASE, os.fsdecode(SECRET))
    found = workers_passphrase(None, challenge)
    assert found is not None
    assert found.secret == SECRET
    assert workers_passphrase(None, None) is None
    monkeypatch.setenv(PASSPHRASE, "another passphrase")
    with pytest.raises(SealError, match="every worker's process, got another"):
        workers_passphrase(None, challenge)
    monkeypatch.delenv(PASSPHRASE)
    with pytest.raises(SealError, match="every worker's process, got none"):
        workers_passphrase(None, challenge)


def test_processes_that_read_no_keys_do_not_get_it() -> None:
    """The recorder's and the browser's environment is the driver's without the passphrase."""
    assert without_passphrase({PASSPHRASE: "x", "PATH": "/bin"}) == {"PATH": "/bin"}
