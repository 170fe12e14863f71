"""Executors: the same plan has the same results on each; lost workers are replaced."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.orchestrator.clusters import imaginary_gpus
from tests.orchestrator.toys import World, diamond, echo, executions, listening, named, task
from wmarena.orchestrator.executors.base import NoWorkers
from wmarena.orchestrator.executors.inline import InlineExecutor
from wmarena.orchestrator.executors.placement import place
from wmarena.orchestrator.executors.ray import GpuWorker, RayExecutor
from wmarena.orchestrator.files.errors import StoreError
from wmarena.orchestrator.plan.events import Event
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.task import Failure, Task
from wmarena.orchestrator.running.loop import Interrupted
from wmarena.orchestrator.running.retry import Limits
from wmarena.orchestrator.worker.context import Setup

TOYS = "tests.orchestrator.toys"


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A store with its journal."""
    return World(tmp_path)


def setup(world: World, **options: object) -> Setup:
    """For a worker on the world's store."""
    return Setup(store=world.store.root, device="cpu", **options)  # type: ignore[arg-type]


# In this process


def test_the_inline_executor_has_one_worker_and_runs_at_once(world: World) -> None:
    """A call has ended when submit returns; the worker is idle again once ``wait`` has returned it."""
    one, two = task("one"), task("two")
    executor = InlineExecutor(setup(world), perform=echo)
    with executor:
        assert executor.idle() == executor.workers
        executor.submit(executor.workers[0], [one, two])
        assert list(executor.idle()) == []
        ended = executor.wait(0.0)

        assert [(c.task_id, c.alone) for c in ended] == [(one.id, True), (two.id, True)]
        assert executor.idle() == executor.workers
    assert executions(world.store) == ["one", "two"]


def test_an_executor_that_was_not_started_says_so(world: World) -> None:
    """The error names the missing start instead of failing inside."""
    with pytest.raises(RuntimeError, match="use it as a context manager"):
        InlineExecutor(setup(world), perform=echo).submit("inline", [task("one")])


# On Ray


def test_a_worker_that_lost_its_device_tries_nothing_more(world: World) -> None:
    """The later tasks of the call are cancelled, which does not count as an attempt."""
    worker = GpuWorker(setup(world), f"{TOYS}:losing", {})
    outcomes = [o for o, _ in worker.perform([task("fine"), task("lost"), task("behind"), task("last")])]

    assert [o.kind.value if isinstance(o, Failure) else o["label"] for o in outcomes] == [
        "fine",
        "device",
        "cancelled",
        "cancelled",
    ]


def test_a_worker_on_a_node_without_the_store_does_not_start(tmp_path: Path) -> None:
    """It would create a store of its own there, whose results would be lost."""
    with pytest.raises(StoreError, match=r"expected the store .* on every node"):
        GpuWorker(Setup(store=tmp_path / "elsewhere", device="cpu"), f"{TOYS}:echo", {})
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("nodes", "threads", "gpus", "expected"),
    [
        ([(8, 0)], 1, None, (0.0, 8)),
        ([(8, 2)], 1, None, (1.0, 2)),
        ([(8, 2)], 1, 0.5, (0.5, 4)),
        ([(8, 2)], 1, 0.4, (0.4, 4)),
        ([(8, 2)], 1, 1 / 3, (1 / 3, 6)),
        ([(8, 4)], 1, 2.0, (2.0, 2)),
        ([(3, 4)], 1, None, (1.0, 3)),
        ([(8, 2)], 4, 0.0, (0.0, 2)),
        ([(3, 0), (3, 0)], 2, None, (0.0, 2)),
        ([(8, 1), (8, 1)], 1, 2.0, None),
        ([(8, 1), (8, 0)], 1, None, (1.0, 1)),
    ],
)
def test_workers_are_counted_node_by_node(
    nodes: list[tuple[float, float]], threads: int, gpus: float | None, expected: tuple[float, int] | None
) -> None:
    """Shares of a GPU and CPUs never add up across GPUs or nodes; what cannot be placed is refused, not waited for."""
    resources = [{"CPU": cpu, "GPU": gpu} for cpu, gpu in nodes]
    asked = partial(place, resources, cpus=threads, gpus=gpus, share=1.0, wanted=None, grows=False)

    if expected is None:
        with pytest.raises(NoWorkers):
            asked()
    else:
        assert asked() == expected


def test_workers_get_absolute_paths(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's working directory may be another one."""
    monkeypatch.chdir(world.store.root)
    found = RayExecutor(Setup(store=Path("here"), root_file=Path("secret")))._setup

    assert (found.store, found.root_file) == (world.store.root / "here", world.store.root / "secret")
    assert found.data_root is None


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A local Ray cluster with four CPUs and two GPUs that do not exist."""
    with imaginary_gpus(n_cpus=4):
        yield


def deadly() -> Plan:
    """The diamond with a task that kills its process once, one below it, and one that raises."""
    made = diamond()
    made.add([task("kill", named(made, "left")), task("raise", named(made, "root"))])
    made.add([task("after kill", named(made, "kill"))])
    return made


@pytest.mark.ray
def test_ray_gives_what_this_process_gives_even_if_a_worker_is_killed(cluster: None, world: World) -> None:
    """A killed worker is replaced and its task retried, a raising task fails; the others are as in the reference."""
    handlers: list[object] = []

    def listen(event: Event) -> None:
        handlers.append(signal.getsignal(signal.SIGTERM))

    plan = deadly()
    executor = RayExecutor(setup(world), workers=2, gpus_per_worker=0, perform=f"{TOYS}:mortal")
    records = world.run(plan, executor, listeners=[listen])
    elsewhere = World(world.store.root / "reference")
    reference = elsewhere.run(deadly(), InlineExecutor(setup(elsewhere), perform=echo))
    raised, killed = (records.pop(named(plan, label).id) for label in ("raise", "kill"))

    assert {i: r.result for i, r in records.items()} == {i: reference[i].result for i in records}
    assert (killed.result, killed.attempt) == (reference[killed.task_id].result, 2)
    assert executor._made == 3
    assert raised.error is not None
    assert raised.error.startswith("error: ")
    assert "should never raise" in raised.error
    assert executions(world.store) == sorted(t.label for t in plan if t.label != "raise")
    assert all("Stop.listening" in str(h) for h in handlers)


@pytest.mark.ray
def test_every_worker_sees_its_own_gpu_and_no_other(cluster: None, world: World) -> None:
    """With two GPUs two workers, each told one of them; a worker without a GPU is told that there is none."""
    pair = RayExecutor(setup(world, threads=1), perform=f"{TOYS}:placed")
    with pair:
        for index, worker in enumerate(pair.workers):
            pair.submit(worker, [task(f"gpu{index}")])
        seen = collect(pair, 2)
    alone = RayExecutor(setup(world, threads=2), workers=1, gpus_per_worker=0, perform=f"{TOYS}:placed")
    with alone:
        alone.submit(alone.workers[0], [task("cpu")])
        (blind,) = collect(alone, 1)

    assert sorted(str(s["visible"]) for s in seen) == ["0", "1"]
    assert (blind["visible"], blind["threads"]) == ("", "2")


def collect(executor: RayExecutor, n_tasks: int) -> list[dict[str, object]]:
    """Return the completions of that many tasks."""
    out: list[dict[str, object]] = []
    deadline = time.monotonic() + 200.0
    while len(out) < n_tasks and time.monotonic() < deadline:
        for completion in executor.wait(1.0):
            assert not isinstance(completion.outcome, Failure), completion.outcome
            out.append(dict(completion.outcome))
    return out


@pytest.mark.ray
def test_missing_resources_are_refused_at_once(cluster: None, world: World, tmp_path: Path) -> None:
    """Too many workers, too many GPUs, a worker that cannot start: an error before anything runs, no waiting."""
    executors = {
        "expected room for 9 worker": RayExecutor(setup(world), workers=9, gpus_per_worker=0),
        "with 3 GPU and 1 CPU each": RayExecutor(setup(world), gpus_per_worker=3.0),
        "expected a readable key root file": RayExecutor(
            setup(world, root_file=tmp_path / "absent"), workers=1, gpus_per_worker=0
        ),
    }
    for message, executor in executors.items():
        with pytest.raises(NoWorkers, match=message):
            world.run(diamond(), executor)
        assert list(executor.workers) == []
    with world.journal() as journal:
        assert {r["status"] for r in journal.runs()} == {"interrupted"}


@pytest.mark.ray
def test_ctrl_c_reaches_running_tasks(cluster: None, world: World) -> None:
    """A task that asks is told to stop, and the driver waits for it; the next run finds it undone."""
    working = world.store.root / "working"

    def press() -> None:
        while not working.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press, daemon=True)
    executor = RayExecutor(setup(world), workers=1, gpus_per_worker=0, perform=f"{TOYS}:patient")
    item: Task = task("patient")
    thread.start()
    with listening(), pytest.raises(Interrupted):
        world.run(Plan([item]), executor, limits=Limits(stop_patience_s=120.0))

    assert (world.store.root / "told").exists()
    with world.journal() as journal:
        assert journal.finished([item.id]) == {}
