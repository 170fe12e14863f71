"""Elastic clusters: joining nodes are used, the tasks of lost nodes run again."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.orchestrator.toys import World, echo, executions, named, task
from wmarena.orchestrator.executors.inline import InlineExecutor
from wmarena.orchestrator.executors.ray import RayExecutor
from wmarena.orchestrator.executors.roster import Roster, WorkerSlot
from wmarena.orchestrator.plan.events import Event
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.worker.context import Setup


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A cluster of several nodes on this machine; it begins with one that has one CPU."""
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        handler = signal.getsignal(signal.SIGTERM)
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        yield nodes
        ray.shutdown()
        nodes.shutdown()
        signal.signal(signal.SIGTERM, handler)


def journey() -> Plan:
    """Tasks that need two nodes to end, and below them tasks that end on the first node only."""
    plan = Plan([task(f"meet-{i}") for i in range(3)])
    plan.add([task(f"stay-{i}", named(plan, "meet-0"), named(plan, "meet-1")) for i in range(4)])
    return plan


def when(condition: Callable[[], bool], act: Callable[[], object]) -> threading.Thread:
    """Act once the condition holds, beside whatever runs."""

    def watch() -> None:
        deadline = time.monotonic() + 300.0
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.05)
        act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


@pytest.mark.ray
@pytest.mark.parametrize("workers", [None, 3])
def test_nodes_join_and_leave_while_a_plan_runs(cluster: Any, tmp_path: Path, workers: int | None) -> None:
    """A node that joins gets work, with the number of workers left open or as a maximum; a node that is lost takes no
    result along: the rest is computed elsewhere, and everything is as without Ray."""
    world = World(tmp_path)
    root, joined, heard = world.store.root, [], []
    (root / "home").write_text(cluster.head_node.node_id)

    def join(event: Event) -> None:
        heard.append(event)
        if not joined:
            joined.append(cluster.add_node(num_cpus=2))

    def abroad() -> bool:
        return any(p.name != cluster.head_node.node_id for p in (root / "stay").glob("*"))

    leaving = when(abroad, lambda: cluster.remove_node(joined[0], allow_graceful=False))
    executor = RayExecutor(
        Setup(store=root, device="cpu"),
        workers=workers,
        address=cluster.address,
        perform="tests.orchestrator.toys:nomadic",
        look_s=0.2,
    )
    plan = journey()
    records = world.run(plan, executor, listeners=[join])
    leaving.join()
    elsewhere = World(tmp_path / "reference")
    reference = elsewhere.run(journey(), InlineExecutor(Setup(store=elsewhere.store.root), perform=echo))

    assert {i: r.result for i, r in records.items()} == {i: r.result for i, r in reference.items()}
    assert executions(world.store) == sorted(t.label for t in plan)
    assert {e.task.label.split("-")[0] for e in heard if e.kind == "retried"} == {"stay"}


def started(*names: str, patience_s: float = 10.0, node: str = "here") -> Roster:
    """A roster of started workers."""
    roster = Roster(patience_s=patience_s)
    for name in names:
        roster.add(name, WorkerSlot(actor=None, asked=0.0), f"hello {name}")
        roster.hellos.pop(f"hello {name}")
        roster.mark_started(name, {"node": node, "gpus": ()})
    return roster


def test_a_worker_is_idle_after_its_hello() -> None:
    """Before its hello it gets no task, and nothing waits for it."""
    roster = Roster(patience_s=10.0)
    roster.add("w0", WorkerSlot(actor=None, asked=0.0), "hello")

    assert not roster.slots["w0"].idle
    roster.mark_started("w0", {"node": "here", "gpus": ()})
    assert roster.slots["w0"].idle


def test_a_worker_without_a_node_is_dropped_and_requested_again_when_nodes_change() -> None:
    """A worker is dropped after ``patience_s``; no more are requested until the nodes change."""
    roster = started("w0")
    roster.update_nodes({"here"})
    roster.add("w1", WorkerSlot(actor=None, asked=0.0), "hello")

    assert roster.unplaced(9.0) == []
    assert roster.unplaced(11.0) == ["w1"]
    roster.remove("w1")
    assert roster.n_missing(2, 12.0) == 0
    roster.update_nodes({"here"})
    assert roster.n_missing(2, 13.0) == 0
    roster.update_nodes({"here", "there"})
    assert roster.n_missing(2, 14.0) == 1


def test_idle_workers_of_a_lost_node_are_dropped() -> None:
    """The call of a busy one fails by itself; a starting one may still be placed on another node."""
    roster = started("idle", "busy")
    roster.slots["busy"].call = object()
    roster.add("starting", WorkerSlot(actor=None, asked=0.0), "hello")

    assert roster.lost({"here", "there"}) == []
    assert roster.lost({"there"}) == ["idle"]
