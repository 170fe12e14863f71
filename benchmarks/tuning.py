"""Driver time per trial: ask TPE, plan, evaluate and tell, with 1,000 finished trials in the study.

python -m benchmarks.tuning [--finished N] [--trials N]

Tasks compute nothing and return synthetic results, so that the study's own time remains. Recording is excluded.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from wmarena.experiments.planning.workload_planner import PlannerCache
from wmarena.experiments.study.documents import describe
from wmarena.experiments.study.source import Trials
from wmarena.experiments.study.spec import StudySpec
from wmarena.experiments.study.trial import Trial
from wmarena.experiments.workloads import WORKLOADS
from wmarena.orchestrator.executors.inline import InlineExecutor
from wmarena.orchestrator.journal.journal import Journal
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.proposals import TrialOutcome
from wmarena.orchestrator.plan.task import Kind, Task
from wmarena.orchestrator.running.runner import RunRequest, run_plan
from wmarena.orchestrator.store.local import Store
from wmarena.orchestrator.tuner import Tuner, open_storage
from wmarena.orchestrator.worker.context import Setup, WorkerContext
from wmarena.schemes.base import Verdict

STUDY = """\
name: overhead
experiment:
  workloads: [{name: digits_mlp}]
  schemes: [{name: mtlsign}]
  attacks:
    - {name: finetune, variant: ftal, epochs: [1, 5, 20]}
    - {name: prune_weights, sparsity: [0.2, 0.4, 0.6, 0.8]}
    - {name: fine_prune, ratio: [0.4, 0.8]}
  seeds: [0, 1]
search:
  schemes.mtlsign.lambda1: {low: 0.02, high: 0.2}
  schemes.mtlsign.lambda2: {low: 0.02, high: 0.2}
  gamma: {low: 0.5, high: 1.0}
objectives: {robustness: maximize}
constraints: [fidelity_drop <= 0.01]
trials: 1
sampler: tpe
"""


def synthetic(context: WorkerContext, task: Task) -> Mapping[str, Any]:
    """Return a result of the right shape, slightly different for every task."""
    noise = int(task.id[:6], 16) / 0xFFFFFF
    common = {"seconds": 0.0, "device": "none", "environment": {}, "consumed": {}}
    if task.kind is Kind.VERIFY:
        verdict = Verdict.binomial(int(400 + 200 * noise), 600, 0.5, access="white", paper=True)
        return {"verdict": {**asdict(verdict), "caveats": [], "details": {}}, **common}
    made = {"metric": "accuracy", "metric_test": 0.9, "metric_val": 0.9 + 0.005 * noise, "made": task.id}
    return made | common | ({"covertness_mean_abs_dev": 0.01 * noise} if task.kind is Kind.EMBED else {})


def fill(tuner: Tuner, journal: Journal, study: StudySpec, finished: int) -> None:
    """Add finished trials to Optuna's storage and to our journal."""
    for _ in range(finished):
        proposal = tuner.ask()
        outcome = TrialOutcome(
            state="complete", values=(float(str(proposal.params["gamma"])),), constraints={"x": -1.0}
        )
        tuner.tell(proposal.number, outcome)
        document = describe(Trial(proposal.number, proposal.params), study, outcome)
        journal.record_trial(study.name, proposal.number, document)


def measure(folder: Path, finished: int, trials: int) -> tuple[list[float], float]:
    """Measure driver seconds per trial, and processor seconds of all trials with loop and journal."""
    study = StudySpec.parse(STUDY)
    store = Store(folder / "store").open()
    with (
        Journal(store.journal_path) as journal,
        open_storage(store.root / "studies", study.name, None) as storage,
    ):
        filler = Tuner(study.name, storage, study.space, ["maximize"], study.method())
        fill(filler, journal, study, finished)
        tuner = Tuner(study.name, storage, study.space, ["maximize"], study.method())
        source = Trials(study, tuner, journal, budget=finished + trials, planners=PlannerCache(None))
        executor = InlineExecutor(
            Setup(store=store.root, data_root=None, root_file=None, workloads=WORKLOADS), synthetic
        )
        request, began = RunRequest("run", study.name, ""), time.process_time()
        run_plan(Plan(), request, store=store, journal=journal, executor=executor, source=source)
    return source.overheads, time.process_time() - began


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--finished", type=int, default=1000)
    parser.add_argument("--trials", type=int, default=30)
    args = parser.parse_args()
    columns = ("finished trials", "median, ms a trial", "90th percentile", "processor, loop and journal included")
    print(f"| {' | '.join(columns)} |\n|{' ---: |' * len(columns)}")
    for finished in (0, args.finished):
        with tempfile.TemporaryDirectory() as folder:
            found, processor = measure(Path(folder), finished, args.trials)
        late = quantiles(found[1:], n=10)[-1]  # the first trial reads data and code, later ones use the cache
        cells = (f"{1000 * seconds:.0f}" for seconds in (median(found[1:]), late, processor / args.trials))
        print(f"| {finished} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
