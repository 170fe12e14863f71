"""Ctrl-C and SIGTERM: the first stops at checkpoints, the second at once."""

import logging
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.orchestrator.digits import Bench
from tests.orchestrator.toys import World, listening, task
from wmarena.orchestrator.executors.inline import InlineExecutor
from wmarena.orchestrator.plan.plan import Plan
from wmarena.orchestrator.plan.task import Failure, FailureKind, Task
from wmarena.orchestrator.running.loop import Interrupted
from wmarena.orchestrator.running.stopping import Stop
from wmarena.orchestrator.worker.context import Setup, WorkerContext


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_sets_the_flag_and_the_second_interrupts(
    number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    """The message says how to stop at once; the previous handlers are restored."""
    stop, announced = Stop(), []
    with listening():
        before = signal.getsignal(number)
        with caplog.at_level(logging.WARNING), stop.listening(lambda: announced.append(True), 20.0):
            assert not stop.asked
            signal.raise_signal(number)
            assert (stop.asked, announced) == (True, [True])
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
        assert signal.getsignal(number) is before
    assert "a second signal stops at once" in caplog.text


def test_a_job_in_the_background_does_not_hear_ctrl_c() -> None:
    """Where SIGINT is ignored, as a shell does for background jobs, it stays so."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        stop = Stop()
        with stop.listening(lambda: None, 1.0):
            signal.raise_signal(signal.SIGINT)
        assert not stop.asked
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_need_no_signals() -> None:
    """They cannot handle them; nothing is raised."""
    entered: list[bool] = []

    def run() -> None:
        with Stop().listening(lambda: None, 1.0):
            entered.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert entered == [True]


def test_ctrl_c_in_this_process_reaches_the_next_checkpoint(tmp_path: Path) -> None:
    """A training under way writes a checkpoint though none is due, and the next run goes on from there."""
    world = World(tmp_path)
    bench = Bench(world.store.root)
    bench.workload = {**bench.workload, "epochs": 6}
    train = bench.task(bench.train.kind, {"recipe": None, "adversary": None})
    executor = InlineExecutor(bench.setup, perform=Pressed(1).perform)
    with listening(), pytest.raises(Interrupted):
        world.run(Plan([train]), executor)
    (kept,) = world.store.checkpoint_dir(train.id).glob("*.safetensors")
    undisturbed = Bench(tmp_path / "undisturbed")
    undisturbed.run([train])

    assert kept.name.startswith("00000001-temp")
    assert not world.store.has(train.id)
    world.run(Plan([train]), InlineExecutor(bench.setup))
    assert bench.files(train) == undisturbed.files(train)


class Pressed:
    """Sends Ctrl-C a number of times when a task polls for cancellation for the first time."""

    def __init__(self, times: int) -> None:
        self.left = times

    def perform(self, bench: WorkerContext, item: Task) -> Any:
        from wmarena.orchestrator.worker.attempt import attempt_task

        asked = bench.cancelled

        def cancelled() -> bool:
            while self.left:
                self.left -= 1
                signal.raise_signal(signal.SIGINT)
            return asked()

        bench.cancelled = cancelled
        return attempt_task(bench, item)


def test_a_second_ctrl_c_in_this_process_does_not_wait(tmp_path: Path) -> None:
    """The task is left at once, without a checkpoint; the run still ends in order."""
    world = World(tmp_path)
    bench = Bench(world.store.root)
    executor = InlineExecutor(bench.setup, perform=Pressed(2).perform)
    with listening(), pytest.raises(Interrupted):
        world.run(Plan([bench.train]), executor)

    assert not world.store.checkpoint_dir(bench.train.id).exists()
    with world.journal() as journal:
        assert journal.runs()[0]["status"] == "interrupted"


def test_what_has_not_begun_when_stopping_does_not_begin(tmp_path: Path) -> None:
    """The rest of a call of several tasks is cancelled, which does not count as an attempt."""
    executor = InlineExecutor(Setup(store=World(tmp_path).store.root, device="cpu"), perform=lambda bench, item: {})
    with executor:
        executor.announce_stop()
        executor.submit("inline", [task("one"), task("two")])
        ended = executor.wait(0.0)

    assert [c.outcome.kind for c in ended if isinstance(c.outcome, Failure)] == [FailureKind.CANCELLED] * 2
