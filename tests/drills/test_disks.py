"""Full and read-only disks, truncated and corrupted files; each on its own file system or a real file."""

import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.drills.drill import FULL, Drill, needs
from wmarena.orchestrator.worker.context import MODEL

MORE = ("--set", "attacks.prune_weights.sparsity=[0.3,0.5,0.9]")
"""One more attack: a finished plan has to read its models again."""


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A file system in memory at ``folder``; skips the drill where nobody may mount one."""
    folder.mkdir(parents=True)
    reason = needs("mount", "umount")
    done = (
        None if reason else subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=False)
    )
    if done is None or done.returncode:
        pytest.skip(f"a file system of its own: {reason or 'mount is not permitted'}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    """Change a mounted file system."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


@pytest.mark.parametrize("kib", [1100, 1600, 2200, 3000, 4000] if FULL else [1600])
def test_a_full_disk_stops_the_run_and_room_resumes_it(
    inline: Drill, undisturbed: Drill, kib: int, counts: Counter[str]
) -> None:
    """The message names the full disk and the remedy, without a traceback; with space the same command completes."""
    with mounted(inline.store, f"size={kib}k"):
        full = inline.run_any()
        assert full.process.returncode in (1, 3), full.said
        assert "Traceback" not in full.said
        assert re.search("[Nn]o space left|disk is full", full.said), full.said
        assert "free space" in full.said
        remount(inline.store, "size=200m")
        inline.run()
        inline.check(undisturbed)
    counts["disks filled"] += 1


def test_a_store_that_becomes_read_only_stops_the_run(inline: Drill, undisturbed: Drill, counts: Counter[str]) -> None:
    """Under a run: exit 3; before one: exit 2, nothing was run; then it is writable again, and all is well."""
    with mounted(inline.store, "size=200m"):
        driver = inline.start()
        driver.wait_for_done(2)
        subprocess.run(["mount", "--bind", str(inline.store), str(inline.store)], check=True)
        try:
            remount(inline.store, "bind,ro")
            driver.end(status=3)
            refused = inline.run_any()
        finally:
            subprocess.run(["umount", "-l", str(inline.store)], check=True)
        inline.run()
        inline.check(undisturbed)

    assert "ead-only file system" in driver.said
    assert "run the same command again" in driver.said
    assert refused.process.returncode == 2
    assert "expected a store folder that can be written" in refused.said
    assert "Traceback" not in driver.said + refused.said
    counts["stores made read-only"] += 1


def flipped(path: Path, rng: random.Random) -> None:
    """Flip one bit of a file."""
    raw = bytearray(path.read_bytes())
    raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    path.write_bytes(raw)


def torn(path: Path, rng: random.Random) -> None:
    """Truncate a file."""
    os.truncate(path, rng.randrange(path.stat().st_size))


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> Drill:
    """The drill with one more attack, undisturbed."""
    drill = Drill(tmp_path_factory.mktemp("more"), options=("--executor", "inline", *MORE))
    drill.run()
    return drill


@pytest.mark.parametrize("seed", range(20 if FULL else 1))
def test_damaged_files_are_detected_and_recomputed(inline: Drill, more: Drill, seed: int, counts: Counter[str]) -> None:
    """A third of a store's files: ``store verify`` names them, and the next run ends with the rows of a whole store."""
    rng = random.Random(seed)
    inline.run()
    files = sorted(p for p in inline.store.glob("artifacts/*/*/*") if p.is_file())
    marked = rng.choice(inline.ask("SELECT id FROM task WHERE kind='embed' ORDER BY id"))[0]
    read_again = next(p for p in files if p.parent.name == marked and p.name == MODEL)  # by the new attack
    broken = [read_again, *rng.sample([p for p in files if p != read_again], len(files) // 3)]
    for path in broken:
        rng.choice([flipped, torn])(path, rng)
    verify = [sys.executable, "-m", "wmarena", "--store", str(inline.store), "store", "verify"]
    checked = subprocess.run(verify, capture_output=True, text=True, check=False)
    inline.run(*MORE)
    counts["files damaged"] += len(broken)

    assert checked.returncode == 1
    assert [{**row, "caveats": None} for row in inline.table()] == [{**row, "caveats": None} for row in more.table()]
    assert any("recomputed" in row["caveats"] for row in inline.table())
