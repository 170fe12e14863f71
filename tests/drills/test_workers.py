"""Workers that die or hang while a plan runs."""

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.drills.drill import FULL, LONG, Drill, Driver, kill_one

KILLS = 50 if FULL else 2


@pytest.mark.ray
def test_workers_killed_at_random_moments_cost_nothing(
    undisturbed: Drill, tmp_path: Path, counts: Counter[str]
) -> None:
    """SIGKILL over many seeds: no result lost, none twice, the table of an undisturbed run."""
    killed = seed = 0
    while killed < KILLS:
        drill = Drill(tmp_path / str(seed), options=("--workers", "2", "--set", "executor.max_retries=50"))
        driver = drill.start()
        rng = random.Random(seed)
        driver.wait_for(driver.workers, "workers")
        killed += reap(driver, rng, KILLS - killed)
        driver.end()
        drill.check(undisturbed)
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
def test_a_worker_that_hangs_is_replaced(tmp_path: Path, long: Drill, seed: int, counts: Counter[str]) -> None:
    """SIGSTOP: the process exists but sends no heartbeat; its task is reassigned long before its timeout."""
    rng = random.Random(seed)
    drill = Drill(tmp_path, LONG, options=("--workers", "2"))
    driver = drill.start("--set", "executor.heartbeat_timeout_s=10.0", "--set", "executor.task_timeout_s=100000.0")
    # An idle worker that hangs is detected only with its next task: all first tasks are long trainings.
    at_work = driver.wait_for(lambda: driver.workers(".perform"), "a worker at work")
    time.sleep(rng.uniform(0.0, 1.0))
    os.kill(at_work[0], signal.SIGSTOP)
    try:
        driver.end()
    finally:
        if Path(f"/proc/{at_work[0]}").exists():
            os.kill(at_work[0], signal.SIGKILL)
    drill.check(long)

    assert any(cause.startswith("silent: its worker did not answer for 10 s") for cause in drill.causes())
    counts["workers hung"] += 1
