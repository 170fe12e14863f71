"""Driver cost per task for plans of 2,000, 20,000, 100,000 tasks: processor time and memory, ratios of one run.

The plan is expanded from a real spec (the bundled digits; schemes x attacks x seeds) and executed by the real loop
(store, journal on disk, ledger) on workers in virtual time, so that only the driver is measured. Each size has its own
process; sizes are interleaved, the fastest repetition counts. Memory is the growth of the largest resident set since
before expansion; "beyond a constant" is its slope
between the smallest and the largest plan. Tasks have empty results; real results need additional memory.

    python -m benchmarks.scale [--sizes 2000 20000 100000] [--repeat 2] [--workers 256] [--json FILE]
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from wmarena.experiments.planning.expand import Expansion, expand
from wmarena.experiments.spec.experiment import ExperimentSpec
from wmarena.orchestrator.executors.virtual import VirtualExecutor
from wmarena.orchestrator.journal.journal import Journal
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.running.runner import RunRequest, run_plan
from wmarena.orchestrator.store.local import Store

SPEC = """
name: scale
workloads: [{{name: digits_mlp}}]
schemes: [uchida, adi, mtlsign]
attacks:
  - {{name: finetune, variant: [ftal, rtal, ftll, rtll], epochs: [1, 5, 20, 50]}}
  - {{name: prune_weights, sparsity: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]}}
  - {{name: quantize, bits: [2, 3, 4, 5, 6, 8]}}
seeds: {seeds}
"""
T = TypeVar("T")
PARTS = ("expand", "run", "both", "resume")


def spec_of(n_seeds: int) -> ExperimentSpec:
    """Parse the spec with ``n_seeds`` seeds."""
    return ExperimentSpec.parse(SPEC.format(seeds=list(range(n_seeds))))


def seeds_for(n_tasks: int) -> int:
    """Compute the number of seeds for about ``n_tasks`` tasks."""
    return max(1, round(n_tasks / (len(expand(spec_of(4)).plan) - len(expand(spec_of(3)).plan))))


def drive(expansion: Expansion, folder: Path, n_workers: int, run: str) -> None:
    """Execute the plan as ``wmarena run`` does, each task for its estimated duration."""
    store = Store(folder).open()
    with Journal(store.journal_path) as journal:
        executor = VirtualExecutor(n_workers, lambda task: task.cost)
        run_plan(expansion.plan, RunRequest(run, "scale", ""), store=store, journal=journal, executor=executor)


def resident() -> int:
    """Read the bytes of the largest resident set so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(n_tasks: int, n_workers: int) -> dict[str, float]:
    """Measure seconds of each part, bytes and tasks of one plan in this process."""
    n_seeds = seeds_for(n_tasks)
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        drive(expand(spec_of(2)), root / "warm", n_workers, "warm")
        spec, before = spec_of(n_seeds), resident()
        expansion = timed(found, "expand", lambda: expand(spec))
        found["expand_bytes"] = resident() - before
        timed(found, "run", lambda: drive(expansion, root / "store", n_workers, "first"))
        found["bytes"] = resident() - before
        found["both"] = found["expand"] + found["run"]
        # Resumed with a new plan, as the next command would be.
        timed(
            found,
            "resume",
            lambda: drive(Expansion(Plan(expansion.plan, expansion.plan.cells)), root / "store", n_workers, "second"),
        )
    return found | {"tasks": len(expansion.plan), "cells": len(expansion.plan.cells)}


def timed(found: dict[str, float], name: str, function: Callable[[], T]) -> T:
    """Call the function and record its processor seconds, which other load on the machine affects less."""
    started = time.process_time()
    result = function()
    found[name] = time.process_time() - started
    return result


def measure_in_process(n_tasks: int, n_workers: int) -> dict[str, float]:
    """Run ``measure`` in a new process."""
    command = [sys.executable, "-m", "benchmarks.scale", "--one", str(n_tasks), "--workers", str(n_workers)]
    found: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    return found


def best(repeated: list[dict[str, float]]) -> dict[str, float]:
    """Select the minimum of each figure: disturbances only add."""
    return {name: min(found[name] for found in repeated) for name in repeated[0]}


def show(rows: list[dict[str, float]]) -> None:
    """Print the table: microseconds and bytes a task, then everything against the smallest plan."""
    first, last = rows[0], rows[-1]
    names = "".join(f"{name:>10}" for name in PARTS)
    print(f"{'tasks':>8}{names} {'KB a task':>10}    us a task; against the smallest plan")
    for row in rows:
        each = [1e6 * row[part] / row["tasks"] for part in PARTS]
        ratios = [row[part] / row["tasks"] / (first[part] / first["tasks"]) for part in PARTS]
        times = " ".join(f"{us:9.1f}" for us in each)
        against = "  ".join(f"{part} {ratio:.2f}" for part, ratio in zip(PARTS, ratios, strict=True))
        print(f"{row['tasks']:8.0f} {times} {row['bytes'] / row['tasks'] / 1024:10.2f}    {against}")
    if last is not first:
        slope = (last["bytes"] - first["bytes"]) / (last["tasks"] - first["tasks"])
        planned = (last["expand_bytes"] - first["expand_bytes"]) / (last["tasks"] - first["tasks"])
        print(f"\nbeyond a constant: {slope / 1024:.2f} KB a task, {planned / 1024:.2f} of it the plan")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[2_000, 20_000, 100_000], help="tasks, about")
    parser.add_argument("--repeat", type=int, default=2, help="interleaved repetitions")
    parser.add_argument("--workers", type=int, default=256, help="virtual workers")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--one", type=int, metavar="TASKS", help="measure one size here and print it as JSON")
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measure(options.one, options.workers)))
        return
    found: dict[int, list[dict[str, float]]] = {size: [] for size in sorted(options.sizes)}
    for _ in range(options.repeat):
        for size, repeated in found.items():
            repeated.append(measure_in_process(size, options.workers))
    rows = [best(repeated) for repeated in found.values()]
    print(f"{options.workers} virtual workers, best of {options.repeat}\n")
    show(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
