"""Checkpoints: the newest intact state is restored with its curves; damaged ones are ignored."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from wmarena.attacks.phases import Phase
from wmarena.orchestrator.files.errors import StoreError
from wmarena.orchestrator.store.backends import FolderCheckpoints
from wmarena.orchestrator.store.checkpoints import Curves, StoredCheckpoints
from wmarena.schemes.base import Cancelled


def open_at(
    folder: Path, *, every_s: float = 0.0, cancelled: bool = False, curves: Curves | None = None
) -> StoredCheckpoints:
    """A new process's view of a checkpoint folder."""
    return StoredCheckpoints(
        FolderCheckpoints(folder), every_s=every_s, cancelled=lambda: cancelled, curves=curves or Curves()
    )


def state(value: float) -> Callable[[], dict[str, Tensor]]:
    """A state with something of every kind in it."""
    return lambda: {"model.w": torch.full((2, 3), value), "optimiser.0.step": torch.tensor(int(value))}


def value(found: tuple[int, dict[str, Tensor]] | None) -> tuple[int, float] | None:
    """(step, what ``state`` was made of)."""
    return None if found is None else (found[0], float(found[1]["model.w"][0, 0]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that does not exist yet."""
    return tmp_path / "checkpoints" / "trajectory"


def test_a_state_comes_back_bit_equal(folder: Path) -> None:
    """Names, types, values, and no internal tensors."""
    open_at(folder).offer(3, state(1.5))
    found = open_at(folder).latest()

    assert found is not None
    assert found[0] == 3
    assert found[1].keys() == state(1.5)().keys()
    assert all(torch.equal(found[1][n], t) and found[1][n].dtype == t.dtype for n, t in state(1.5)().items())


def test_no_folder_means_no_state(folder: Path) -> None:
    """Asking and clearing make nothing."""
    checkpoints = open_at(folder)
    checkpoints.clear()

    assert checkpoints.latest() is None
    assert not folder.exists()


def test_the_newest_is_the_one_with_the_highest_step(folder: Path) -> None:
    """By number, not by name: steps of later loops have more digits."""
    checkpoints = open_at(folder)
    steps = [1, 99_999_999, 2**20 + 5, 2**40, 20]
    for step in steps:
        checkpoints.offer(step, state(step), keep=True)

    found = []
    limit: int | None = None
    while (latest := open_at(folder).latest(limit)) is not None:
        found.append(latest[0])
        limit = latest[0] - 1
    assert found == sorted(steps, reverse=True)


def test_an_unasked_checkpoint_waits_for_its_time(folder: Path) -> None:
    """``every_s`` apart; a kept one is always written."""
    checkpoints = open_at(folder, every_s=3600.0)
    checkpoints.offer(1, state(1))
    checkpoints.offer(2, state(2), keep=True)

    assert [p.name.split("-")[:2] for p in folder.iterdir()] == [["00000002", "keep"]]


def test_an_unasked_checkpoint_replaces_the_older_one(folder: Path) -> None:
    """One is enough to resume; those that were asked for stay."""
    checkpoints = open_at(folder)
    for step in range(1, 6):
        checkpoints.offer(step, state(step), keep=step == 2)

    assert sorted(p.name.split("-")[0] for p in folder.iterdir()) == ["00000002", "00000005"]


def test_a_loop_that_runs_again_keeps_the_next_ones_state(folder: Path) -> None:
    """Of two loops, the first runs again before the interrupted second can resume: both states are there."""
    second = Phase(open_at(folder), 1)
    second.offer(7, state(7))
    resumed = open_at(folder)
    for step in (1, 2):
        Phase(resumed, 0).offer(step, state(step))

    assert value(Phase(open_at(folder), 1).latest()) == (7, 7.0)
    assert value(Phase(open_at(folder), 0).latest()) == (2, 2.0)


def test_stopping_writes_first(folder: Path) -> None:
    """A cancelled task leaves its state whatever the interval, and ends."""
    with pytest.raises(Cancelled, match="stopped at step 4; the checkpoint is kept"):
        open_at(folder, every_s=3600.0, cancelled=True).offer(4, state(4))

    assert value(open_at(folder).latest()) == (4, 4.0)


@pytest.mark.parametrize("how", ["flip", "shorten", "empty"])
def test_a_torn_checkpoint_is_ignored(folder: Path, how: str) -> None:
    """The one before it is used, and the torn one is removed."""
    checkpoints = open_at(folder)
    checkpoints.offer(1, state(1), keep=True)
    checkpoints.offer(2, state(2), keep=True)
    newest = max(folder.iterdir())
    raw = newest.read_bytes()
    newest.write_bytes({"flip": raw[:-1] + b"\xff", "shorten": raw[:-5], "empty": b""}[how])

    assert value(open_at(folder).latest()) == (1, 1.0)
    assert not newest.exists()


def test_what_others_put_there_is_ignored(folder: Path) -> None:
    """A killed writer's part and files of any name are no checkpoints."""
    open_at(folder).offer(1, state(1))
    for name in ("00000009-temp-0123456789abcdef.part", "notes.safetensors", "x-temp-y.safetensors", ".nfs0001"):
        (folder / name).write_bytes(b"junk")

    assert value(open_at(folder).latest()) == (1, 1.0)


def test_clearing_leaves_what_was_kept_on_purpose(folder: Path) -> None:
    """A longer strength continues from it; an empty folder goes."""
    checkpoints = open_at(folder)
    checkpoints.offer(1, state(1), keep=True)
    checkpoints.offer(2, state(2))
    (folder / "00000009-temp-0123456789abcdef.part").write_bytes(b"junk")
    checkpoints.clear()
    names = [p.name for p in folder.iterdir()]
    (folder / names[0]).unlink()
    checkpoints.clear()

    assert [n[:13] for n in names] == ["00000001-keep"]
    assert not folder.exists()


def test_curves_go_back_with_the_state(folder: Path) -> None:
    """A resumed task's history has no hole and nothing twice, also if it logs before it asks."""
    curves = Curves()
    checkpoints = open_at(folder, curves=curves)
    curves(0, start=1.0)
    for step in range(1, 4):
        curves(step, loss=1.0 / step)
        checkpoints.offer(step, state(step), keep=step == 2)
    resumed = Curves()
    again = open_at(folder, curves=resumed)
    resumed(0, start=1.0)
    again.latest(at_most=2)
    resumed(3, loss=1.0 / 3)

    assert resumed.points == curves.points
    assert resumed.to_bytes() == curves.to_bytes()


def test_a_full_disk_is_the_stores_trouble(folder: Path) -> None:
    """It is a StoreError, which is retried."""
    folder.parent.mkdir(parents=True)
    folder.write_text("a file is in the way")

    with pytest.raises(StoreError, match="expected to write a checkpoint"):
        open_at(folder).offer(1, state(1))
