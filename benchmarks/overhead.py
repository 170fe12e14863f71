"""Overhead of the orchestrator per task: 2,051 no-op tasks, 1 -> 50 -> 1,000 -> 1,000, in one run.

Side by side: a plain ready queue in this process, our loop with the inline executor, a hand-written ready queue over
raw Ray actors (one call in flight per actor), our loop with the Ray executor, one task a call and several; ours with
journal. Then resuming the finished plan. Repetitions are interleaved; medians are printed, and the median of the
repetitions' ratios, which is more robust against other load on the machine.

    python -m benchmarks.overhead [--repeat 5] [--workers 2] [--json FILE]
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from wmarena.orchestrator.executors.base import Completion, Executor
from wmarena.orchestrator.executors.inline import InlineExecutor
from wmarena.orchestrator.executors.ray import RayExecutor
from wmarena.orchestrator.journal.journal import Journal
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.task import Kind, Task
from wmarena.orchestrator.running.runner import RunRequest, run_plan
from wmarena.orchestrator.store.local import Store
from wmarena.orchestrator.worker.context import Setup, WorkerContext

PAYLOAD = "x" * 1000
BASE = "raw Ray actors, hand-written queue"


def noop(context: WorkerContext | None, task: Task) -> Mapping[str, Any]:
    """Return 1 KB without computing anything."""
    return {"payload": PAYLOAD}


def fan(n_embeds: int = 50, attacks_per_embed: int = 20) -> Plan:
    """Build a plan: 1 train -> n embeds -> n x a attacks -> as many verifies."""
    plan = Plan()

    def task(kind: Kind, index: int, *parents: tuple[str, Task]) -> Task:
        made = Task(kind, {"i": index}, 0, tuple((r, t.id) for r, t in parents), "", "", label=f"{kind}/{index}")
        plan.add([made])
        return made

    root = task(Kind.TRAIN, 0)
    for e in range(n_embeds):
        embed = task(Kind.EMBED, e, ("clean", root))
        for a in range(attacks_per_embed):
            index = e * attacks_per_embed + a
            attack = task(Kind.ATTACK, index, ("victim", embed))
            task(Kind.VERIFY, index, ("suspect", attack), ("owner", embed))
    return plan


def ready_queue(plan: Plan) -> None:
    """Execute the plan with a deque and in-degrees, without processes (lower bound)."""
    missing = {t.id: len(t.parent_ids) for t in plan}
    ready = deque(t for t in plan if not missing[t.id])
    while ready:
        task = ready.popleft()
        noop(None, task)
        for child in plan.children(task.id):
            missing[child] -= 1
            if not missing[child]:
                ready.append(plan.tasks[child])


class RawActor:
    """A minimal actor."""

    def perform(self, task: Task) -> Mapping[str, Any]:
        """Execute one task."""
        return noop(None, task)


def raw_ray(plan: Plan, actors: list[Any]) -> None:
    """Execute the plan on raw Ray actors, one call in flight per actor."""
    missing = {t.id: len(t.parent_ids) for t in plan}
    ready = deque(t for t in plan if not missing[t.id])
    idle, in_flight = list(actors), {}
    while ready or in_flight:
        while ready and idle:
            actor, task = idle.pop(), ready.popleft()
            in_flight[actor.perform.remote(task)] = (actor, task)
        done, _ = ray.wait(list(in_flight), num_returns=1)
        for call in done:
            actor, task = in_flight.pop(call)
            ray.get(call)
            idle.append(actor)
            for child in plan.children(task.id):
                missing[child] -= 1
                if not missing[child]:
                    ready.append(plan.tasks[child])


class KeptRay(RayExecutor):
    """A Ray executor that keeps its workers between runs, so that start-up is not measured.

    Attributes:
        slow: report one second per task, so that tasks are not batched.
    """

    slow = False

    def wait(self, timeout: float) -> list[Completion]:
        ended = super().wait(timeout)
        return [replace(completion, seconds=1.0) for completion in ended] if self.slow else ended

    def start(self) -> None:
        if not self.workers:
            super().start()

    def stop(self) -> None:
        """Do nothing; see ``close``."""

    def close(self) -> None:
        """Stop the workers."""
        super().stop()


def ours(plan: Plan, executor: Executor, folder: Path, run: str = "run") -> None:
    """Run our loop with its journal on a new store, or resume an existing one."""
    store = Store(folder).open()
    with Journal(store.journal_path) as journal:
        run_plan(plan, RunRequest(run, "overhead", "", {}), store=store, journal=journal, executor=executor)


def timed(function: Callable[..., None], *arguments: Any) -> float:
    """Measure wall seconds of one call."""
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def measure(repeat: int, n_workers: int) -> dict[str, list[float]]:
    """Measure seconds of every repetition of every variant, interleaved."""
    plan = fan()
    found: dict[str, list[float]] = {}

    def record(name: str, seconds: float) -> None:
        found.setdefault(name, []).append(seconds)

    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        Store(root).open()  # workers require an existing store
        pool = KeptRay(Setup(store=root), workers=n_workers, perform="benchmarks.overhead:noop")
        pool.start()
        actors = [ray.remote(RawActor).options(num_cpus=0).remote() for _ in range(n_workers)]
        raw_ray(fan(2, 2), actors)
        for index in range(repeat):
            inline, resumed = root / f"inline-{index}", InlineExecutor(Setup(store=root), perform=noop)
            record("planning (ids of all tasks)", timed(fan_ids))
            record("ready queue in one process", timed(ready_queue, plan))
            record("ours, inline, journal", timed(ours, plan, resumed, inline))
            record("ours, resuming a finished plan", timed(ours, plan, resumed, inline, "again"))
            record(BASE, timed(raw_ray, plan, actors))
            for name, pool.slow in (("ours, Ray, journal, one task a call", True), ("ours, Ray, journal", False)):
                record(name, timed(ours, plan, pool, root / f"ray-{index}-{pool.slow}"))
        pool.close()
    return found


def fan_ids() -> None:
    """Build the plan and the ids of all its tasks."""
    for task in fan():
        _ = task.id


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=5, help="interleaved repetitions")
    parser.add_argument("--workers", type=int, default=2, help="Ray actors")
    parser.add_argument("--json", type=Path, help="also write the seconds here")
    options = parser.parse_args()
    found = measure(options.repeat, options.workers)
    n_tasks = len(fan())
    print(f"{n_tasks} no-op tasks, {options.workers} workers, {os.cpu_count()} cores, median of {options.repeat}\n")
    print(f"{'variant':40} {'us/task':>9} {'min':>8} {'max':>8} {'vs raw Ray':>11}")
    for name, seconds in found.items():
        us = [1e6 * s / n_tasks for s in seconds]
        ratio = statistics.median(s / raw for s, raw in zip(seconds, found[BASE], strict=True))
        print(f"{name:40} {statistics.median(us):9.1f} {min(us):8.1f} {max(us):8.1f} {ratio:11.2f}")
    if options.json:
        options.json.write_text(json.dumps({"n_tasks": n_tasks, "seconds": found}, indent=1))


if __name__ == "__main__":
    main()
