"""Runs a study: many trials at once on the workers of one run, then tables, pictures and records.

from experiments import StudySpec, tune

summary = tune(StudySpec.load("digits_lambda"), store="wmarena-store")
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from experiments.execution import (
    Begun,
    Pool,
    Recording,
    Watch,
    code_version,
    limits_of,
    make_executor,
    new_run_id,
    unwatched,
    writing,
)
from experiments.expand import expand
from experiments.ground import Grounds
from experiments.problems import Problem, SpecError
from experiments.results import build_rows, write_results
from experiments.study.documents import CONFIRMED, FINISHED, Document
from experiments.study.pareto import best_of, directions_of, front
from experiments.study.publish import StudyPages, publish
from experiments.study.resume import take_up
from experiments.study.source import Told, Trials
from experiments.study.spec import StudySpec
from experiments.study.trial import rungs, stages_of
from orchestrator.events import Event, Listener
from orchestrator.evidence import Record
from orchestrator.executors.base import Executor, NoWorkers
from orchestrator.executors.placement import gpu_share
from orchestrator.journal import Journal
from orchestrator.journals import journal_address, open_journal
from orchestrator.keyring import check_passphrase
from orchestrator.loop import expected_seconds
from orchestrator.plan import Cell, Plan
from orchestrator.recorders.plan_file import save_plan
from orchestrator.resume import find
from orchestrator.sealing import Passphrase
from orchestrator.session import Request, execute
from orchestrator.store import Store, safe_name
from orchestrator.stores import open_store
from orchestrator.task import State, TaskId
from orchestrator.tuner import Tuner, open_storage


@dataclass(frozen=True, kw_only=True)
class StudySummary:
    """What a study has found, and what this run of it did.

    Attributes:
        trials: finished trials of the study, those of earlier runs included.
        best: the best trial, or the Pareto front: number, params, values.
        failed_trials: of this run.
        busy: share of the workers' time that tasks took, None where nothing ran.
        overhead_s: median driver seconds of a trial: asking, planning, telling.
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

    @property
    def complete(self) -> bool:
        """True if no trial of this run failed."""
        return not self.failed_trials


def tune(
    study: StudySpec,
    *,
    store: str | Path = "wmarena-store",
    keys: Path | None = None,
    journal_url: str | None = None,
    data_root: Path | None = None,
    tracking_uri: str | None = None,
    record: bool = True,
    pool: Pool | None = None,
    trials: int | None = None,
    watch: Watch = unwatched,
    hear: Told = lambda document: None,
) -> StudySummary:
    """Run what is missing of ``study``; a killed one goes on, with the trials that it had.

    Args:
        store, keys, journal_url: as of ``experiments.run``.
        data_root: where data sets are looked for first.
        tracking_uri: MLflow's; None records into the store's own database.
        record: False leaves MLflow out.
        pool: the workers; Ray on this machine unless told otherwise.
        trials: finished trials that the study is to have; None for what it says itself.
        watch: shows progress.
        hear: is told of every trial that ends.

    Raises:
        SpecError, MissingData, StoreError: bad input, or workers that cannot be had; nothing has run.
        NoWorkers: all workers were lost on the way; the same call resumes.
        Interrupted: stopped; the same call resumes.
    """
    started, pool = time.monotonic(), pool or Pool()
    data_root = data_root.absolute() if data_root is not None else None  # workers have working folders of their own
    home, run_id, grounds = open_store(store, keys).open(), new_run_id(), Grounds(data_root)
    address = journal_address(journal_url)
    recording = Recording(home, run_id, tracking_uri, address) if record else None
    # Where the journal keeps drivers apart, they may share the store; a study is one driver's in any case.
    held = home.joined() if address is not None else home.exclusive(run_id)
    with held, open_journal(home, address) as journal, _studied(home, study) as storage, writing(home):
        found = _Found.of(study, home, journal, grounds)
        tuner = Tuner(study.name, storage, study.space, list(study.objectives.values()), study.method(found.rungs))
        take_up(study, tuner, home, journal, grounds)
        budget = trials or study.trials or len(tuner.grid())
        source = Trials(study, tuner, journal, budget=budget, grounds=grounds, only=found.only, hear=hear)
        n_before, plan, busy = len(source.documents), Plan(), Busy()
        executor = make_executor(pool, study.question.spec, home, data_root, found.share)
        with watch(plan, set(), expected_seconds(journal.durations())) as display:
            listeners = [part for part in (busy, recording, display) if part is not None]
            records = _execute(plan, _request(study, run_id, pool), home, journal, executor, listeners, source)
        folder = home.report_dir(study.name, run_id)
        save_plan(plan, folder)
        results = write_results(build_rows(plan, records, experiment=study.name, run_id=run_id), folder)
        pages = publish(folder, study, source.documents, _confirmed(journal, study), tuner, busy.share)
    if recording is not None:
        recording.finish()
    ended, states = source.documents, _states(records)
    return StudySummary(
        study=study.name,
        trials=len(ended),
        best=_best(ended, study),
        run_id=run_id,
        executed=states["done"],
        cached=states["cached"],
        failed=states["failed"],
        skipped=states["skipped"],
        failed_trials=sum(d["state"] == "failed" for d in ended[n_before:]),
        seconds=round(time.monotonic() - started, 3),
        busy=busy.share,
        overhead_s=round(median(source.overheads), 6) if source.overheads else None,
        report=str(pages.report),
        table=str(pages.table),
        results=str(results),
    )


def _execute(
    plan: Plan,
    request: Request,
    store: Store,
    journal: Journal,
    executor: Executor,
    listeners: Sequence[Listener],
    source: Trials,
) -> dict[TaskId, Record]:
    """The run of all trials; workers that cannot be had at all are bad input."""
    begun = Begun()
    try:
        return execute(
            plan,
            request,
            store=store,
            journal=journal,
            executor=executor,
            listeners=[begun, *listeners],
            held=True,
            source=source,
        )
    except NoWorkers as error:
        if begun.anything:
            raise
        raise SpecError([Problem(str(error), ("executor",))]) from error


def _studied(store: Store, study: StudySpec) -> AbstractContextManager[Any]:
    """The study's storage, held."""
    return open_storage(store.root / "studies", safe_name(study.name), study.storage)


@dataclass(frozen=True)
class _Found:
    """What the experiment itself tells before any trial.

    Attributes:
        rungs: where a pruner looks.
        only: which evidence may be used; None for all.
        share: of a GPU that is enough for a task, by what such tasks have needed.
    """

    rungs: tuple[int, ...] = ()
    only: Callable[[Cell], bool] | None = None
    share: float = 1.0

    @classmethod
    def of(cls, study: StudySpec, store: Store, journal: Journal, grounds: Grounds) -> "_Found":
        """Raises SpecError where a pruner has nothing to look at, or a study of γ alone no evidence."""
        spec = study.question.spec
        expansion = expand(spec, data_root=study.question.data_root, grounds=grounds)
        done = find(expansion.plan.tasks, store, journal).records
        if study.gamma_only:
            there = [cell for cell in expansion.plan.cells if cell.verify in done]
            if all(cell.control is not None or cell.attack != "none" for cell in there):
                what = f"expected stored evidence, got none of {spec.name!r}: γ trains nothing; `wmarena run` it first"
                raise SpecError([Problem(what, ("experiment",))])
            return cls(only=lambda cell: cell.verify in done)
        check_passphrase(store, done, Passphrase.find(spec.keys.passphrase if spec.keys else None))
        open_tasks = [task for task in expansion.plan if task.id not in done]
        share = gpu_share(open_tasks, journal.gpu_peaks() if open_tasks else {})
        if study.pruner.name == "none":
            return cls(share=share)
        looks = rungs(stages_of(expansion, study.pruner.on))
        if len(looks) < 2:
            what = f"expected attacks at two or more values of {study.pruner.on!r} to look at, got {len(looks)}"
            raise SpecError([Problem(what, ("pruner", "on"))])
        return cls(rungs=looks, share=share)


@dataclass
class Busy:
    """How much of the workers' time tasks took, heard from the loop."""

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
            # Tasks of one call begin together and end together: the worker was busy once.
            self.seconds += min(now - begun, event.record.seconds) if event.record else now - begun
            self._last = now

    @property
    def share(self) -> float | None:
        """Of the time from a worker's first task to the end; None where nothing ran."""
        there = sum(self._last - since for since in self._workers.values())
        return round(min(1.0, self.seconds / there), 4) if there > 0 else None


def republish(store: Store, journal: Journal, run: Mapping[str, Any], out: Path | None = None) -> StudyPages:
    """A study's report from what the journal and Optuna's storage know of its trials now.

    Args:
        run: an execution of the study, one of ``Journal.runs``.
        out: where it goes; None replaces the report in the store.
    """
    study = StudySpec.parse(run["spec"], source=Path(run["info"]["folder"]) / "study")
    ended = [document for document in journal.trials(study.name).values() if document["state"] in FINISHED]
    with _studied(store, study) as storage:
        tuner = Tuner(study.name, storage, study.space, list(study.objectives.values()), study.method())
        folder = out or store.report_dir(study.name, run["id"])
        return publish(folder, study, ended, _confirmed(journal, study), tuner)


def _request(study: StudySpec, run_id: str, pool: Pool) -> Request:
    spec = study.question.spec
    info = {
        "description": study.description,
        "study": study.name,
        "folder": str(study.folder.absolute()),
        "spec_digest": study.digest,
        "code_version": code_version(),
        "executor": pool.executor,
        "data_sets": {w.name: w.data_set for w in spec.workloads},
        "notes": list(spec.notes),
    }
    return Request(run_id, study.name, study.text, info, limits_of(spec), policy="feedback")


def _confirmed(journal: Journal, study: StudySpec) -> list[Document]:
    return list(journal.trials(CONFIRMED.format(study.name)).values())


def _best(documents: list[Document], study: StudySpec) -> list[dict[str, Any]]:
    """The front, the chosen one first."""
    chosen = best_of(documents, study)
    found = sorted(front(documents, directions_of(study)), key=lambda document: document is not chosen)
    return [{name: document[name] for name in ("number", "params", "values")} for document in found]


def _states(records: Mapping[TaskId, Record]) -> Counter[str]:
    return Counter("cached" if r.cached and r.state is State.DONE else r.state.value for r in records.values())
