"""``wmarena plan --simulate``: the schedule of a spec, from what the store knows of durations."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.experiments.commands.test_cli import document
from tests.experiments.conftest import Finished
from wmarena.experiments.cli import main

Wmarena = Callable[..., int]
Capture = pytest.CaptureFixture[str]


def test_plan_simulates_a_schedule(wmarena: Wmarena, finished: Finished, capsys: Capture) -> None:
    """With the seconds that the store recorded: one worker takes their sum, many the longest chain."""
    found = {}
    for n_workers in (1, 99):
        assert wmarena("plan", finished.spec, "--simulate", f"workers={n_workers}", "--json") == 0
        found[n_workers] = document(capsys)
    one, many = found[1], found[99]

    assert (one["tasks"], one["durations"]["recorded"]) == (14, 14)
    assert one["makespan_s"] == pytest.approx(one["total_work_s"])
    assert many["makespan_s"] == pytest.approx(many["critical_path_s"])
    assert many["makespan_over_lower_bound"] == pytest.approx(1.0)
    assert one["total_work_s"] == pytest.approx(many["total_work_s"])


def test_plan_simulates_what_is_missing(wmarena: Wmarena, finished: Finished, capsys: Capture) -> None:
    """After a run no task is missing; a longer attack adds tasks, with the median seconds of their class."""
    wmarena("plan", finished.spec, "--simulate", "workers=2,tasks=missing", "--json")
    nothing = document(capsys)
    longer = ("--set", "attacks.finetune.epochs=[1, 2, 3]")
    wmarena("plan", finished.spec, "--simulate", "workers=2,tasks=missing", "--json", *longer)
    more = document(capsys)

    assert (nothing["tasks"], nothing["makespan_s"]) == (0, 0.0)
    assert (more["tasks"], more["durations"]) == (2, {"recorded": 0, "median": 2, "guessed": 0})


def test_plan_shows_a_schedule_to_people(wmarena: Wmarena, finished: Finished, capsys: Capture) -> None:
    """The schedule follows the plan, with the sources of its seconds."""
    wmarena("plan", finished.spec, "--simulate", "workers=3")
    shown = capsys.readouterr().out

    assert "Simulated on 3 workers: the whole plan, 14 tasks" in shown
    assert {"makespan", "utilisation", "critical", "lower"} <= set(shown.split())
    assert "14 recorded for the task" in shown


def test_a_simulation_writes_nothing(tmp_path: Path, finished_once: Finished, capsys: Capture) -> None:
    """It creates no store; without one, seconds are guesses."""
    status = main(
        ["--store", str(tmp_path / "new"), "plan", str(finished_once.spec), "--simulate", "workers=2", "--json"]
    )

    assert (status, document(capsys)["durations"]["guessed"]) == (0, 14)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("workers=0", "expected an integer of 1 or more, got '0'"),
        ("tasks=missing", "expected an integer of 1 or more, got ''"),
        ("workers=2,gpus=1", "no field 'gpus'"),
        ("workers=2,tasks=some", "expected all or missing, got 'some'"),
    ],
)
def test_an_invalid_simulation_is_refused(asked: str, said: str, capsys: Capture) -> None:
    """The message names what is expected, before any file is read."""
    assert main(["plan", "quickstart", "--simulate", asked]) == 2
    assert said in capsys.readouterr().err


def test_a_schedule_is_no_mermaid_graph(wmarena: Wmarena, finished: Finished, capsys: Capture) -> None:
    """A schedule is text or JSON."""
    assert wmarena("plan", finished.spec, "--simulate", "workers=2", "--format", "mermaid") == 2
    assert "expected --format text or json with --simulate, got mermaid" in capsys.readouterr().err
