"""Runs a study: many trials at once on the workers of one run, then tables, figures and records.

from wmarena import StudySpec, tune

summary = tune(StudySpec.load("digits_lambda"), store="wmarena-store")
"""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Unpack

from wmarena.experiments.planning.expand import expand
from wmarena.experiments.planning.workload_planner import PlannerCache
from wmarena.experiments.results.table import build_rows, write_results
from wmarena.experiments.running.context import RunContext, RunOptions, check_keys
from wmarena.experiments.running.execution import count_states
from wmarena.experiments.running.pool import limits_of
from wmarena.experiments.spec.problems import SpecError
from wmarena.experiments.study.documents import CONFIRMED, FINISHED, TrialDocument
from wmarena.experiments.study.pareto import best_of, directions_of, front
from wmarena.experiments.study.publish import StudyPages, publish
from wmarena.experiments.study.resume import prepare, recall
from wmarena.experiments.study.source import TrialListener, Trials
from wmarena.experiments.study.spec import StudySpec
from wmarena.experiments.study.trial import rungs, stages_of
from wmarena.orchestrator.journal.journal import Journal
from wmarena.orchestrator.plan.events import Event
from wmarena.orchestrator.plan.plan import Cell, Plan
from wmarena.orchestrator.plan.plan_file import save_plan
from wmarena.orchestrator.plan.task import Task, TaskId
from wmarena.orchestrator.running.durations import expected_seconds
from wmarena.orchestrator.running.resume import find
from wmarena.orchestrator.running.runner import RunRequest
from wmarena.orchestrator.store.local import Store, safe_name
from wmarena.orchestrator.tuner import Tuner, open_storage


@dataclass(frozen=True, kw_only=True)
class StudySummary:
    """The result of a study, and the counts of this run of it.

    Attributes:
        trials: finished trials of the study, also of earlier runs.
        best: the best trial, or the Pareto front: number, params, values.
        failed_trials: of this run.
        busy: share of the workers' time that tasks took; None if no task ran.
        overhead_s: median driver seconds of a trial for Optuna and planning.
        shared_report: address of the report in a shared store, None for a local one.
    """

    study: str
    trials: int
    best: list[dict[str, Any]]
    run_id: str
    executed: int
    cached: int
    failed: int
    skipped: int
    failed_trials: int
    seconds: float
    busy: float | None
    overhead_s: float | None
    report: str
    table: str
    results: str
    shared_report: str | None = None

    @property
    def complete(self) -> bool:
        """True if no trial of this run failed."""
        return not self.failed_trials


def tune(
    study: StudySpec,
    *,
    trials: int | None = None,
    on_trial_end: TrialListener = lambda document: None,
    **options: Unpack[RunOptions],
) -> StudySummary:
    """Run the missing trials of ``study``; a killed study resumes.

    Args:
        trials: total number of finished trials; None for the study's own.
        on_trial_end: called with the document of every trial that ends.
        options: see ``RunOptions``.

    Raises:
        SpecError, MissingData, StoreError: bad input, or no workers; nothing has run.
        StoreBusy: another run has locked the store, or another driver tunes the study.
        NoWorkers, StoreLost: all workers, or the store, were lost during the run; the same call resumes.
        Interrupted: stopped; the same call resumes.
    """
    started, context, spec = time.monotonic(), RunContext(options), study.question.spec
    planners = PlannerCache(context.data_root)
    with (
        context.locked() as journal,
        journal.holding(f"study {study.name!r}", context.waiting),
        _open_storage(context.store, study, context.waiting) as storage,
    ):
        found = _StudyPlan.of(study, context.store, journal, planners)
        tuner = Tuner(study.name, storage, study.space, list(study.objectives.values()), study.method(found.rungs))
        prepare(study, tuner, context.store, journal, planners)
        budget = trials or study.trials or len(tuner.grid())
        source = Trials(study, tuner, journal, budget, planners, only=found.only, on_trial_end=on_trial_end)
        n_before, plan, busy = len(source.documents), Plan(), Utilisation()
        records = context.execute(
            plan,
            _request(study, context),
            journal,
            context.executor(spec, found.open_tasks, journal),
            cached=set(),
            seconds=expected_seconds(journal.durations()),
            listeners=[busy],
            source=source,
        )
        folder = context.store.report_dir(study.name, context.run_id)
        save_plan(plan, folder)
        results = write_results(build_rows(plan, records, experiment=study.name, run_id=context.run_id), folder)
        pages = publish(folder, study, source.documents, _confirmed(journal, study), tuner, busy.share)
        shared = context.store.share_report(folder)
    context.finish()
    ended = source.documents
    return StudySummary(
        study=study.name,
        trials=len(ended),
        best=_best(ended, study),
        run_id=context.run_id,
        **count_states(records),
        failed_trials=sum(d["state"] == "failed" for d in ended[n_before:]),
        seconds=round(time.monotonic() - started, 3),
        busy=busy.share,
        overhead_s=round(median(source.overheads), 6) if source.overheads else None,
        report=str(pages.report),
        table=str(pages.table),
        results=str(results),
        shared_report=shared,
    )


def _open_storage(
    store: Store, study: StudySpec, waiting: Callable[[str], None] | None = None
) -> AbstractContextManager[Any]:
    """Open and lock the study's storage."""
    return open_storage(store.root / "studies", safe_name(study.name), study.storage, waiting)


@dataclass(frozen=True)
class _StudyPlan:
    """Facts from the plan of the experiment as written, before any trial.

    Attributes:
        rungs: strengths at which a pruner decides.
        only: selects the cells that may be used; None for all.
        open_tasks: unfinished tasks, typical of all trials.
    """

    rungs: tuple[int, ...] = ()
    only: Callable[[Cell], bool] | None = None
    open_tasks: tuple[Task, ...] = ()

    @classmethod
    def of(cls, study: StudySpec, store: Store, journal: Journal, planners: PlannerCache) -> "_StudyPlan":
        """Raises SpecError if a pruner has fewer than two rungs, or a study of γ alone has no stored evidence."""
        spec = study.question.spec
        expansion = expand(spec, data_root=study.question.data_root, planners=planners)
        done = find(expansion.plan.tasks, store, journal).records
        if study.gamma_only:
            there = [cell for cell in expansion.plan.cells if cell.verify in done]
            if all(cell.control is not None or cell.attack != "none" for cell in there):
                what = f"expected stored evidence, got none of {spec.name!r}: γ trains nothing; `wmarena run` it first"
                raise SpecError.of(what, "experiment")
            return cls(only=lambda cell: cell.verify in done)
        check_keys(spec, store, done)
        open_tasks = tuple(task for task in expansion.plan if task.id not in done)
        if study.pruner.name == "none":
            return cls(open_tasks=open_tasks)
        looks = rungs(stages_of(expansion, study.pruner.on))
        if len(looks) < 2:
            what = f"expected attacks at two or more values of {study.pruner.on!r} to look at, got {len(looks)}"
            raise SpecError.of(what, "pruner", "on")
        return cls(rungs=looks, open_tasks=open_tasks)


@dataclass
class Utilisation:
    """A listener that measures the share of the workers' time that tasks took."""

    seconds: float = 0.0
    _begun: dict[TaskId, float] = field(default_factory=dict)
    _workers: dict[str, float] = field(default_factory=dict)
    _last: float = 0.0

    def __call__(self, event: Event) -> None:
        now = time.monotonic()
        if event.kind == "started":
            self._begun[event.task.id] = now
            self._workers.setdefault(event.worker, now)
        elif event.task.id in self._begun:
            begun = self._begun.pop(event.task.id)
            # Tasks of one batch start and end together: each counts its own seconds, not the whole interval.
            self.seconds += min(now - begun, event.record.seconds) if event.record else now - begun
            self._last = now

    @property
    def share(self) -> float | None:
        """Share of the time from each worker's first task to the end; None if no task ran."""
        there = sum(self._last - since for since in self._workers.values())
        return round(min(1.0, self.seconds / there), 4) if there > 0 else None


def republish(store: Store, journal: Journal, run: Mapping[str, Any], out: Path | None = None) -> StudyPages:
    """Rebuild a study's report from the journal and Optuna's storage.

    Args:
        run: a run of the study, one of ``Journal.runs``.
        out: output folder; None replaces the report in the store.
    """
    study = StudySpec.parse(run["spec"], source=Path(run["info"]["folder"]) / "study")
    known = journal.trials(study.name).values()
    ended = [document for document in known if document["state"] in FINISHED]
    with _open_storage(store, study) as storage:
        tuner = Tuner(study.name, storage, study.space, list(study.objectives.values()), study.method())
        recall(study, tuner, known)
        folder = out or store.report_dir(study.name, run["id"])
        pages = publish(folder, study, ended, _confirmed(journal, study), tuner)
        store.share_report(folder)
        return pages


def _request(study: StudySpec, context: RunContext) -> RunRequest:
    spec, folder = study.question.spec, str(study.folder.absolute())
    about = {"description": study.description, "study": study.name, "folder": folder, "spec_digest": study.digest}
    facts = context.facts(spec, **about)
    return RunRequest(context.run_id, study.name, study.text, facts, limits_of(spec), policy="feedback")


def _confirmed(journal: Journal, study: StudySpec) -> list[TrialDocument]:
    return list(journal.trials(CONFIRMED.format(study.name)).values())


def _best(documents: list[TrialDocument], study: StudySpec) -> list[dict[str, Any]]:
    """Return the front, the best trial first."""
    chosen = best_of(documents, study)
    found = sorted(front(documents, directions_of(study)), key=lambda document: document is not chosen)
    return [{name: document[name] for name in ("number", "params", "values")} for document in found]
