"""Where a run takes place: store, keys, journal, data, records and workers, for one spec as for a study."""

import errno
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol, TypedDict

from wmarena.experiments.running.pool import Pool, make_executor
from wmarena.experiments.running.recording import Recording
from wmarena.experiments.spec.experiment import ExperimentSpec
from wmarena.experiments.spec.problems import SpecError
from wmarena.orchestrator.executors.base import Executor, NoWorkers
from wmarena.orchestrator.executors.placement import gpu_share
from wmarena.orchestrator.files.errors import StoreError
from wmarena.orchestrator.journal.journal import Journal
from wmarena.orchestrator.journal.opening import journal_address, open_journal
from wmarena.orchestrator.keys.encryption import Passphrase
from wmarena.orchestrator.plan.events import Event, Listener
from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.growth import Grow, TaskSource
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.task import Task, TaskId
from wmarena.orchestrator.running.runner import RunRequest, run_plan
from wmarena.orchestrator.running.store_outage import StoreLost
from wmarena.orchestrator.store.keys import check_passphrase
from wmarena.orchestrator.store.local import Store
from wmarena.orchestrator.store.opening import open_store

ExpectedSeconds = Callable[[Task], float]
"""Expected seconds of a task."""


class RunDisplay(Protocol):
    """Shows a run to someone: a context around it that hears its events."""

    def __call__(
        self, plan: Plan, cached: set[TaskId], seconds: ExpectedSeconds
    ) -> AbstractContextManager[Listener | None]:
        """Called once everything is checked and before anything runs."""
        ...


def unwatched(plan: Plan, cached: set[TaskId], seconds: ExpectedSeconds) -> AbstractContextManager[None]:
    """Shows nothing."""
    return nullcontext()


class RunOptions(TypedDict, total=False):
    """What ``run`` and ``tune`` take alike; each may be left out.

    Attributes:
        store: folder that holds everything a run leaves behind, or the URL of one that several nodes share; default
            ``wmarena-store``.
        keys: folder of keys; None for the store's own, and for sealed keys behind a URL.
        journal_url: ``postgresql://…`` for a journal that several drivers share; None for ``WMARENA_JOURNAL``, else the
            store's own.
        data_root: where data sets are looked for first.
        tracking_uri: MLflow's; None records into the store's own database.
        record: False leaves MLflow out; ``wmarena report --sync`` can send everything later.
        pool: the workers; Ray on this machine unless told otherwise.
        waiting: wait until no other run holds the store, after having said so through this; None: do not.
        watch: shows progress.
    """

    store: str | Path
    keys: Path | None
    journal_url: str | None
    data_root: Path | None
    tracking_uri: str | None
    record: bool
    pool: Pool | None
    waiting: Callable[[str], None] | None
    watch: RunDisplay


class RunContext:
    """One run's place.

    Attributes:
        run_id: of this run.
        pool: the workers that were asked for.
        data_root: absolute, because workers have working folders of their own.
        store: opened by ``held``.
        waiting: hears whom the run waits for, None if it does not.
        recording: None where MLflow is left out.
    """

    def __init__(self, options: RunOptions) -> None:
        """Nothing is created yet.

        Raises:
            SpecError, StoreError: an address that cannot be one.
        """
        root = options.get("data_root")
        self.run_id = new_run_id()
        self.pool = options.get("pool") or Pool()
        self.data_root = root.absolute() if root is not None else None
        self.store = open_store(options.get("store", "wmarena-store"), options.get("keys"))
        self._address = journal_address(options.get("journal_url"))
        self.waiting = options.get("waiting")
        self._watch = options.get("watch", unwatched)
        recorded = Recording(self.store, self.run_id, options.get("tracking_uri"), self._address)
        self.recording = recorded if options.get("record", True) else None

    @contextmanager
    def held(self) -> Iterator[Journal]:
        """The store, held against other runs, and its journal.

        Raises:
            StoreError: the store cannot be had.
            StoreBusy: another run holds it.
        """
        store = self.store.open()
        # Where the journal keeps drivers apart, they may share the store.
        alone = store.joined(self.waiting) if self._address is not None else store.exclusive(self.run_id, self.waiting)
        with alone, open_journal(store, self._address) as journal, _writing(store):
            yield journal

    def executor(self, spec: ExperimentSpec, open_tasks: Sequence[Task], journal: Journal) -> Executor:
        """The workers; tasks whose memory on a GPU is known share one, unless the caller or the spec says how."""
        share = gpu_share(open_tasks, journal.gpu_peaks() if open_tasks else {})
        return make_executor(self.pool, spec, self.store, self.data_root, share)

    def execute(
        self,
        plan: Plan,
        request: RunRequest,
        journal: Journal,
        executor: Executor,
        *,
        cached: set[TaskId],
        seconds: ExpectedSeconds,
        listeners: Sequence[Listener] = (),
        grow: Grow | None = None,
        source: TaskSource | None = None,
    ) -> dict[TaskId, Record]:
        """Run what is missing, recorded and shown; the store is held already.

        Raises:
            SpecError: workers cannot be had at all; nothing has run.
            NoWorkers, StoreLost, Interrupted: as of ``session.run_plan``.
        """
        begun = _Begun()
        with self._watch(plan, cached, seconds) as shown:
            others = [listener for listener in (self.recording, shown) if listener is not None]
            try:
                return run_plan(
                    plan,
                    request,
                    store=self.store,
                    journal=journal,
                    executor=executor,
                    listeners=[begun, *listeners, *others],
                    grow=grow,
                    held=True,
                    source=source,
                )
            except NoWorkers as error:
                if begun.anything:
                    raise
                raise SpecError.of(str(error), "executor") from error

    def facts(self, spec: ExperimentSpec) -> dict[str, Any]:
        """What the journal keeps of any run beside its tasks."""
        return {
            "code_version": code_version(),
            "executor": self.pool.executor,
            "data_sets": {w.name: w.data_set for w in spec.workloads},
            "notes": list(spec.notes),
        }

    def finish(self) -> None:
        """Wait for MLflow, for a while."""
        if self.recording is not None:
            self.recording.finish()


def settle_keys(spec: ExperimentSpec, store: Store, done: Iterable[TaskId]) -> None:
    """Check that the passphrase opens the store's keys before anything runs.

    Raises:
        SpecError: it does not.
    """
    check_passphrase(store, done, Passphrase.find(spec.keys.passphrase if spec.keys else None))


def new_run_id() -> str:
    """Sortable by time, unique without asking anyone: ``20261121-093000-4fa1c2`` (UTC)."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"


def code_version() -> str:
    """Version of the installed package."""
    try:
        return version("wmarena")
    except PackageNotFoundError:
        return "unknown"


@contextmanager
def _writing(store: Store) -> Iterator[None]:
    """Plans and reports fail like everything else in the store: resumable, with the way out."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO):
            raise
        raise StoreLost(f"{error.filename or store.root}: {error.strerror}") from error


class _Begun:
    """Knows whether anything has begun to run."""

    anything = False

    def __call__(self, event: Event) -> None:
        self.anything = True
