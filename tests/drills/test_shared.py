"""Stores behind a URL, on a real S3 server, with killed workers and drivers."""

import random
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.drills.drill import FULL, Drill, Driver, all_end, descendants, kill_one
from wmarena.orchestrator.keys.encryption import PASSPHRASE
from wmarena.orchestrator.store.remote import Remote

WORDS = "nineteen-dotterel-eggs"
SEEDS = range(5 if FULL else 1)
Bucket = Callable[[], str]
Made = Callable[[Path, str], Drill]


def sealed(folder: Path, url: str) -> Drill:
    """Keys are in the bucket, sealed."""
    return Drill(folder, options=("--workers", "2"), environment={PASSPHRASE: WORDS}, url=url)


def beside(folder: Path, url: str) -> Drill:
    """Keys are in a folder that all workers see."""
    options = ("--workers", "2", "--keys", str(folder / "keys"))
    return Drill(folder, options=options, url=url)


def kill_a_worker(driver: Driver, rng: random.Random, n_tasks: int) -> None:
    """One that is at work, once some tasks are done."""
    driver.wait_for_done(rng.randrange(1, n_tasks // 2))
    driver.wait_for(lambda: kill_one(driver.workers(".perform"), rng), "a worker at work")


def check(drill: Drill, undisturbed: Drill) -> None:
    """Check that the store equals an undisturbed local one and that the same command executes nothing."""
    drill.check(undisturbed)
    again = drill.run().summary
    drill.check(undisturbed)

    assert (again["executed"], again["cached"]) == (0, len(undisturbed.ask("SELECT id FROM task")))
    assert again["shared_report"].startswith("s3://")


@pytest.mark.ray
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("make", [sealed, beside] if FULL else [sealed])
def test_a_worker_killed_over_a_bucket_costs_nothing(
    s3: Bucket, tmp_path: Path, undisturbed: Drill, make: Made, seed: int, counts: Counter[str]
) -> None:
    """SIGKILL of a Ray worker at work on S3: nothing lost, nothing twice; keys are sealed, or not in the bucket."""
    drill = make(tmp_path, s3())
    driver = drill.start()
    kill_a_worker(driver, random.Random(seed), len(undisturbed.ask("SELECT id FROM task")))
    driver.end()
    names = {stored.name.rpartition("/")[2] for stored in Remote(str(drill.url)).listing("keys")}

    assert drill.causes()
    assert names == ({"sealed-key.json", "passphrase-check"} if make is sealed else set())
    if FULL:
        check(drill, undisturbed)
    else:
        drill.check(undisturbed)
    counts["workers killed over S3"] += 1


@pytest.mark.ray
@pytest.mark.skipif(not FULL, reason="killed drivers over S3 are drilled by `make drill`")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("make", [sealed, beside])
def test_a_driver_killed_over_a_bucket_costs_nothing(
    s3: Bucket, tmp_path: Path, undisturbed: Drill, make: Made, seed: int, counts: Counter[str]
) -> None:
    """SIGKILL of the driver, then the same command."""
    drill, rng = make(tmp_path, s3()), random.Random(seed)
    driver = drill.start()
    driver.wait_for_done(rng.randrange(1, len(undisturbed.ask("SELECT id FROM task")) // 2))
    family = descendants(driver.process.pid)
    driver.send(signal.SIGKILL)
    driver.end(status=-signal.SIGKILL)
    again = drill.run().summary
    check(drill, undisturbed)

    assert again["cached"] > 0
    assert all_end(family)
    counts["drivers killed over S3"] += 1
