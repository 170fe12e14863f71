"""What an experiment's and a study's run have in common: store, keys, journal, data, records and workers."""

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
from wmarena.orchestrator.plan.events import Listener
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
    """Displays a run: returns a context around it, with a listener for its events."""

    def __call__(
        self, plan: Plan, cached: set[TaskId], seconds: ExpectedSeconds
    ) -> AbstractContextManager[Listener | None]:
        """Open the display, after all checks and before any task."""
        ...


def no_display(plan: Plan, cached: set[TaskId], seconds: ExpectedSeconds) -> AbstractContextManager[None]:
    """Display nothing."""
    return nullcontext()


class RunOptions(TypedDict, total=False):
    """Options of both ``run`` and ``tune``, all optional.

    Attributes:
        store: folder of everything that a run writes, or the URL of a shared one; default ``wmarena-store``.
        keys: folder of keys; None for the store's own, and for sealed keys behind a URL.
        journal_url: ``postgresql://…`` for a journal that several drivers share; None for ``WMARENA_JOURNAL``, else the
            store's own.
        data_root: the first place to look for data sets.
        tracking_uri: MLflow's; None records into the store's own database.
        record: False leaves MLflow out; ``wmarena report --sync`` can send everything later.
        pool: the workers; default: Ray on this machine.
        waiting: called with a message before waiting for a locked store; None: do not wait.
        watch: displays progress.
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
    """Store, journal, workers and records of one run.

    Attributes:
        data_root: absolute, because workers have working folders of their own.
        store: opened by ``locked``.
        waiting: called with a message before waiting for a lock; None: do not wait.
        recording: None without MLflow.
    """

    def __init__(self, options: RunOptions) -> None:
        """Create nothing yet.

        Raises:
            SpecError, StoreError: an invalid address.
        """
        root = options.get("data_root")
        self.run_id = new_run_id()
        self.pool = options.get("pool") or Pool()
        self.data_root = root.absolute() if root is not None else None
        self.store = open_store(options.get("store", "wmarena-store"), options.get("keys"))
        self._address = journal_address(options.get("journal_url"))
        self.waiting = options.get("waiting")
        self._watch = options.get("watch", no_display)
        recorded = Recording(self.store, self.run_id, options.get("tracking_uri"), self._address)
        self.recording = recorded if options.get("record", True) else None

    @contextmanager
    def locked(self) -> Iterator[Journal]:
        """Lock the store against other runs, and open its journal.

        Raises:
            StoreError: the store cannot be opened.
            StoreBusy: another run has locked it.
        """
        store = self.store.open()
        # A journal of several drivers assigns tasks to them, so they may share the store.
        alone = store.joined(self.waiting) if self._address is not None else store.exclusive(self.run_id, self.waiting)
        with alone, open_journal(store, self._address) as journal, _writing(store):
            yield journal

    def executor(self, spec: ExperimentSpec, open_tasks: Sequence[Task], journal: Journal) -> Executor:
        """Make the executor; tasks of known GPU memory share a GPU unless the caller or the spec sets shares."""
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
        """Run the missing tasks, recorded and displayed, on the locked store.

        Raises:
            SpecError: no workers; nothing has run.
            NoWorkers, StoreLost, Interrupted: as in ``run_plan``.
        """
        kinds: set[str] = set()
        with self._watch(plan, cached, seconds) as shown:
            others = [listener for listener in (self.recording, shown) if listener is not None]
            try:
                return run_plan(
                    plan,
                    request,
                    store=self.store,
                    journal=journal,
                    executor=executor,
                    listeners=[lambda event: kinds.add(event.kind), *listeners, *others],
                    grow=grow,
                    held=True,
                    source=source,
                )
            except NoWorkers as error:
                if kinds:  # the run has begun: it can be resumed
                    raise
                raise SpecError.of(str(error), "executor") from error

    def facts(self, spec: ExperimentSpec, **more: Any) -> dict[str, Any]:
        """Return what the journal keeps of a run besides its tasks."""
        return {
            "code_version": code_version(),
            "executor": self.pool.executor,
            "data_sets": {w.name: w.data_set for w in spec.workloads},
            "notes": list(spec.notes),
            **more,
        }

    def finish(self) -> None:
        """Wait for MLflow, for a limited time."""
        if self.recording is not None:
            self.recording.finish()


def check_keys(spec: ExperimentSpec, store: Store, done: Iterable[TaskId]) -> None:
    """Check that the passphrase opens the store's keys. Raises SpecError."""
    check_passphrase(store, done, Passphrase.find(spec.keys.passphrase if spec.keys else None))


def new_run_id() -> str:
    """Make a unique id that sorts by time: ``20261121-093000-4fa1c2`` (UTC)."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"


def code_version() -> str:
    """Return the version of the installed package."""
    try:
        return version("wmarena")
    except PackageNotFoundError:
        return "unknown"


@contextmanager
def _writing(store: Store) -> Iterator[None]:
    """Convert write errors of plans and reports to ``StoreLost``, which is resumable."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO):
            raise
        raise StoreLost(f"{error.filename or store.root}: {error.strerror}") from error
