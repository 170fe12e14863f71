"""What a task costs its driver in memory: counted allocations, so the claim is a test."""

import gc
import tracemalloc
from pathlib import Path

from benchmarks.scale import drive, spec_of
from wmarena.experiments.planning.expand import expand


def held(n_seeds: int, folder: Path) -> tuple[int, int]:
    """(tasks, bytes at the peak) of expanding and executing the plan of so many seeds."""
    gc.collect()
    tracemalloc.start()
    try:
        expansion = expand(spec_of(n_seeds))
        drive(expansion, folder, 64, "run")
        return len(expansion.plan), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_task_costs_its_driver_two_kilobytes_at_most(tmp_path: Path) -> None:
    """Plan, ledger, records and journal together, beyond what is held whatever the size of the plan."""
    held(1, tmp_path / "warm")
    few, many = held(4, tmp_path / "few"), held(16, tmp_path / "many")

    assert (many[1] - few[1]) / (many[0] - few[0]) <= 2048
