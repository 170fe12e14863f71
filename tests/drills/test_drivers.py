"""Drivers that are killed, stopped, or run at the same time."""

import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.drills.drill import FULL, LONG, Drill, all_end, descendants, meet

SEEDS = range(10 if FULL else 1)


@pytest.mark.ray
@pytest.mark.parametrize("seed", SEEDS)
def test_a_killed_driver_costs_nothing(drill: Drill, undisturbed: Drill, seed: int, counts: Counter[str]) -> None:
    """SIGKILL at a random moment: its workers go with it, and the same command ends as if nothing had happened."""
    rng = random.Random(seed)
    n_tasks = len(undisturbed.ask("SELECT id FROM task"))
    driver = drill.start()
    driver.wait_for_done(rng.randrange(1, n_tasks // 2))
    time.sleep(rng.uniform(0.0, 0.5))
    family = descendants(driver.process.pid)
    driver.send(signal.SIGKILL)
    driver.end(status=-signal.SIGKILL)
    again = drill.run()
    drill.check(undisturbed)

    assert again.summary["cached"] > 0
    assert again.summary["executed"] + again.summary["cached"] == n_tasks
    assert all_end(family)
    counts["drivers killed"] += 1


@pytest.mark.ray
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("executor", [("--executor", "inline"), ("--workers", "1")], ids=["inline", "ray"])
def test_a_stopped_training_goes_on_from_its_checkpoint(
    tmp_path: Path, long: Drill, executor: tuple[str, ...], number: signal.Signals, counts: Counter[str]
) -> None:
    """Ctrl-C or SIGTERM in the middle of a training, where no checkpoint is due: exit 3, a checkpoint, the same end."""
    if not FULL and (number is signal.SIGTERM) != (executor[0] == "--workers"):
        pytest.skip("the other two of four are drilled by `make drill`")
    drill = Drill(tmp_path, LONG, options=executor)
    driver = drill.start()
    driver.wait_for(drill.begun, "a run")
    if executor[0] == "--workers":
        driver.wait_for(lambda: driver.workers(".perform"), "a worker at work")
    time.sleep(1.0)
    driver.send(number)
    driver.end(status=3)
    kept = list(drill.store.glob("checkpoints/*/*-temp-*.safetensors"))
    drill.run()
    drill.check(long)

    assert "the same command" in driver.said
    assert "Traceback" not in driver.said
    assert len(kept) == 1
    assert int(kept[0].name.partition("-")[0]) >= 1
    counts["runs stopped by a signal"] += 1


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path, counts: Counter[str]) -> None:
    """Also where nothing reaches a checkpoint: exit 3, no traceback."""
    drill = Drill(tmp_path, LONG, options=("--executor", "inline"))
    driver = drill.start()
    driver.wait_for(drill.begun, "a run")
    # Both arrive while it is suspended, so that it hears the second before any checkpoint; two of a kind would be one.
    for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
        driver.send(number)
    driver.end(status=3)

    assert "a second signal stops at once" in driver.said
    assert list(drill.store.glob("checkpoints/*/*.safetensors")) == []
    assert "Traceback" not in driver.said
    counts["runs stopped by a signal"] += 1


def test_two_drivers_on_one_store_do_nothing_twice(inline: Drill, undisturbed: Drill, counts: Counter[str]) -> None:
    """The second driver is refused, or waits with ``--wait`` and then finds all tasks done."""
    first = inline.start()
    first.wait_for_done(1)
    refused, waiting = meet(first, inline.start, "waiting for")
    inline.check(undisturbed)

    assert f"(process {first.process.pid} on " in refused.said
    assert "`wmarena run --wait`" in refused.said
    assert f"waiting for {inline.store}, which is held by run " in waiting.said
    assert waiting.summary["executed"] == 0
    assert len(inline.ask("SELECT id FROM run")) == 2
    counts["drivers that met"] += 2
