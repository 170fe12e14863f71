"""Out of memory: smaller evaluation batches, then a whole GPU."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from tests.orchestrator.clusters import imaginary_gpus
from tests.orchestrator.digits import Bench
from tests.orchestrator.toys import World, failed, named, task
from wmarena.experiments.workloads.images.digits import DigitsMlp
from wmarena.experiments.workloads.networks.base import Network
from wmarena.experiments.workloads.networks.small import SmallMlp
from wmarena.orchestrator.executors.ray import RayExecutor
from wmarena.orchestrator.executors.roster import Roster, WorkerSlot
from wmarena.orchestrator.plan import plugins
from wmarena.orchestrator.plan.events import Event
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.task import Failure, FailureKind, Kind
from wmarena.orchestrator.worker.context import Setup
from wmarena.orchestrator.worker.evaluation import SMALLER


class Cramped(SmallMlp):
    """A network whose activations fill the memory if more than a few images are judged, or trained, at once."""

    most_judged: ClassVar[int] = 10_000
    most_trained: ClassVar[int] = 10_000
    seen: ClassVar[list[int]] = []

    def taps(self, inputs: Tensor) -> tuple[Tensor, ...]:
        self.seen.append(len(inputs))
        if len(inputs) > (self.most_trained if torch.is_grad_enabled() else self.most_judged):
            raise torch.OutOfMemoryError(f"CUDA out of memory with {len(inputs)} images")
        return super().taps(inputs)


@dataclass(frozen=True, kw_only=True)
class CrampedDigits(DigitsMlp):
    """Digits on it."""

    name: ClassVar[str] = "digits_mlp"

    def build(self) -> Network:
        return Cramped(n_inputs=24 * 24)


@pytest.fixture
def cramped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A bench whose workload runs out of memory as the class variables of ``Cramped`` say."""
    bench = Bench(tmp_path / "store")
    monkeypatch.setattr(Cramped, "seen", [])
    real = plugins.plugin_class
    monkeypatch.setattr(plugins, "plugin_class", lambda k, n: CrampedDigits if k == "workload" else real(k, n))
    return bench


def test_models_are_judged_in_smaller_batches_when_memory_runs_out(
    cramped: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights and scores come out, in training batches of the same size; the result says how it was judged."""
    undisturbed = cramped.attempt(cramped.train)
    batch_sizes = set(Cramped.seen)
    weights = cramped.files(cramped.train)
    monkeypatch.setattr(Cramped, "most_judged", SMALLER[1])
    Cramped.seen.clear()
    cramped.store.set_aside(cramped.train.id)
    remedied = cramped.attempt(cramped.train)

    assert not isinstance(undisturbed, Failure)
    assert not isinstance(remedied, Failure)
    assert max(batch_sizes) > SMALLER[0]
    assert remedied["memory"]["most_evaluated"] == SMALLER[1]
    assert "most_evaluated" not in undisturbed["memory"]
    assert [remedied[n] for n in ("metric_test", "metric_val", "made")] == [
        undisturbed[n] for n in ("metric_test", "metric_val", "made")
    ]
    assert {n: h for n, h in cramped.files(cramped.train).items() if n != "history.json"} == {
        n: h for n, h in weights.items() if n != "history.json"
    }


def test_training_batches_never_shrink(cramped: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """If training itself does not fit, the task ends out of memory; no step was made with fewer images than asked."""
    monkeypatch.setattr(Cramped, "most_trained", 20)
    ended = failed(cramped.attempt(cramped.train))

    assert ended.kind is FailureKind.OUT_OF_MEMORY
    assert Cramped.seen == [50] * (1 + len(SMALLER))


def test_a_result_says_how_much_memory_it_took(cramped: Bench) -> None:
    """Resident bytes of the process where there is no GPU."""
    result = cramped.attempt(cramped.train)

    assert not isinstance(result, Failure)
    assert result["memory"]["peak_bytes"] > 50 * 2**20
    assert "total_bytes" not in result["memory"]


# A GPU of its own


@pytest.mark.ray
def test_a_task_too_big_for_its_share_gets_a_whole_gpu(two_gpus: None, tmp_path: Path) -> None:
    """Its neighbours leave, it runs alone at its second attempt, and then the GPU is shared again."""
    world = World(tmp_path)
    plan = Plan([task(f"warm{i}") for i in range(4)])
    warm = [named(plan, f"warm{i}") for i in range(4)]
    plan.add([task(f"big{i}", *warm) for i in range(2)] + [task(f"small{i}", *warm) for i in range(6)])
    plan.add([task("last", named(plan, "big0"), named(plan, "big1"), kind=Kind.VERIFY)])
    executor = RayExecutor(
        Setup(store=world.store.root, device="cpu"),
        gpus_per_worker=0.5,
        perform="tests.orchestrator.toys:crowded",
        look_s=0.2,
    )
    took: list[tuple[str, bool]] = []

    def listen(event: Event) -> None:
        if event.kind == "started":
            took.append((event.task.label, executor.has_whole_gpu(event.worker)))

    records = world.run(plan, executor, listeners=[listen])

    assert {r.state.value for r in records.values()} == {"done"}
    assert sorted(t for t in took if t[0].startswith("big")) == [
        (f"big{i}", whole) for i in range(2) for whole in (False, True)
    ]
    assert [whole for label, whole in took if label == "last"] == [False]
    assert {r.attempt for i, r in records.items() if plan.tasks[i].label.startswith("big")} == {2}


@pytest.fixture(scope="module")
def two_gpus() -> Iterator[None]:
    """A local Ray cluster with two GPUs that do not exist."""
    with imaginary_gpus(n_cpus=8):
        yield


def test_the_least_busy_gpu_is_cleared() -> None:
    """Idle workers are dropped at once, busy ones after their call; those on the other GPU stay."""
    roster = Roster(patience_s=10.0)
    for index in range(4):
        roster.add(f"w{index}", WorkerSlot(actor=None, asked=0.0), f"hello{index}")
        roster.mark_started(f"w{index}", {"node": "n", "gpus": (str(index // 2),)})
    for busy in (0, 1, 3):
        roster.slots[f"w{busy}"].tasks, roster.slots[f"w{busy}"].call = (task("t"),), object()

    assert roster.clear_gpu() == ["w2"]
    assert [name for name, slot in roster.slots.items() if slot.leaving] == ["w2", "w3"]


def test_a_gpu_that_is_not_cleared_is_given_up() -> None:
    """Leaving workers may finish their calls; ``patience_s`` after that the reservation fails."""
    roster = Roster(patience_s=10.0)
    roster.add("busy", WorkerSlot(actor=None, asked=0.0, leaving=True), "one")
    roster.mark_started("busy", {"node": "n", "gpus": ("0",)})
    roster.add("alone", WorkerSlot(actor=None, asked=0.0, whole=True), "two")

    assert roster.unplaced(100.0) == []
    roster.remove("busy")
    assert roster.unplaced(105.0) == []
    assert roster.unplaced(111.0) == ["alone"]
    assert roster.whole_refused
