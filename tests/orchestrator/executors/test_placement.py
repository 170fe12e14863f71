"""Packing by measured memory: as many workers on a GPU as the largest task allows."""

from pathlib import Path

import pytest

from tests.orchestrator.toys import World, task
from wmarena.orchestrator.executors.placement import CONTEXT_BYTES, MARGIN, gpu_share, place
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.task import Task

GIB = 2**30


def sized(label: str, peak: int | None, total: int = 80 * GIB) -> tuple[Task, dict[str, object]]:
    """A task of its own class with its result; None: it ran on a CPU."""
    memory = {"peak_bytes": GIB} if peak is None else {"peak_bytes": peak, "total_bytes": total}
    return task(label, workload=label), {"memory": memory}


def journalled(tmp_path: Path, *entries: tuple[Task, dict[str, object]]) -> World:
    """A world whose journal has these results."""
    world = World(tmp_path)
    from tests.orchestrator.toys import Scripted

    script = {item.label: [result] for item, result in entries}
    world.run(Plan([item for item, _ in entries]), Scripted(script, store=world.store))
    return world


@pytest.mark.parametrize(
    ("peaks", "share"),
    [
        ([2 * GIB], 1 / 8),
        ([2 * GIB, 15 * GIB], 1 / 4),
        ([30 * GIB, 2 * GIB], 1 / 2),
        ([31 * GIB + 1, 40 * GIB], 1.0),
        ([2 * GIB, None], 1.0),
        ([None], 1.0),
    ],
)
def test_the_largest_task_decides(tmp_path: Path, peaks: list[int | None], share: float) -> None:
    """The largest measured peak with a margin: 1, 1/2, 1/3, ... 1/8; a whole GPU where unknown."""
    entries = [sized(f"t{i}", peak) for i, peak in enumerate(peaks)]
    world = journalled(tmp_path, *entries)
    with world.journal() as journal:
        found = gpu_share([item for item, _ in entries], journal.gpu_peaks())

    assert found == pytest.approx(share)
    for peak in peaks:
        assert found == 1.0 or (peak is not None and peak * MARGIN + CONTEXT_BYTES <= found * 80 * GIB)


def test_a_task_never_seen_gets_a_whole_gpu(tmp_path: Path) -> None:
    """One class without a measurement is enough; a plan without open tasks needs no GPU."""
    entry = sized("seen", 2 * GIB)
    with journalled(tmp_path, entry).journal() as journal:
        peaks = journal.gpu_peaks()

    assert gpu_share([entry[0], task("new", workload="new")], peaks) == 1.0
    assert gpu_share([], peaks) == 1.0


def test_of_several_measurements_the_largest_counts(tmp_path: Path) -> None:
    """Measured against the GPU that it ran on: 8 GiB of 16 are more than 20 of 80."""
    large, small = sized("one", 20 * GIB), (task("two", workload="one"), sized("one", 8 * GIB, 16 * GIB)[1])
    with journalled(tmp_path, large, small).journal() as journal:
        assert set(journal.gpu_peaks().values()) == {(8 * GIB, 16 * GIB)}


def test_the_share_is_for_clusters_that_have_gpus() -> None:
    """Without --gpus-per-worker: the share that tasks need, none on a cluster without GPUs."""
    gpu, cpu = {"CPU": 16.0, "GPU": 2.0}, {"CPU": 16.0}

    assert place([gpu], cpus=1, gpus=None, share=0.25, wanted=None, grows=False) == (0.25, 8)
    assert place([gpu], cpus=1, gpus=1.0, share=0.25, wanted=None, grows=False) == (1.0, 2)
    assert place([cpu], cpus=1, gpus=None, share=0.25, wanted=None, grows=False) == (0.0, 16)


def test_a_cluster_that_grows_may_be_asked_for_more_than_it_has() -> None:
    """With a number of workers that its autoscaler can go by; this machine is never asked for more than it has."""
    head: dict[str, float] = {"CPU": 0.0}

    assert place([head], cpus=1, gpus=1.0, share=1.0, wanted=16, grows=True) == (1.0, 16)
