"""Keys on disk, plain or sealed, and what is done to all keys of a store at once.

A plain key is what ``Key.save`` writes. A sealed one has ``secret.sealed`` in place of ``secret.safetensors``: the same
bytes, encrypted, bound to the key's scheme and commitment. ``SHA256SUMS`` says which of the two counts, and it is
replaced last, so that a key is whole at every moment of being sealed.
"""

import base64
import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save

from wmarena.orchestrator.plan.task import TaskId
from wmarena.orchestrator.sealing import PASSPHRASE, Passphrase, SealError
from wmarena.orchestrator.store.artifacts import sync_folder
from wmarena.orchestrator.store.local import Store
from wmarena.schemes.keys import KEY_FORMAT, Key, KeyFileError

PUBLIC, SECRET, SEALED, SUMS = "key.json", "secret.safetensors", "secret.sealed", "SHA256SUMS"
_MOST_NAMED = 5


def save_key(key: Key, folder: Path, passphrase: Passphrase | None) -> None:
    """Write a key's folder (0700, files 0600): sealed if there is a passphrase; the secret is never there plain.

    Raises:
        OSError: it cannot be written.
    """
    if passphrase is None:
        key.save(folder)
        return
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    contents = encoded(key)
    write_private(folder / PUBLIC, contents[PUBLIC])
    _seal(folder, contents, passphrase)


def load_key(folder: Path, passphrase: Passphrase | None) -> Key:
    """Read and check a key's folder, plain or sealed.

    Raises:
        KeyFileError: a file is missing, altered, or no key at all.
        SealError: it is sealed, and there is no passphrase or a wrong one.
    """
    if not is_sealed(folder):
        return _loaded(folder, folder)
    if passphrase is None:
        raise _no_passphrase(f"the sealed key {folder}")
    return _loaded(_Opened(folder, _unsealed(folder, passphrase)), folder)


def is_sealed(folder: Path) -> bool:
    """True if the key's sums speak of a sealed secret."""
    try:
        with (folder / SUMS).open("rb") as f:
            return any(line.endswith(f"  {SEALED}".encode()) for line in f.read(4096).splitlines())
    except OSError:
        return False


def packed(folder: Path) -> bytes:
    """A sealed key as one piece, which comes whole or not at all.

    Raises:
        OSError: a file cannot be read.
    """
    return json.dumps({name: base64.b64encode(raw).decode() for name, raw in _sealed_files(folder).items()}).encode()


def unpack(raw: bytes, folder: Path) -> None:
    """Write what ``packed`` made; something else is nothing: the key is missing then.

    Raises:
        OSError: it cannot be written.
    """
    try:
        found = json.loads(raw)
        files = {name: base64.b64decode(found[name], validate=True) for name in (PUBLIC, SEALED, SUMS)}
    except (ValueError, TypeError, KeyError, RecursionError):
        return
    for name, content in files.items():
        write_private(folder / name, content)


def is_whole(folder: Path, commitment: str) -> bool:
    """True if a sealed key is there with all its files as they were saved, and it is the one of ``commitment``."""
    try:
        files = _sealed_files(folder)
        return _match(files) and json.loads(files[PUBLIC])["commitment"] == commitment
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False


def sealed_keys(store: Store) -> list[TaskId]:
    """Tasks of ``store`` whose keys are sealed, sorted."""
    return [TaskId(folder.name) for folder in _folders(store) if is_sealed(folder)]


def check_passphrase(store: Store, tasks: Iterable[TaskId], passphrase: Passphrase | None) -> None:
    """Refuse a run that could not read its keys, or that would leave a plain one among sealed ones.

    Args:
        tasks: those whose keys may be read; their sealed keys are all opened once, and at least one of the store's,
            because a store has one passphrase.

    Raises:
        SealError: naming every key that cannot be opened.
    """
    tasks = list(tasks)
    store.agree(passphrase)
    store.receive_keys(tasks)
    sealed = sealed_keys(store)
    if sealed and passphrase is None:
        raise _no_passphrase(_named(sealed, "sealed key"))
    wanted = {*sealed[:1], *tasks}
    locked = [task_id for task_id in sealed if task_id in wanted and not _opens(store, task_id, passphrase)]
    if locked:
        raise SealError(
            f"expected the passphrase that sealed them, got another for {_named(locked, 'key')} of {store.root}; "
            f"set {PASSPHRASE} or `keys: {{passphrase: FILE}}` to the right one"
        )


@dataclass
class Sealing:
    """What became of a store's keys: task ids sealed now, sealed before, and not to be read as keys."""

    sealed: list[TaskId] = field(default_factory=list)
    before: list[TaskId] = field(default_factory=list)
    damaged: dict[TaskId, str] = field(default_factory=dict)


def seal_store(store: Store, passphrase: Passphrase) -> Sealing:
    """Seal every plain key of ``store``; what a killed earlier attempt left over is finished and cleaned up.

    Raises:
        StoreBusy: a run holds the store.
        SealError: keys that are sealed already have another passphrase; nothing was changed.
    """
    done = Sealing()
    with store.exclusive():
        check_passphrase(store, sealed_keys(store), passphrase)
        for folder in _folders(store):
            task_id = TaskId(folder.name)
            try:
                (done.before if is_sealed(folder) else done.sealed).append(task_id)
                seal_key(folder, passphrase)
            except KeyFileError as error:
                done.damaged[task_id] = str(error)
                done.sealed = [t for t in done.sealed if t != task_id]
                done.before = [t for t in done.before if t != task_id]
    return done


def seal_key(folder: Path, passphrase: Passphrase) -> None:
    """Turn a plain key into a sealed one, in place; a sealed one loses what is left of its plain form.

    Raises:
        KeyFileError: it is no whole key; nothing was changed.
        SealError: it is sealed with another passphrase.
    """
    load_key(folder, passphrase)
    if is_sealed(folder):
        _forget_plain(folder)
    else:
        _seal(folder, {name: (folder / name).read_bytes() for name in (PUBLIC, SECRET)}, passphrase)


def encoded(key: Key) -> dict[str, bytes]:
    """The two files of a plain key as ``Key.save`` writes them, in memory."""
    tensors = {f"tensor.{name}": t.detach().cpu().contiguous() for name, t in key.secret.items()}
    tensors["seed"] = torch.frombuffer(bytearray(key.seed), dtype=torch.uint8)
    public = {"format": KEY_FORMAT, "scheme": key.scheme, "public": dict(key.public), "commitment": key.commitment}
    return {PUBLIC: (json.dumps(public, indent=1, sort_keys=True) + "\n").encode(), SECRET: save(tensors)}


class _Opened:
    """A sealed key's folder after it was opened, in memory: what ``Key.load`` reads of one."""

    def __init__(self, folder: Path, contents: Mapping[str, bytes], name: str = "") -> None:
        self._folder = folder
        self._contents = contents
        self._name = name

    def __str__(self) -> str:
        return str(self._folder / self._name)

    def __truediv__(self, name: str) -> "_Opened":
        return _Opened(self._folder, self._contents, name)

    def read_bytes(self) -> bytes:
        return self._contents[self._name]


def _loaded(files: "Path | _Opened", folder: Path) -> Key:
    try:
        return Key.load(cast(Path, files))
    except (ArithmeticError, AttributeError, RecursionError, RuntimeError) as error:
        raise KeyFileError(
            f"expected a key directory, got {folder} whose content cannot be read ({type(error).__name__}); "
            "restore it from a backup, or re-embed with `wmarena run`"
        ) from None


def _seal(folder: Path, contents: Mapping[str, bytes], passphrase: Passphrase) -> None:
    """From two plain files in memory to a sealed folder; their plain form on disk goes last."""
    sealed = passphrase.seal(contents[SECRET], _identity(contents[PUBLIC], folder))
    write_private(folder / SEALED, sealed)
    write_private(folder / SUMS, _sums({PUBLIC: contents[PUBLIC], SEALED: sealed}))
    sync_folder(folder)
    _forget_plain(folder)


def _unsealed(folder: Path, passphrase: Passphrase) -> dict[str, bytes]:
    """The three files of the plain key that a sealed folder stands for."""
    try:
        files = _sealed_files(folder)
    except OSError as error:
        raise KeyFileError(
            f"expected a sealed key with {PUBLIC}, {SEALED} and {SUMS}, got {folder} where one cannot be read "
            f"({error.strerror}); restore it from a backup, or re-embed with `wmarena run`"
        ) from None
    if not _match(files):
        raise KeyFileError(
            f"expected the files of {folder} as they were saved, got content that does not match {SUMS}: the key was "
            "altered or damaged; restore it from a backup, or re-embed with `wmarena run`"
        )
    try:
        public = files[PUBLIC]
        secret = passphrase.open(files[SEALED], _identity(public, folder))
    except SealError as error:
        raise SealError(f"key {folder}: {error}") from None
    return {PUBLIC: public, SECRET: secret, SUMS: _sums({PUBLIC: public, SECRET: secret})}


def _sealed_files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in (PUBLIC, SEALED, SUMS)}


def _match(files: Mapping[str, bytes]) -> bool:
    """True if a sealed key's files are as its sums say."""
    return files[SUMS] == _sums({PUBLIC: files[PUBLIC], SEALED: files[SEALED]})


def _identity(public: bytes, folder: Path) -> bytes:
    """What a sealed secret is bound to: its key's scheme and commitment."""
    try:
        found: Any = json.loads(public)
        return json.dumps([found["scheme"], found["commitment"]]).encode()
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise KeyFileError(
            f"expected scheme and commitment in {folder / PUBLIC}, got content that cannot be read "
            f"({type(error).__name__}); restore it from a backup, or re-embed with `wmarena run`"
        ) from None


def _opens(store: Store, task_id: TaskId, passphrase: Passphrase | None) -> bool:
    """False if the passphrase is wrong; a damaged key is computed again, which is another matter."""
    try:
        load_key(store.key_dir(task_id), passphrase)
    except SealError:
        return False
    except KeyFileError:
        return True
    return True


def _no_passphrase(what: str) -> SealError:
    return SealError(
        f"expected a passphrase for {what}, got none; set {PASSPHRASE}, or name a file that holds it by "
        "`keys: {passphrase: FILE}` in the spec"
    )


def _named(tasks: list[TaskId], what: str) -> str:
    shown = ", ".join(task_id[:12] for task_id in tasks[:_MOST_NAMED])
    more = f" and {len(tasks) - _MOST_NAMED} more" if len(tasks) > _MOST_NAMED else ""
    return f"{len(tasks)} {what}{'' if len(tasks) == 1 else 's'} ({shown}{more})"


def _folders(store: Store) -> list[Path]:
    keys = store.keys_root
    found = sorted(keys.iterdir()) if keys.is_dir() else []
    return [p for p in found if p.is_dir() and not p.is_symlink() and not p.name.startswith(".")]


def _forget_plain(folder: Path) -> None:
    for name in (SECRET, f"{SECRET}.part"):
        (folder / name).unlink(missing_ok=True)


def _sums(contents: Mapping[str, bytes]) -> bytes:
    return "".join(f"{hashlib.sha256(contents[n]).hexdigest()}  {n}\n" for n in sorted(contents)).encode()


def write_private(path: Path, raw: bytes) -> None:
    """Write a file for its owner's eyes (0600), whole or not at all; its folder is made (0700) if it is missing.

    Several processes may write the same file: each has a part of its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as f:
            f.write(raw)
            f.flush()
            os.fsync(f.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
