"""Keys on disk, plain or sealed.

The folder of a plain key (0700, files 0600) holds what ``Key.to_files`` returns. A sealed one has ``secret.sealed`` in
place of ``secret.safetensors``: the same bytes, encrypted, bound to the key's scheme and commitment. ``SHA256SUMS``
names the valid one and is replaced last, so that a key is complete at every moment of being sealed.

Each file is replaced atomically, but a key is three files, and two seals of one secret differ. So writers exclude
each other by a lock, and a reader whose files do not match reads again under the lock. On a file system without locks
two writers may mix their files; the sums reveal it, and the key is computed again.
"""

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from wmarena.orchestrator.files.atomic import leftovers, sync_folder, write_private
from wmarena.orchestrator.files.locks import exclusive, shared
from wmarena.orchestrator.keys.encryption import Passphrase, SealError, missing_passphrase
from wmarena.schemes.keys import PUBLIC, SECRET, SUMS, Key, KeyFileError, checksums

T = TypeVar("T")

SEALED = "secret.sealed"
_LOCK = ".wmarena-keys.lock"
_WAY_OUT = "restore it from a backup, or re-embed with `wmarena run`"


def save_key(key: Key, folder: Path, passphrase: Passphrase | None) -> None:
    """Write a key's folder, sealed if there is a passphrase; then the plain secret is never on disk.

    Raises:
        OSError: it cannot be written.
    """
    files = key.to_files()
    if passphrase is not None:
        files = _sealed(files, passphrase, folder)
    _write(folder, files)


def load_key(folder: Path, passphrase: Passphrase | None) -> Key:
    """Read and check a key's folder, plain or sealed.

    Raises:
        KeyFileError: a file is missing, altered or invalid.
        SealError: it is sealed, and the passphrase is missing or wrong.
    """
    return _undisturbed(folder, lambda: _loaded(folder, passphrase))


def is_sealed(folder: Path) -> bool:
    """Return whether the key's sums name a sealed secret."""
    try:
        with (folder / SUMS).open("rb") as f:
            return _name_sealed(f.read(4096))
    except OSError:
        return False


def seal_key(folder: Path, passphrase: Passphrase) -> None:
    """Seal a plain key in place; remove leftover plain files of a sealed one.

    Raises:
        KeyFileError: the key is incomplete; nothing was changed.
        SealError: it is sealed with another passphrase.
    """
    with _turn(folder):
        _loaded(folder, passphrase)
        files = _read(folder)
        if SEALED in files:
            _remove_plain(folder)
        else:
            _replace(folder, _sealed(files, passphrase, folder))


def packed(folder: Path) -> tuple[str, bytes]:
    """Return a sealed key's commitment, and its files as one object for an atomic upload.

    Raises:
        KeyFileError: it is no complete sealed key.
    """
    files = _undisturbed(folder, lambda: _read(folder))
    commitment = _commitment(files)
    if commitment is None:
        raise KeyFileError(f"expected a sealed key, got {folder}; {_WAY_OUT}")
    return commitment, json.dumps({name: base64.b64encode(raw).decode() for name, raw in files.items()}).encode()


def unpack(raw: bytes, folder: Path) -> None:
    """Write the files that ``packed`` encoded; write nothing for other content, so that the key is missing.

    Raises:
        OSError: it cannot be written.
    """
    try:
        found = json.loads(raw)
        files = {name: base64.b64decode(found[name], validate=True) for name in (PUBLIC, SEALED, SUMS)}
    except (ValueError, TypeError, KeyError, RecursionError):
        return
    _write(folder, files)


def is_whole(folder: Path, commitment: str) -> bool:
    """Return whether the folder holds the complete, unaltered sealed key of ``commitment``."""
    try:
        return _commitment(_undisturbed(folder, lambda: _read(folder))) == commitment
    except KeyFileError:
        return False


# One writer at a time


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    with _turn(folder):
        _replace(folder, files)


def _replace(folder: Path, files: Mapping[str, bytes]) -> None:
    """Replace the files in order (the sums last), then remove the plain form of a sealed secret."""
    # Sums last: while a plain key is sealed they name the plain secret, which is still there.
    for name, raw in files.items():
        write_private(folder / name, raw)
    sync_folder(folder)
    if SEALED in files:
        _remove_plain(folder)


def _remove_plain(folder: Path) -> None:
    # Versions up to 0.1 wrote through a fixed temporary name.
    for path in (folder / SECRET, folder / f"{SECRET}.part", *leftovers(folder / SECRET)):
        path.unlink(missing_ok=True)


@contextmanager
def _turn(folder: Path, *, reading: bool = False) -> Iterator[None]:
    """Hold the lock of the key's folder if possible: another owner's folder may be read-only."""
    path = folder.parent / _LOCK
    with ExitStack() as stack:
        with suppress(OSError):
            stack.enter_context(shared(path) if reading else exclusive(path, 0o600))
        yield


def _undisturbed(folder: Path, read: Callable[[], T]) -> T:
    """Call ``read``; if the files do not match, once more under the lock."""
    try:
        return read()
    except KeyFileError:
        with _turn(folder, reading=True):
            return read()


# Files in memory


def _read(folder: Path) -> dict[str, bytes]:
    """Return the three files of a key, plain or sealed, the sums last; raise KeyFileError if they do not match."""
    name = SUMS
    try:
        sums = (folder / name).read_bytes()
        files = {}
        for name in (PUBLIC, SEALED if _name_sealed(sums) else SECRET):
            files[name] = (folder / name).read_bytes()
    except OSError as error:
        raise KeyFileError(
            f"expected a key folder with {PUBLIC}, {SECRET} (or {SEALED}) and {SUMS}, got {folder} where {name} cannot "
            f"be read ({error.strerror}); pass the folder that `wmarena store ls` names, or {_WAY_OUT}"
        ) from None
    if sums != checksums(files):
        raise KeyFileError(
            f"expected the files of {folder} as they were saved, got content that does not match {SUMS}: the key was "
            f"altered or damaged; {_WAY_OUT}"
        )
    return {**files, SUMS: sums}


def _loaded(folder: Path, passphrase: Passphrase | None) -> Key:
    files = _read(folder)
    if SEALED in files:
        files = _opened(files, passphrase, folder)
    try:
        return Key.from_files(files)
    except KeyFileError as error:
        raise KeyFileError(f"key {folder}: {error}; {_WAY_OUT}") from None


def _sealed(files: Mapping[str, bytes], passphrase: Passphrase, folder: Path) -> dict[str, bytes]:
    """Return the sealed files of a plain key."""
    secret = passphrase.seal(files[SECRET], _identity(files[PUBLIC], folder))
    return _with_sums({PUBLIC: files[PUBLIC], SEALED: secret})


def _opened(files: Mapping[str, bytes], passphrase: Passphrase | None, folder: Path) -> dict[str, bytes]:
    """Return the plain files of a sealed key."""
    if passphrase is None:
        raise missing_passphrase(f"the sealed key {folder}")
    identity = _identity(files[PUBLIC], folder)
    try:
        secret = passphrase.open(files[SEALED], identity)
    except SealError as error:
        raise SealError(f"key {folder}: {error}") from None
    return _with_sums({PUBLIC: files[PUBLIC], SECRET: secret})


def _with_sums(files: dict[str, bytes]) -> dict[str, bytes]:
    return {**files, SUMS: checksums(files)}


def _name_sealed(sums: bytes) -> bool:
    """Return whether the sums are those of a sealed key."""
    return any(line.endswith(f"  {SEALED}".encode()) for line in sums.splitlines())


def _commitment(files: Mapping[str, bytes]) -> str | None:
    """Return the commitment in a sealed key's public part, None for a plain or unreadable key."""
    try:
        found = json.loads(files[PUBLIC])["commitment"] if SEALED in files else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return found if isinstance(found, str) else None


def _identity(public: bytes, folder: Path) -> bytes:
    """Return the identity that a sealed secret is bound to: scheme and commitment."""
    try:
        found: Any = json.loads(public)
        return json.dumps([found["scheme"], found["commitment"]]).encode()
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise KeyFileError(
            f"expected scheme and commitment in {folder / PUBLIC}, got content that cannot be read "
            f"({type(error).__name__}); {_WAY_OUT}"
        ) from None
