"""Toy tasks, plans and executors, to test scheduling without training."""

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wmarena.orchestrator.executors.base import Completion, Executor
from wmarena.orchestrator.journal.journal import Journal
from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.task import Failure, FailureKind, Kind, State, Task, TaskId
from wmarena.orchestrator.running.ledger import Ledger
from wmarena.orchestrator.running.runner import RunRequest, run_plan
from wmarena.orchestrator.store.local import CorruptArtifact, Store
from wmarena.orchestrator.worker.context import WorkerContext

Outcome = Mapping[str, Any] | Failure


def task(label: str, *parents: Task, kind: Kind = Kind.TRAIN, after: Iterable[Task] = (), **rest: Any) -> Task:
    """A task that is its label: parents get the roles p0, p1, ..."""
    roles = tuple((f"p{i}", p.id) for i, p in enumerate(parents))
    config = {"label": label, **rest.pop("config", {})}
    return Task(kind, config, 0, roles, "data", "code", label=label, after=tuple(a.id for a in after), **rest)


def diamond() -> Plan:
    """root -> (left, right) -> bottom, and a leaf beside it."""
    root = task("root")
    left, right = task("left", root), task("right", root)
    return Plan([root, left, right, task("bottom", left, right, kind=Kind.VERIFY), task("leaf", root)])


def named(plan: Plan, label: str) -> Task:
    """The task of that label."""
    return next(t for t in plan if t.label == label)


def states(plan: Plan, records: Mapping[TaskId, Record]) -> dict[str, str]:
    """Label -> state."""
    return {t.label: records[t.id].state.value for t in plan}


@contextmanager
def listening() -> Iterator[None]:
    """Let Ctrl-C interrupt inside, also where a shell started the tests in the background with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def failure(kind: FailureKind, damaged: Task | None = None) -> Failure:
    """A failure of that kind."""
    return Failure(kind, f"made to fail: {kind.value}", damaged=damaged.id if damaged is not None else None)


def done(item: Task, **result: Any) -> Record:
    """The record of a finished task."""
    return Record(item.id, State.DONE, result=result or {"label": item.label}, cached=True, seconds=1.0, attempt=1)


def closed(item: Task, state: State) -> Record:
    """The record of a task that this run settled."""
    return Record(item.id, state, error="error: boom" if state is State.FAILED else None)


def failed(outcome: object) -> Failure:
    """The failure that an attempt must have ended with."""
    assert isinstance(outcome, Failure), outcome
    return outcome


def ledger(plan: Plan, finished: Iterable[Task] = (), **rest: Any) -> Ledger:
    """A ledger where every artifact is present and a task takes what its cost says."""
    options: dict[str, Any] = {"present": lambda i: True, "seconds": lambda t: t.cost, **rest}
    return Ledger(plan, {t.id: done(t) for t in finished}, **options)


class Scripted(Executor):
    """An executor whose outcomes are scripted by label and attempt.

    Args:
        script: label -> outcomes of its attempts; a callable is called, None hangs, an exhausted or absent entry is
            a success.
        store: where a success leaves its artifact.
        n_workers: how many calls may be under way.
        seconds: what a worker says a task took.
        fatal: labels of tasks that kill the worker, and with it the whole call.
    """

    name = "scripted"

    def __init__(
        self,
        script: Mapping[str, Sequence[Outcome | Callable[[], Outcome] | None]] | None = None,
        *,
        store: Store | None = None,
        n_workers: int = 1,
        seconds: float = 1.0,
        fatal: Collection[str] = (),
    ) -> None:
        self.script = {label: deque(outcomes) for label, outcomes in (script or {}).items()}
        self.store = store
        self.seconds = seconds
        self.fatal = fatal
        self.calls: list[list[str]] = []
        self.started = self.stopped = 0
        self.replaced: list[str] = []
        self._names = [f"w{i}" for i in range(n_workers)]
        self._under_way: dict[str, tuple[Task, ...]] = {}

    @property
    def ran(self) -> list[str]:
        """Labels of all attempts, in order."""
        return [label for call in self.calls for label in call]

    @property
    def workers(self) -> Sequence[str]:
        return tuple(self._names)

    def start(self) -> None:
        self.started += 1

    def idle(self) -> Sequence[str]:
        return [n for n in self._names if n not in self._under_way]

    def submit(self, worker: str, tasks: Sequence[Task]) -> None:
        self.calls.append([t.label for t in tasks])
        self._under_way[worker] = tuple(tasks)

    def wait(self, timeout: float) -> list[Completion]:
        out: list[Completion] = []
        for worker, tasks in list(self._under_way.items()):
            dies = any(t.label in self.fatal for t in tasks)
            outcomes = [failure(FailureKind.WORKER_DIED) if dies else self._next(t) for t in tasks]
            if None in outcomes:
                continue
            del self._under_way[worker]
            for item, outcome in zip(tasks, outcomes, strict=True):
                out.append(Completion(item.id, worker, self._kept(item, outcome), self.seconds, len(tasks) == 1))
        return out

    def _next(self, item: Task) -> Outcome | None:
        planned = self.script.get(item.label)
        if not planned:
            return {"label": item.label}
        if planned[0] is None:
            return None
        outcome = planned.popleft()
        return outcome() if callable(outcome) else outcome

    def _kept(self, item: Task, outcome: Outcome | None) -> Outcome:
        assert outcome is not None
        if self.store is None or isinstance(outcome, Failure):
            return outcome
        result: dict[str, Any] = self.store.commit(item.id, item.identity(), outcome, {"file": item.label.encode()})[
            "result"
        ]
        return result

    def replace(self, worker: str) -> None:
        self.replaced.append(worker)
        for item in self._under_way.pop(worker):
            self.script[item.label].popleft()
        self._names[self._names.index(worker)] = f"{worker}'"

    def cancel(self, patience_s: float) -> list[Completion]:
        return []

    def stop(self) -> None:
        self.stopped += 1


RESULT = {"metric_test": 0.5, "verdict": {"caveats": ("a",), "log10_p": -180.6}}


def put(store: Store, item: Task, raw: bytes = b"weights", **result: Any) -> dict[str, Any]:
    """Commit an artifact of two files."""
    return store.commit(item.id, item.identity(), {**RESULT, **result}, {"model": raw, "history": b"[]"})


def files(folder: Path) -> dict[str, bytes]:
    """Relative path -> content of everything under a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


class World:
    """A store with its journal, and runs in it."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root / "store").open()

    def run(self, plan: Plan, executor: Executor | None = None, **options: Any) -> dict[TaskId, Record]:
        """Execute ``plan`` as one more run; ``limits``, ``policy``, ``retry_quarantined`` belong to the request."""
        asked = {k: options.pop(k) for k in ("limits", "policy", "retry_quarantined") if k in options}
        with self.journal() as journal:
            run = f"run-{1 + len(journal.runs())}"
        request = RunRequest(run, "toys", "", {}, **asked)
        executor = executor if executor is not None else Scripted(store=self.store)
        with self.journal() as journal:
            return run_plan(plan, request, store=self.store, journal=journal, executor=executor, **options)

    def journal(self) -> Journal:
        """A connection of its own."""
        return Journal(self.store.journal_path)

    def damage(self, item: Task, name: str = "file") -> None:
        """Change one byte of an artifact's file."""
        path = self.store.folder(item.id) / name
        path.write_bytes(path.read_bytes()[:-1] + b"\x00")


# What workers perform: pure functions of the task and of files beside the store, also in other processes.


def echo(context: WorkerContext, item: Task) -> Outcome:
    """Commit the task's label and its parents' contents; log every execution."""
    try:
        read = [context.store.read(parent, "file").decode() for parent in item.parent_ids]
    except CorruptArtifact as error:
        return Failure(FailureKind.CORRUPT, str(error), damaged=error.task_id)
    with (context.store.root / "executions.txt").open("a") as log:
        log.write(f"{item.label}\n")
    content = f"{item.label}({','.join(read)})"
    result: dict[str, Any] = context.store.commit(
        item.id, item.identity(), {"content": content}, {"file": content.encode()}
    )["result"]
    return result


def executions(store: Store) -> list[str]:
    """Labels of everything that ``echo`` has executed, sorted."""
    return sorted((store.root / "executions.txt").read_text().splitlines())


def mortal(context: WorkerContext, item: Task) -> Outcome:
    """``echo``; tasks whose label starts with "kill" kill their process once; "raise" raises."""
    if item.label.startswith("raise"):
        raise RuntimeError("a worker's function should never raise")
    mark = context.store.root / f"{item.label}.killed"
    if item.label.startswith("kill") and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return echo(context, item)


def placed(context: WorkerContext, item: Task) -> Outcome:
    """Says which GPUs this process may see."""
    return {"visible": os.environ.get("CUDA_VISIBLE_DEVICES"), "threads": os.environ.get("OMP_NUM_THREADS")}


def losing(context: WorkerContext, item: Task) -> Outcome:
    """Loses the device at a task labelled "lost"."""
    return failure(FailureKind.DEVICE) if item.label == "lost" else {"label": item.label}


def patient(context: WorkerContext, item: Task) -> Outcome:
    """Run until cancelled, at most a minute; write a mark when cancelled."""
    (context.store.root / "working").touch()
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        if context.cancelled():
            (context.store.root / "told").touch()
            return failure(FailureKind.CANCELLED)
        time.sleep(0.02)
    return {"content": "never told"}


def crowded(context: WorkerContext, item: Task) -> Outcome:
    """``echo``, where processes register on their GPU: "big" tasks do not fit beside another process.

    "warm" tasks wait until four workers have started.
    """
    gpus = context.store.root / "gpus"
    here = gpus / os.environ["CUDA_VISIBLE_DEVICES"]
    here.mkdir(parents=True, exist_ok=True)
    (here / str(os.getpid())).touch()
    if item.label.startswith("warm"):
        _until(lambda: len(list(gpus.glob("*/*"))) >= 4)
    others = [p for p in here.iterdir() if p.name != str(os.getpid()) and Path(f"/proc/{p.name}").exists()]
    if item.label.startswith("big") and others:
        return failure(FailureKind.OUT_OF_MEMORY)
    return echo(context, item)


def nomadic(context: WorkerContext, item: Task) -> Outcome:
    """``echo`` on nodes that join and leave.

    "meet" tasks end once tasks of two nodes have begun; "stay" tasks end on the first of these nodes only.
    """
    import ray

    here = ray.get_runtime_context().get_node_id()
    stage = context.store.root / item.label.split("-")[0]
    stage.mkdir(exist_ok=True)
    (stage / here).touch()
    home = context.store.root / "home"
    if item.label.startswith("meet"):
        _until(lambda: len(list(stage.iterdir())) >= 2)
    elif home.read_text() != here:
        _until(lambda: False)
    return echo(context, item)


def _until(condition: Callable[[], bool], patience_s: float = 120.0) -> None:
    deadline = time.monotonic() + patience_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
