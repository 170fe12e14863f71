"""Keys: their derivation, their folder, and that they are in no other file."""

import gc
import types
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from tests.orchestrator.digits import Bench
from wmarena.attacks.base import AttackView
from wmarena.orchestrator.keys.derivation import PUBLISHED_ROOT, KeyRoot, Role
from wmarena.orchestrator.plan.plugins import build_attack, build_scheme
from wmarena.orchestrator.worker.context import Setup
from wmarena.orchestrator.worker.roles import attack_view
from wmarena.schemes.commitment import tensor_bytes
from wmarena.schemes.keys import Key

SECRET = bytes(range(40))


@pytest.fixture
def root_file(tmp_path: Path) -> Path:
    """A secret file of the owner."""
    path = tmp_path / "root.secret"
    path.write_bytes(SECRET)
    return path


# Roots


def test_every_role_and_purpose_has_its_own_stream(root_file: Path) -> None:
    """Roles, parts and where one part ends and the next begins: all count; roots as well."""
    roots = [KeyRoot.published(), KeyRoot.from_file(root_file)]
    roles: tuple[Role, ...] = ("owner", "stranger", "adversary")
    purposes = [("a",), ("b",), ("a", "b"), ("ab",), ("a", "")]
    streams = [r.prf(role, *parts).stream("x", 32) for r in roots for role in roles for parts in purposes]

    assert all(a != b for a, b in combinations(streams, 2))


def test_a_stream_can_be_repeated(root_file: Path) -> None:
    """The same root, role and purpose give the same key, in every process."""
    streams = {KeyRoot.from_file(root_file).prf("owner", "a").stream("x", 32) for _ in range(2)}

    assert len(streams) == 1
    assert KeyRoot.published().prf("owner", "uchida", "digits").stream("x", 8).hex() == "519015e63b354c31"


def test_only_the_published_root_is_simulated(root_file: Path) -> None:
    """No root file means the published constant; nobody should take its keys for proof."""
    assert KeyRoot.from_file(None).simulated
    assert not KeyRoot.from_file(root_file).simulated


def test_a_root_shows_its_commitment_only(root_file: Path) -> None:
    """Neither repr nor commitment holds the secret; different roots have different commitments."""
    root = KeyRoot.from_file(root_file)

    assert root.secret.hex() not in repr(root) + root.commitment
    assert repr(root.secret) not in repr(root)
    assert root.commitment != KeyRoot.published().commitment
    assert root.secret not in (SECRET, PUBLISHED_ROOT)


@pytest.mark.parametrize(("content", "message"), [(b"x" * 31, "at least 32 secret bytes"), (None, "head -c 32")])
def test_a_root_file_that_is_no_secret_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    """Too short or unreadable, with the way out; what it holds is not repeated."""
    path = tmp_path / "root"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ValueError, match=message) as caught:
        KeyRoot.from_file(path)
    assert "xxx" not in str(caught.value)


# Keys of a run on digits


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Uchida's mark on digits, attacked and verified, with an owner's own root."""
    folder = tmp_path_factory.mktemp("custody")
    (folder / "root.secret").write_bytes(SECRET)
    bench = Bench(folder / "store", root_file=folder / "root.secret")
    bench.run(bench.defended("uchida"))
    return bench


def secrets(bench: Bench) -> list[bytes]:
    """The key's seed, its secret tensors, and the root that it comes from."""
    key = bench.key()
    assert len(key.seed) == 32
    return [key.seed, bench.root.secret, SECRET, *(tensor_bytes(t) for t in key.secret.values() if t.numel() > 8)]


def forms(secret: bytes) -> list[bytes]:
    """As bytes and as hex."""
    return [secret, secret.hex().encode()]


def test_keys_are_in_the_keys_folder_and_nowhere_else(marked: Bench) -> None:
    """No byte of seed, secret tensors or root is in any other file of the store, the journal included."""
    assert marked.journal_rows() == 4
    files = [p for p in marked.store.root.rglob("*") if p.is_file()]
    elsewhere = [p for p in files if marked.store.root / "keys" not in p.parents]
    leaks = [
        str(path)
        for path in elsewhere
        for secret in secrets(marked)
        for form in forms(secret)
        if form in path.read_bytes()
    ]

    assert len(elsewhere) > 8
    assert leaks == []
    key_files = b"".join(p.read_bytes() for p in files if p not in elsewhere)
    assert marked.key().seed in key_files
    assert marked.root.secret not in key_files


def test_key_files_are_for_the_owner_only(marked: Bench) -> None:
    """Folders 0700, files 0600."""
    folder = marked.store.key_dir(marked.embed.id)

    assert {p.stat().st_mode & 0o777 for p in (folder, folder.parent)} == {0o700}
    assert {p.stat().st_mode & 0o777 for p in folder.iterdir()} == {0o600}


def test_a_stored_key_belongs_to_its_mark(marked: Bench) -> None:
    """It opens the commitment that the result shows, and says scheme, workload and that it is no simulation."""
    result = marked.result(marked.embed)
    key = marked.key()

    assert key.verifies(result["commitment"])
    assert (key.scheme, key.public["simulated"]) == ("uchida", False)
    assert key.public["workload"] == marked.embed.config["workload"]


def reachable(start: object) -> Iterator[object]:
    """Everything that an object holds, closures included; not what code reaches by name (modules, globals)."""
    code = (types.ModuleType, types.BuiltinFunctionType, type, types.FrameType, types.CodeType)
    seen: dict[int, object] = {}
    todo = [start]
    while todo:
        found = todo.pop()
        if id(found) in seen or isinstance(found, code):
            continue
        seen[id(found)] = found
        yield found
        if isinstance(found, types.FunctionType):
            todo += [*(found.__closure__ or ()), *(found.__defaults__ or ())]
        else:
            todo += gc.get_referents(found)


def content(thing: object) -> bytes:
    """The bytes of a leaf: text, bytes, numbers of an array or a tensor."""
    if isinstance(thing, Tensor):
        return tensor_bytes(thing)
    if isinstance(thing, np.ndarray):
        return thing.tobytes()
    return thing.encode() if isinstance(thing, str) else bytes(thing) if isinstance(thing, bytes | bytearray) else b""


def leaked(view: AttackView, secret: list[bytes]) -> list[str]:
    """What in a view's object graph holds a secret."""
    wanted = [form for s in secret for form in forms(s)]
    return [type(thing).__name__ for thing in reachable(view) if any(w in content(thing) for w in wanted)]


def view_of(bench: Bench, name: str) -> AttackView:
    """What an attack would see of the marked model."""
    attack = build_attack({"name": name})
    job = bench.job(bench.attack_task(attack))
    return attack_view(job, attack, build_scheme(bench.embed.config["scheme"]))


@pytest.mark.parametrize("name", ["finetune", "prune_weights", "overwrite", "ambiguity"])
def test_an_attack_without_the_key_cannot_reach_it(marked: Bench, name: str) -> None:
    """Walking from the view over every object it holds: no seed, no secret tensor, no root."""
    view = view_of(marked, name)

    assert any(thing is view.data for thing in reachable(view))
    assert any(isinstance(thing, Tensor) for thing in reachable(view))
    assert leaked(view, secrets(marked)) == []


def test_the_walk_finds_a_key_that_is_there(marked: Bench) -> None:
    """An attack that declares the key gets it, and the search above would have noticed."""
    view = view_of(marked, "spoil")

    assert isinstance(view.key, Key)
    assert leaked(view, secrets(marked)) != []


def test_the_adversarys_keys_are_not_the_owners(marked: Bench) -> None:
    """Another domain of the root: knowing one tells nothing of the other; each attack has its own."""
    views = [view_of(marked, name) for name in ("overwrite", "ambiguity")]
    seeds = [view.prf.stream("seed", 32) for view in views]

    assert marked.key().seed not in seeds
    assert seeds[0] != seeds[1]


def test_what_workers_are_sent_names_the_secret_but_does_not_hold_it(marked: Bench) -> None:
    """A worker's setup holds the path of the root file, so Ray's dashboard and logs cannot show the root."""
    setup: Setup = marked.context.setup

    assert setup.root_file is not None
    assert all(secret.hex() not in repr(setup) for secret in secrets(marked))
