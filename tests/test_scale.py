"""Memory of the driver per task, by counted allocations."""

import gc
import tracemalloc
from pathlib import Path

from benchmarks.scale import drive, spec_of
from wmarena.experiments.planning.expand import expand


def peak_memory(n_seeds: int, folder: Path) -> tuple[int, int]:
    """Measure (tasks, bytes at the peak) of expanding and executing the plan of ``n_seeds`` seeds."""
    gc.collect()
    tracemalloc.start()
    try:
        expansion = expand(spec_of(n_seeds))
        drive(expansion, folder, 64, "run")
        return len(expansion.plan), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_task_costs_its_driver_two_kilobytes_at_most(tmp_path: Path) -> None:
    """Plan, ledger, records and journal together, beyond the constant part."""
    peak_memory(1, tmp_path / "warm")
    few, many = peak_memory(4, tmp_path / "few"), peak_memory(16, tmp_path / "many")

    assert (many[1] - few[1]) / (many[0] - few[0]) <= 2048
