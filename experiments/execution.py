"""Runs a spec: expands it, executes what is missing, records it, writes table and report.

from experiments import ExperimentSpec, run

summary = run(ExperimentSpec.load("quickstart"), store="wmarena-store")
"""

import errno
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, Protocol

from experiments.expand import Expansion, expand
from experiments.problems import Problem, SpecError
from experiments.reporting import Pages, find_run, publish
from experiments.spec import ExperimentSpec
from experiments.workloads import WORKLOADS
from orchestrator.events import Event, Listener
from orchestrator.evidence import Record
from orchestrator.executors.base import Executor, NoWorkers
from orchestrator.executors.inline import InlineExecutor
from orchestrator.executors.placement import gpu_share
from orchestrator.hiccup import StoreLost
from orchestrator.journals import journal_address, open_journal
from orchestrator.keyring import check_passphrase
from orchestrator.loop import Limits, expected_seconds
from orchestrator.perform import Setup
from orchestrator.plan import Plan
from orchestrator.recorders.plan_file import save_plan
from orchestrator.recorders.process import RecorderProcess
from orchestrator.resume import already_done
from orchestrator.sealing import Passphrase
from orchestrator.session import Request, execute
from orchestrator.store import Store, StoreError
from orchestrator.stores import open_store
from orchestrator.task import State, Task, TaskId

logger = logging.getLogger(__name__)

_DRAIN_S = 120.0
"""Longest wait for records after a run; whatever is missing then is sent in the background."""

_CACHED_DRAIN_S = 0.5
"""The same where nothing ran."""


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Which workers run the plan; None leaves a choice to the spec.

    Attributes:
        executor: "ray", or "inline" for this process.
        address: Ray address of an existing cluster; None starts a local one.
        workers: how many.
        gpus_per_worker: GPUs, or a share of one, for each.
    """

    executor: Literal["ray", "inline"] = "ray"
    address: str | None = None
    workers: int | None = None
    gpus_per_worker: float | None = None


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """What a run did. ``executed``, ``cached``, ``failed`` and ``skipped`` add up to the tasks of the plan.

    Attributes:
        report, results: paths of the HTML page and of the Parquet table.
        shared_report: where others find them, None for a store that is a folder.
    """

    run_id: str
    executed: int
    cached: int
    failed: int
    skipped: int
    seconds: float
    report: str
    results: str
    shared_report: str | None = None

    @property
    def complete(self) -> bool:
        """True if every task is done."""
        return not self.failed and not self.skipped


Seconds = Callable[[Task], float]
"""Expected seconds of a task."""


class Watch(Protocol):
    """Shows a run to someone: a context around it that hears its events."""

    def __call__(self, plan: Plan, cached: set[TaskId], seconds: Seconds) -> AbstractContextManager[Listener | None]:
        """Called once everything is checked and before anything runs."""
        ...


def unwatched(plan: Plan, cached: set[TaskId], seconds: Seconds) -> AbstractContextManager[None]:
    """Shows nothing."""
    return nullcontext()


def run(
    spec: ExperimentSpec,
    *,
    store: str | Path = "wmarena-store",
    keys: Path | None = None,
    journal_url: str | None = None,
    data_root: Path | None = None,
    tracking_uri: str | None = None,
    record: bool = True,
    pool: Pool | None = None,
    fail_fast: bool = False,
    retry_quarantined: bool = False,
    waiting: Callable[[str], None] | None = None,
    watch: Watch = unwatched,
) -> RunSummary:
    """Run what is missing of ``spec``; doing it again runs nothing.

    Args:
        store: folder that holds everything a run leaves behind, or the URL of one that several nodes share.
        keys: folder of keys; None for the store's own, and for sealed keys behind a URL.
        journal_url: ``postgresql://…`` for a journal that several drivers share; None for ``WMARENA_JOURNAL``, else the
            store's own.
        data_root: where data sets are looked for first.
        tracking_uri: MLflow's; None records into the store's own database.
        record: False leaves MLflow out; ``wmarena report --sync`` can send everything later.
        pool: the workers; Ray on this machine unless told otherwise.
        fail_fast: stop at the first failed task.
        retry_quarantined: also try tasks that killed all their workers in an earlier run.
        waiting: wait until no other run holds the store, after having said so through this; None: do not.
        watch: shows progress.

    Raises:
        SpecError, MissingData, StoreError: bad input (a passphrase that does not open the store's keys among it), or
            workers that cannot be had; nothing has run.
        StoreBusy: another run holds the store.
        NoWorkers, StoreLost: all workers, or the store, were lost on the way; the same call resumes.
        Interrupted: stopped; the same call resumes.
    """
    started = time.monotonic()
    pool = pool or Pool()
    data_root = data_root.absolute() if data_root is not None else None  # workers have working folders of their own
    expansion = expand(spec, data_root=data_root)
    address = journal_address(journal_url)
    home = open_store(store, keys).open()
    plan, run_id = expansion.plan, new_run_id()
    limits = limits_of(spec, fail_fast)
    facts = _facts(spec, expansion, pool)
    request = Request(run_id, spec.name, spec.text, facts, limits, retry_quarantined=retry_quarantined)
    recording = Recording(home, run_id, tracking_uri, address) if record else None
    passphrase = Passphrase.find(spec.keys.passphrase if spec.keys else None)
    # Where the journal keeps drivers apart, they may share the store.
    held = home.joined() if address is not None else home.exclusive(run_id, waiting)
    with held, open_journal(home, address) as journal, writing(home):
        cached = set(already_done(plan, home, journal))
        if len(cached) < len(plan):  # a finished plan reads no key
            check_passphrase(home, cached, passphrase)
        # A finished plan never asks, so its run need not read every duration there is.
        seconds = expected_seconds(journal.durations() if len(cached) < len(plan) else {})
        folder, n_planned = home.report_dir(spec.name, run_id), len(plan)
        save_plan(plan, folder, cached)
        # Tasks whose memory on a GPU is known share one, unless the caller or the spec says how.
        open_tasks = [task for task in plan if task.id not in cached]
        share = gpu_share(open_tasks, journal.gpu_peaks() if open_tasks else {})
        executor = make_executor(pool, spec, home, data_root, share)
        with watch(plan, cached, seconds) as shown:
            listeners = [listener for listener in (recording, shown) if listener is not None]
            begun = Begun()
            try:
                records = execute(
                    plan,
                    request,
                    store=home,
                    journal=journal,
                    executor=executor,
                    listeners=[begun, *listeners],
                    grow=expansion.searches if len(expansion.searches) else None,
                    held=True,
                )
            except NoWorkers as error:
                if begun.anything:
                    raise
                raise SpecError([Problem(str(error), ("executor",))]) from error
        if len(plan) > n_planned:
            save_plan(plan, folder, cached)
        pages = publish(folder, plan, records, find_run(journal, run_id), home)
    if recording is not None:
        recording.finish()
    return _summary(run_id, records, time.monotonic() - started, pages)


def limits_of(spec: ExperimentSpec, fail_fast: bool = False) -> Limits:
    """What a task may cost, as the spec says."""
    asked = spec.executor
    return Limits(
        task_timeout_s=asked.task_timeout_s,
        max_retries=asked.max_retries,
        fail_fast=fail_fast,
        heartbeat_timeout_s=asked.heartbeat_timeout_s,
        stall_timeout_s=asked.stall_timeout_s,
    )


@contextmanager
def writing(store: Store) -> Iterator[None]:
    """Plans and reports fail like everything else in the store: resumable, with the way out."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO):
            raise
        raise StoreLost(f"{error.filename or store.root}: {error.strerror}") from error


def new_run_id() -> str:
    """Sortable by time, unique without asking anyone: ``20261121-093000-4fa1c2`` (UTC)."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"


def make_executor(
    pool: Pool, spec: ExperimentSpec, store: Store, data_root: Path | None, share: float = 1.0
) -> Executor:
    """The executor that was asked for; what the caller leaves open is the spec's to say, then ``share`` of a GPU."""
    root_file, passphrase_file = (spec.keys.root, spec.keys.passphrase) if spec.keys else (None, None)
    passphrase = Passphrase.find(passphrase_file)
    setup = Setup(
        store=store.address if store.shared else store.root,
        keys=store.own_keys,
        keys_mark=None if store.own_keys is None else store.keys_mark(),
        data_root=data_root,
        root_file=root_file,
        passphrase_file=passphrase_file,
        challenge=None if passphrase is None else passphrase.challenge(),
        workloads=WORKLOADS,
    )
    if pool.executor == "inline":
        return InlineExecutor(setup)
    # Imported here: runs in this process need no Ray.
    from orchestrator.executors.ray import RayExecutor

    workers, gpus = spec.executor.workers, spec.executor.gpus_per_worker
    return RayExecutor(
        setup,
        workers=pool.workers if pool.workers is not None or workers == "auto" else workers,
        gpus_per_worker=pool.gpus_per_worker if pool.gpus_per_worker is not None or gpus == "auto" else gpus,
        share=share,
        address=pool.address,
    )


class Begun:
    """Knows whether anything has begun to run."""

    anything = False

    def __call__(self, event: Event) -> None:
        self.anything = True


class Recording:
    """The recorder's process around one run: it starts with the first event, when the journal knows the run."""

    def __init__(self, store: Store, run_id: str, tracking_uri: str | None, journal_url: str | None = None) -> None:
        self._process = RecorderProcess(store, run_id, tracking_uri, journal=journal_url)
        self._started = False
        self._worked = False
        self._lost: str | None = None

    def __call__(self, event: Event) -> None:
        self._worked = True
        self._start()

    def _start(self) -> None:
        if not self._started:
            self._started = True
            try:
                self._process.start()
            except OSError as error:  # a mirror: what it lacks can be sent later
                self._lost = f"records are not being sent to MLflow ({error}); `wmarena report --sync` sends them"

    def finish(self) -> None:
        """Wait until everything is sent, for a while; a tracker that is away costs a warning, nothing else.

        Where nothing ran there is one entry to send: the process does so by itself, and nobody waits for it.
        """
        self._start()
        if self._lost is not None:
            logger.warning(self._lost)
            return
        report = self._process.drain(_DRAIN_S if self._worked else _CACHED_DRAIN_S)
        if not self._worked and report is None:
            return
        if report is None:
            logger.warning("records are still being sent to MLflow; `wmarena report --sync` makes sure that all are")
        elif report.warning is not None:
            logger.warning(report.warning)


def _facts(spec: ExperimentSpec, expansion: Expansion, pool: Pool) -> dict[str, Any]:
    """What the journal keeps of a run beside its tasks: enough to rebuild the report without the code of today."""
    return {
        "description": spec.description,
        "spec_digest": spec.digest,
        "code_version": code_version(),
        "executor": pool.executor,
        "data_sets": {w.name: w.data_set for w in spec.workloads},
        "notes": list(spec.notes),
        "left_out": list(expansion.left_out),
    }


def code_version() -> str:
    """Version of the installed package."""
    try:
        return version("wmarena")
    except PackageNotFoundError:
        return "unknown"


def _summary(run_id: str, records: Mapping[TaskId, Record], seconds: float, pages: Pages) -> RunSummary:
    states = Counter("cached" if r.cached and r.state is State.DONE else r.state.value for r in records.values())
    return RunSummary(
        run_id=run_id,
        executed=states["done"],
        cached=states["cached"],
        failed=states["failed"],
        skipped=states["skipped"],
        seconds=round(seconds, 3),
        report=str(pages.report),
        results=str(pages.results),
        shared_report=pages.shared,
    )
