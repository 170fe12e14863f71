"""Atomic file writes, also with several processes writing one file."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.orchestrator.files.writers import started
from wmarena.orchestrator.files.atomic import (
    leftovers,
    temporary,
    write_if_missing,
    write_new,
    write_private,
    write_whole,
)
from wmarena.orchestrator.store.backends import FolderCheckpoints

WRITER = """
import sys
from pathlib import Path
from wmarena.orchestrator.files.atomic import write_private, write_whole
from wmarena.orchestrator.store.backends import FolderCheckpoints
how, path, letter = sys.argv[1], Path(sys.argv[2]), sys.argv[3].encode()
write = {
    "whole": lambda raw: write_whole(path, raw),
    "private": lambda raw: write_private(path, raw),
    "checkpoint": lambda raw: FolderCheckpoints(path.parent).write(path.name, raw),
}[how]
for n in range(300):
    write(letter * (1 + 20011 * n % 70000))
"""


@pytest.mark.parametrize("how", ["whole", "private", "checkpoint"])
def test_two_processes_write_one_file(how: str, tmp_path: Path) -> None:
    """None of 600 writes fails, every read sees what one of them wrote, and nothing is left beside it."""
    path = tmp_path / "folder" / "file"
    write_whole(path, b"a")
    with started(WRITER, [how, str(path), "a"], [how, str(path), "b"]) as running:
        while running():
            raw = path.read_bytes()
            assert raw
            assert raw == raw[:1] * len(raw)

    assert [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize(("write", "mode"), [(write_whole, 0o640), (write_private, 0o600)])
def test_modes(write: Callable[[Path, bytes], None], mode: int, tmp_path: Path) -> None:
    """A private file is private from its first byte, whatever stood there; other files follow the umask."""
    path = tmp_path / "folder" / "file"
    before = os.umask(0o027)
    try:
        write(path, b"one")
        path.chmod(0o644)
        write(path, b"two")
    finally:
        os.umask(before)

    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert stat.S_IMODE(path.parent.stat().st_mode) == (0o700 if write is write_private else 0o750)


@pytest.mark.parametrize("write", [write_whole, write_private])
def test_a_failed_write_changes_nothing(
    write: Callable[[Path, bytes], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old content stays, and no unfinished file keeps a full disk full."""
    path = tmp_path / "file"
    write(path, b"old")

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write(path, b"new")

    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"file": b"old"}


def test_leftovers_are_of_one_file(tmp_path: Path) -> None:
    """A name with glob's own letters finds what its own killed writer left, and nothing else."""
    path = tmp_path / "a[1]*"
    part = temporary(path)
    for other in (part, temporary(tmp_path / "a1"), path):
        other.write_bytes(b"x")

    assert leftovers(path) == [part]


def test_names_of_any_length(tmp_path: Path) -> None:
    """A file system that holds the name holds its unfinished file."""
    for name in ("n" * 255, "ü" * 127):
        write_whole(tmp_path / name, b"x")

        assert (tmp_path / name).read_bytes() == b"x"


def test_a_new_file_replaces_none(tmp_path: Path) -> None:
    """What another writer has put there stays."""
    write_new(tmp_path / "file", b"first")
    with pytest.raises(FileExistsError):
        write_new(tmp_path / "file", b"second")

    assert (tmp_path / "file").read_bytes() == b"first"


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_a_missing_file_is_written_once(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first content stays, also without hard links; an existing file is not written, so its folder need not be."""

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", refused)
    write_if_missing(tmp_path / "file", b"first")
    monkeypatch.setattr(os, "open", refused)
    write_if_missing(tmp_path / "file", b"second")

    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"file": b"first"}


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_of_two_writers_of_a_missing_file_the_first_wins(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one is faster after both have seen that there is no file."""
    link = os.link

    def late(source: Path, target: Path) -> None:
        target.write_bytes(b"other")
        if not links:
            raise PermissionError(1, "Operation not permitted")
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    write_if_missing(tmp_path / "file", b"own")

    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"file": b"other"}


def test_checkpoints_of_two_writers_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    """A checkpoint is written beside another writer's unfinished one, which ``tidy`` removes."""
    shelf = FolderCheckpoints(tmp_path)
    part = temporary(tmp_path / "name")
    part.write_bytes(b"half")
    shelf.write("name", b"whole")

    assert (shelf.read("name"), part.read_bytes()) == (b"whole", b"half")
    shelf.tidy()
    assert shelf.names() == ["name"]
