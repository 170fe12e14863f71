"""Supplies the trials of a study to the loop: asks Optuna when a worker would idle, and tells it outcomes.

The journal is written before Optuna, so a killed study knows which trials have ended. The others are retried with the
same parameters and reuse finished tasks from the store.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from wmarena.experiments.planning.expand import expand
from wmarena.experiments.planning.workload_planner import PlannerCache
from wmarena.experiments.spec.experiment import ExperimentSpec
from wmarena.experiments.spec.problems import SpecError
from wmarena.experiments.study.documents import CONFIRMED, FINISHED, describe
from wmarena.experiments.study.gamma import Statistics
from wmarena.experiments.study.measures import MEASURES, MeasureCall, first_look, mean, taken
from wmarena.experiments.study.pareto import best_of
from wmarena.experiments.study.spec import StudySpec
from wmarena.experiments.study.trial import Trial, TrialResults, TrialStage, stages_of
from wmarena.orchestrator.journal.journal import Journal
from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.growth import Growth
from wmarena.orchestrator.plan.plan import Cell
from wmarena.orchestrator.plan.proposals import TrialOutcome
from wmarena.orchestrator.plan.task import Task, TaskId
from wmarena.orchestrator.tuner import Tuner

TrialListener = Callable[[Mapping[str, Any]], None]
"""Called with the document of every trial that ends."""

_EPSILON = 1e-12


class Trials:
    """The trials of a study; a ``wmarena.orchestrator.plan.growth.TaskSource``.

    Args:
        tuner: proposes parameters.
        journal: keeps the trials' documents.
        budget: total number of finished trials.
        only: selects the cells that a trial may use; None for all. Missing evidence is then not computed.
        on_trial_end: called with the document of every trial that ends.
    """

    def __init__(
        self,
        study: StudySpec,
        tuner: Tuner,
        journal: Journal,
        budget: int,
        planners: PlannerCache,
        *,
        only: Callable[[Cell], bool] | None = None,
        on_trial_end: TrialListener = lambda document: None,
    ) -> None:
        self.study = study
        self.overheads: list[float] = []
        self._tuner = tuner
        self._journal = journal
        self._budget = budget
        self._planners = planners
        self._only = only
        self._on_trial_end = on_trial_end
        self._known: dict[TaskId, Record] = {}
        self._planned: set[TaskId] = set()
        self._in_table: set[TaskId] = set()
        self._live: dict[int, Trial] = {}
        self._waiting: dict[TaskId, list[Trial]] = defaultdict(list)
        self._grown: deque[Growth] = deque()
        self._settled: deque[Trial] = deque()
        self._ended = {n: d for n, d in journal.trials(study.name).items() if d["state"] in FINISHED}
        self._confirmed = False

    @property
    def documents(self) -> list[dict[str, Any]]:
        """Every trial that has ended, by number."""
        return [self._ended[number] for number in sorted(self._ended)]

    # Interface of the loop

    def settled(self, task: Task, record: Record) -> None:
        """Record a task that has ended; trials whose stage it completes can continue."""
        self._known[task.id] = record
        for trial in self._waiting.pop(task.id, ()):
            with _timed(trial):
                trial.open.discard(task.id)
                self._add(trial, *trial.extend(task, self._known))
                if not trial.open:
                    self._settled.append(trial)

    def more(self) -> Growth | None:
        """Return the next stage of a waiting trial, else a new trial, else the confirmation of the best."""
        while True:
            if self._grown:
                return self._grown.popleft()
            if self._settled:
                self._continue(self._settled.popleft())
            elif self._wanted:
                self._start()
            elif not self._live and not self._confirmed:
                self._confirmed = True
                self._confirm()
            else:
                return None

    @property
    def _wanted(self) -> bool:
        if self._tuner.warm_left:
            return True
        counted = sum(not document["warm"] for document in self._ended.values())
        return counted + sum(not trial.warm for trial in self._live.values()) < self._budget

    # Life cycle of a trial

    def _start(self) -> None:
        asked, started = time.perf_counter(), time.time()
        proposal = self._tuner.ask()
        trial = Trial(proposal.number, proposal.params, warm=proposal.warm, started=started)
        trial.planned_s = time.perf_counter() - asked
        with _timed(trial):
            self._journal.record_trial(self.study.name, proposal.number, describe(trial, self.study, "running"))
            excluded = self._excluded(trial)
            if excluded:
                self._end(
                    trial, TrialOutcome(state="pruned", constraints=excluded), why="infeasible: γ alone decides it"
                )
                return
            try:
                self._plan(trial, self.study.question.with_params(proposal.params, name=self.study.name))
            except SpecError as error:
                self._end(trial, TrialOutcome(state="failed"), why=str(error))
                return
            self._live[proposal.number] = trial
            self._begin(trial)

    def _plan(self, trial: Trial, spec: ExperimentSpec) -> None:
        expansion = expand(spec, data_root=self.study.question.data_root, planners=self._planners)
        on = self.study.pruner.on if self.study.pruner.name != "none" else None
        trial.plan, trial.searches = expansion.plan, expansion.searches
        trial.stages = stages_of(expansion, on, self._only)

    def _begin(self, trial: Trial) -> None:
        """Plan the next stage; one whose evidence this run already has ends at once."""
        tasks, cells = trial.begin(self._known)
        for verify in trial.open:
            self._waiting[verify].append(trial)
        self._add(trial, tasks, cells)
        if not trial.open:
            self._settled.append(trial)

    def _add(self, trial: Trial, tasks: Iterable[Task], cells: Iterable[Cell]) -> None:
        new = [task for task in tasks if task.id not in self._planned]
        shown = [cell for cell in cells if cell.verify not in self._in_table]
        self._planned |= {task.id for task in new}
        self._in_table |= {cell.verify for cell in shown}
        for cell in cells:
            if cell.verify in trial.open and trial not in self._waiting[cell.verify]:
                self._waiting[cell.verify].append(trial)
        if new or shown:
            self._grown.append((new, shown))

    def _continue(self, trial: Trial) -> None:
        """Evaluate a complete stage, then end the trial or plan the next one."""
        with _timed(trial):
            found = trial.evidence(self._known, self.study.name)
            if found.failure is not None:
                self._end(trial, TrialOutcome(state="failed"), found, why=found.failure)
            elif trial.number is not None and (why := self._prune_reason(trial, found)) is not None:
                self._end(trial, TrialOutcome(state="pruned", constraints=self._excesses(found)), found, why=why)
            elif trial.stages:
                self._begin(trial)
            else:
                self._end(trial, self._outcome(found), found)

    def _end(self, trial: Trial, outcome: TrialOutcome, found: TrialResults | None = None, why: str = "") -> None:
        if outcome.state == "failed" and not why:
            why = "no evidence for an objective"
        document = describe(trial, self.study, outcome, found, why)
        if trial.number is None:
            self._journal.record_trial(CONFIRMED.format(self.study.name), int(trial.label == "best"), document)
        else:
            self._journal.record_trial(self.study.name, trial.number, document)
            self._tuner.tell(trial.number, outcome)
            self._live.pop(trial.number, None)
            self._ended[trial.number] = document
            self.overheads.append(trial.planned_s)
        self._on_trial_end(document)

    # Evaluation of a trial

    def _prune_reason(self, trial: Trial, found: TrialResults) -> str | None:
        """Return the reason to prune a trial, or None."""
        stage = trial.stage
        assert stage is not None
        pruned = self._pruned(trial, stage, found)  # first, because it also reports the value to Optuna
        return self._infeasible(stage, found) or pruned or self._unreachable(trial, stage, found)

    def _excluded(self, trial: Trial) -> dict[str, float]:
        """Return limits that γ alone breaks: false positives depend on γ, n and q only, and n and q are known."""
        known = {(d["statistics"]["n"], d["statistics"]["q"]) for d in self._ended.values() if "statistics" in d}
        if trial.gamma is None or self._draws_keys or len(known) != 1:
            return {}
        n, q = known.pop()
        bound = Statistics(n=n, q=q).false_positive_bound(trial.gamma)
        rates = [limit for limit in self.study.constraints if limit.asked.name == "false_positive_rate"]
        excesses = {str(limit): limit.excess(bound) for limit in rates} if bound is not None else {}
        return {name: excess for name, excess in excesses.items() if excess > _EPSILON}

    @property
    def _draws_keys(self) -> bool:
        """True if the search changes keys, and so perhaps n and q."""
        scheme = self.study.question.spec.schemes[0]
        keyed = {name for name, info in scheme.parameters().items() if info.stage == "key"}
        return any(path.startswith("schemes.") and path.rpartition(".")[2] in keyed for path in self.study.space)

    def _infeasible(self, stage: TrialStage, found: TrialResults) -> str | None:
        """Check limits that need no attack, at the first verification."""
        for limit in self.study.constraints if stage.first else ():
            value = mean(limit.asked, found.units) if first_look(limit.asked) else None
            if value is not None and limit.excess(value) > _EPSILON:
                return f"infeasible: expected {limit}, got {value:.4g} at the first verification"
        return None

    def _pruned(self, trial: Trial, stage: TrialStage, found: TrialResults) -> str | None:
        if stage.rung is None or trial.number is None:
            return None
        value = mean(self._objective, found.units)
        if value is None:
            return None
        trial.reported.append((stage.rung, value))
        pruned = self._tuner.report(trial.number, value, stage.rung)
        pruner = self.study.pruner
        return f"{pruner.name} pruner at {pruner.on}={stage.rung}: {value:.4g}" if pruned and trial.stages else None

    def _unreachable(self, trial: Trial, stage: TrialStage, found: TrialResults) -> str | None:
        """Prune if the mean could not reach the best trial's even with perfect values on all remaining seeds."""
        left = sum(stage.last for stage in trial.stages) * len(self.study.question.spec.workloads)
        if not stage.last or not left or len(self.study.objectives) > 1:
            return None
        (asked, direction), measure = next(iter(self.study.objectives.items())), MEASURES[self._objective.name]
        perfect = measure.best_high if direction == "maximize" else measure.best_low
        values, best = taken(asked, found.units), self._best_value
        if perfect is None or values is None or best is None or measure.pooled:
            return None
        reach = (sum(values) + left * perfect) / (len(values) + left)
        worse = reach < best - _EPSILON if direction == "maximize" else reach > best + _EPSILON
        return f"cannot reach the best trial's {best:.4g}: at most {reach:.4g} with perfect seeds" if worse else None

    @property
    def _objective(self) -> MeasureCall:
        return next(iter(self.study.objectives))

    @property
    def _best_value(self) -> float | None:
        best = best_of(self.documents, self.study)
        return None if best is None else float(best["values"][str(self._objective)])

    def _excesses(self, found: TrialResults) -> dict[str, float]:
        known = {str(limit): (limit, mean(limit.asked, found.units)) for limit in self.study.constraints}
        return {name: limit.excess(value) for name, (limit, value) in known.items() if value is not None}

    def _outcome(self, found: TrialResults) -> TrialOutcome:
        values = [mean(asked, found.units) for asked in self.study.objectives]
        excesses = self._excesses(found)
        if None in values or len(excesses) < len(self.study.constraints):
            return TrialOutcome(state="failed")
        return TrialOutcome(state="complete", values=tuple(v for v in values if v is not None), constraints=excesses)

    # Confirmation on fresh seeds

    def _confirm(self) -> None:
        best = best_of(self.documents, self.study)
        seeds = self.study.confirm_seeds
        if best is None or seeds is None:
            return
        for label, params in (("default", {}), ("best", best["params"])):
            trial = Trial(None, dict(params), label=label, started=time.time())
            self._plan(trial, self.study.question.with_params(params, seeds=seeds, name=self.study.name))
            self._begin(trial)


@contextmanager
def _timed(trial: Trial) -> Iterator[None]:
    started = time.perf_counter()
    yield
    trial.planned_s += time.perf_counter() - started
