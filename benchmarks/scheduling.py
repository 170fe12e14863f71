"""Makespan of the loop's schedule relative to the lower bound, on a mix of attacks whose costs differ 170-fold.

Hours of 16 attacks on a wide residual network (CIFAR-10, one GPU), as a published comparison of eleven schemes measured
them: quantisation takes a minute, a knock-off model three hours. For every seed one model is trained; every scheme
embeds into it; every attack is followed by its verification. All on virtual workers, by the loop that runs experiments.

    ours       the loop; expected hours depend on the kind of task
    unaware    the same loop with equal expected durations: shows the value of known durations
    barrier    stage by stage, and attack by attack: the next starts when the last worker has finished
    static     the list of (seed, scheme, attack) is cut into one piece per worker in advance; earlier stages as above

Each is makespan / lower bound, the larger of total work / workers and the critical path. No schedule reaches that bound
if few tasks can run while the first models are trained; "graph" is the bound that respects the graph's order
(``wmarena.orchestrator.running.simulate``), and "ours/graph" the policy's share. "given" is the mix with existing
models.

    python -m benchmarks.scheduling [--seeds 1 10] [--workers 1 2 4 ... 512] [--spread 0.3] [--json FILE]
"""

import argparse
import heapq
import json
import math
import random
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.task import Kind, Task
from wmarena.orchestrator.running.simulate import Schedule, simulate
from wmarena.orchestrator.store.local import Store

TRAIN_H = 0.967
ATTACK_H = {
    "ftll": 0.028,
    "ftal": 0.040,
    "rtll": 0.073,
    "rtal": 0.096,
    "weight shifting": 0.158,
    "regularisation": 0.409,
    "unlearning": 0.262,
    "neuron pruning": 0.160,
    "fine-pruning": 0.176,
    "adversarial training": 0.227,
    "laundering": 0.159,
    "quantisation": 0.017,
    "retraining": 0.992,
    "knock-off": 2.870,
    "transfer": 0.383,
    "adversarial extraction": 2.244,
}
VERIFY_H = 8 / 3600
N_SCHEMES = 11

Hours = Callable[[Task], float]


@dataclass(frozen=True)
class Mix:
    """The graph, and its tasks as lists for schedules without a graph.

    Attributes:
        cells: (attack, verify) in the order of a grid: seed, scheme, attack.
    """

    plan: Plan
    trains: list[Task]
    embeds: list[Task]
    cells: list[tuple[Task, Task]]


def mix(n_seeds: int, n_schemes: int = N_SCHEMES, *, given: bool = False) -> Mix:
    """Seeds x schemes x attacks; a task's ``cost`` is the hours of its kind.

    Args:
        given: training and embedding cost nothing.
    """
    train_h = 0.0 if given else TRAIN_H
    made = Mix(Plan(), [], [], [])

    def task(kind: Kind, seed: int, hours: float, *parents: tuple[str, Task], **names: str) -> Task:
        found = Task(kind, names, seed, tuple((r, t.id) for r, t in parents), "", "", cost=hours, **names)
        made.plan.add([found])
        return found

    for seed in range(n_seeds):
        train = task(Kind.TRAIN, seed, train_h)
        made.trains.append(train)
        for number in range(n_schemes):
            scheme = f"scheme {number}"
            embed = task(Kind.EMBED, seed, train_h, ("clean", train), scheme=scheme)
            made.embeds.append(embed)
            for name, hours in ATTACK_H.items():
                attack = task(Kind.ATTACK, seed, hours, ("victim", embed), scheme=scheme, attack=name)
                roles = ("suspect", attack), ("owner", embed)
                made.cells.append((attack, task(Kind.VERIFY, seed, VERIFY_H, *roles, scheme=scheme, attack=name)))
    return made


def spread(plan: Plan, sigma: float) -> Hours:
    """Draw durations: hours of the kind times a log-normal factor of median 1, equal in every schedule."""
    draw = random.Random(0)
    factor = {task.id: math.exp(draw.gauss(0.0, sigma)) for task in plan}
    return lambda task: task.cost * factor[task.id]


def list_schedule(lengths: Iterable[float], n_workers: int) -> float:
    """Compute the makespan in hours if each task goes, in order, to the first free worker."""
    free = [0.0] * n_workers  # heap of the times at which workers become free (Graham's list scheduling)
    for length in lengths:
        heapq.heapreplace(free, free[0] + length)
    return max(free)


def before_attacks(found: Mix, hours: Hours, n_workers: int) -> float:
    """Compute the hours of training and embedding, with a barrier after each."""
    return sum(list_schedule(map(hours, stage), n_workers) for stage in (found.trains, found.embeds))


def barrier(found: Mix, hours: Hours, n_workers: int) -> float:
    """Compute the makespan attack by attack, each with its verification, with a barrier after each attack."""
    by_attack = groupby(sorted(found.cells, key=_attack), key=_attack)
    stages = ([hours(a) + hours(v) for a, v in cells] for _, cells in by_attack)
    return before_attacks(found, hours, n_workers) + sum(list_schedule(stage, n_workers) for stage in stages)


def _attack(cell: tuple[Task, Task]) -> str:
    return cell[0].attack


def static(found: Mix, hours: Hours, n_workers: int) -> float:
    """Compute the makespan of the grid cut into one equal piece per worker."""
    lengths = [hours(a) + hours(v) for a, v in found.cells]
    cuts = [round(i * len(lengths) / n_workers) for i in range(n_workers + 1)]
    longest = max(sum(lengths[a:b]) for a, b in pairwise(cuts))
    return before_attacks(found, hours, n_workers) + longest


def compare(found: Mix, hours: Hours, n_workers: int, store: Store) -> dict[str, Any]:
    """Compute makespans relative to the lower bound, and the bounds in hours."""

    def loop(expected: Hours) -> Schedule:
        return simulate(found.plan, n_workers, store=store, expected=expected, actual=hours)

    ours = loop(lambda task: task.cost)
    makespans = {
        "ours": ours.makespan_s,
        "unaware": loop(lambda task: 1.0).makespan_s,
        "barrier": barrier(found, hours, n_workers),
        "static": static(found, hours, n_workers),
        "graph": ours.graph_bound_s,
    }
    return {
        "workers": n_workers,
        "bound": ours.lower_bound_s,
        "bounded_by": "critical path" if ours.lower_bound_s == ours.critical_path_s else "work",
        **{name: hours / ours.lower_bound_s for name, hours in makespans.items()},
        "ours/graph": ours.makespan_s / ours.graph_bound_s,
        "saved": 1 - ours.makespan_s / makespans["barrier"],
    }


COLUMNS = ("ours", "unaware", "barrier", "static", "graph", "ours/graph")


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table of one mix."""
    names = "".join(f"{name:>11}" for name in COLUMNS)
    print(f"{'workers':>8} {'bound, h':>9} {'bounded by':>14}{names}{'vs barrier':>12}")
    for row in rows:
        ratios = "".join(f"{row[name]:11.3f}" for name in COLUMNS)
        print(f"{row['workers']:8} {row['bound']:9.2f} {row['bounded_by']:>14}{ratios}{-100 * row['saved']:10.0f} %")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 10], help="one table for each")
    parser.add_argument("--workers", type=int, nargs="+", default=[2**i for i in range(10)])
    parser.add_argument("--spread", type=float, default=0.3, help="log-normal sigma of durations the loop cannot know")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        store = Store(temporary)
        for n_seeds in options.seeds:
            for given, sigma in dict.fromkeys(((True, 0.0), (False, 0.0), (False, options.spread))):
                made = mix(n_seeds, given=given)
                title = f"{n_seeds} seeds x {N_SCHEMES} schemes x {len(ATTACK_H)} attacks, {len(made.plan)} tasks"
                title += ", models given" if given else ""
                title += f", durations spread by {sigma:g}" if sigma else ""
                hours = spread(made.plan, sigma)
                found[title] = [compare(made, hours, n, store) for n in options.workers]
                print(f"\n{title}\n")
                show(found[title])
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
