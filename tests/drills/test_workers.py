"""Workers that die or hang while a plan runs."""

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.drills.arena import FULL, Arena, Driver, kill_one

KILLS = 50 if FULL else 2


@pytest.mark.ray
def test_workers_killed_at_random_moments_cost_nothing(
    undisturbed: Arena, tmp_path: Path, counts: Counter[str]
) -> None:
    """SIGKILL over many seeds: no result lost, none twice, the table of an undisturbed run."""
    killed = seed = 0
    while killed < KILLS:
        arena = Arena(tmp_path / str(seed), options=("--workers", "2", "--set", "executor.max_retries=50"))
        driver = arena.start()
        rng = random.Random(seed)
        driver.wait_for(driver.workers, "workers")
        killed += reap(driver, rng, KILLS - killed)
        driver.end()
        arena.check(undisturbed)
        seed += 1
    counts["workers killed"] += killed
    counts["plans under killed workers"] += seed


def reap(driver: Driver, rng: random.Random, most: int) -> int:
    """Kill workers of a run until it ends, at random moments between two tasks done; returns how many.

    Faster kills would only show that no worker lives long enough to start.
    """
    killed = 0
    while driver.going and killed < most:
        done = driver.n_done
        while driver.going and driver.n_done == done:
            time.sleep(0.05)
        time.sleep(rng.expovariate(4.0))
        killed += driver.going and kill_one(driver.workers(), rng) is not None
    return killed


@pytest.mark.ray
@pytest.mark.parametrize("seed", range(5 if FULL else 1))
def test_a_worker_that_hangs_is_replaced(arena: Arena, undisturbed: Arena, seed: int, counts: Counter[str]) -> None:
    """SIGSTOP: the process is there and says nothing; its task goes to another worker long before its timeout."""
    rng = random.Random(seed)
    driver = arena.start("--set", "executor.heartbeat_timeout_s=10.0", "--set", "executor.task_timeout_s=100000.0")
    driver.wait_for_done(3)
    stopped: int | None = None
    try:
        # One that waits for its next task is found hanging only when it gets one: only who stopped at work counts.
        time.sleep(rng.uniform(0.0, 0.5))
        while stopped is None and driver.going:
            stopped = kill_one(driver.workers(".perform"), rng, signal.SIGSTOP)
            if stopped is not None and stopped not in driver.workers(".perform"):
                os.kill(stopped, signal.SIGCONT)
                stopped = None
        driver.end()
    finally:
        if stopped is not None and Path(f"/proc/{stopped}").exists():
            os.kill(stopped, signal.SIGKILL)
    arena.check(undisturbed)

    assert any(cause.startswith("silent: its worker gave no sign of life for 10 s") for cause in arena.causes())
    counts["workers hung"] += 1
