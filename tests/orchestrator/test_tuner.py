"""The tuner: proposals, recovery after a killed driver, storages."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wmarena.orchestrator.files.errors import StoreBusy, StoreError
from wmarena.orchestrator.plan.proposals import Choices, Method, Range, RecordedTrial, TrialOutcome
from wmarena.orchestrator.tuner import Tuner, open_storage

SPACE = {"a": Range(low=0.02, high=0.2), "b": Range(low=0.02, high=0.2, step=0.02)}


@contextmanager
def tuner(folder: Path, *, url: str | None = None, **options: Any) -> Iterator[Tuner]:
    """The study "s", held."""
    directions = options.pop("directions", ["maximize"])
    space = options.pop("space", SPACE)
    with open_storage(folder, "s", url) as storage:
        yield Tuner("s", storage, space, directions, Method(**{"seed": 1, **options}))


def answer(study: Tuner, n: int) -> list[Mapping[str, Any]]:
    """Ask and tell ``n`` times; more ``a`` is better."""
    out = []
    for _ in range(n):
        proposal = study.ask()
        study.tell(proposal.number, TrialOutcome(state="complete", values=(float(str(proposal.params["a"])),)))
        out.append(proposal.params)
    return out


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp", "random"])
def test_every_sampler_proposes_within_the_space(tmp_path: Path, sampler: str) -> None:
    """Numbers have six digits at most and stay in their ranges; steps are met exactly."""
    with tuner(tmp_path, sampler=sampler, startup=3, population=4) as study:
        for params in answer(study, 6):
            assert 0.02 <= params["a"] <= 0.2
            assert params["b"] in SPACE["b"].values  # type: ignore[operator]


def test_resuming_does_not_repeat_what_was_drawn(tmp_path: Path) -> None:
    """The second part of a study draws other points than the first, although its seed is the same."""
    with tuner(tmp_path, sampler="random") as study:
        first = answer(study, 3)
    with tuner(tmp_path, sampler="random") as study:
        assert not [params for params in answer(study, 3) if params in first]


def test_a_trial_that_nobody_works_on_is_tried_again_once(tmp_path: Path) -> None:
    """Given up and queued again with its parameters, however often the study is killed in between."""
    with tuner(tmp_path) as study:
        lost = study.ask()
    for _ in range(2):
        with tuner(tmp_path) as study:
            for number in study.unfinished():
                study.give_up(number)
            study.retry([lost.number])
    with tuner(tmp_path) as study:
        assert study.unfinished() == {}
        assert study.ask().params == lost.params
        assert study.ask().params != lost.params


def test_half_a_line_and_a_stale_lock_are_repaired(tmp_path: Path) -> None:
    """A driver that died while writing costs the line that it wrote, and no wait for its lock."""
    with tuner(tmp_path) as study:
        answer(study, 2)
    with (tmp_path / "s.log").open("ab") as file:
        file.write(b'{"op_code": 4, "tri')
    (tmp_path / "s.log.lock").symlink_to(tmp_path / "s.log")
    with tuner(tmp_path) as study:
        answer(study, 2)
        assert study.ask().number == 4
    with tuner(tmp_path) as study:
        assert list(study.unfinished()) == [4]


def ended(number: int, a: float) -> RecordedTrial:
    """A trial that was worth ``a``."""
    outcome = TrialOutcome(state="complete", values=(a,), constraints={"limit": -1.0})
    return RecordedTrial(number=number, params={"a": a, "b": 0.02}, outcome=outcome)


def test_trials_of_another_machine_are_recalled(tmp_path: Path) -> None:
    """An empty storage goes on at the next number, with what was found, however often it is told."""
    past = [ended(number, a) for number, a in ((0, 0.05), (1, 0.1), (3, 0.15), (4, 0.2))]  # 2 was never asked for
    for _ in range(2):
        with tuner(tmp_path, startup=1) as study:
            study.recall(past, anew=True)
            assert study.importance(0)["a"] == 1.0
            assert study.unfinished() == {}
    with tuner(tmp_path) as study:
        assert study.ask().number == 5


@pytest.mark.parametrize("again", [False, True])
def test_a_lost_trial_of_another_machine_is_tried_once_more(tmp_path: Path, again: bool) -> None:
    """Unless somebody has done so already."""
    lost = RecordedTrial(number=1, params={"a": 0.05, "b": 0.1}, outcome=None)
    later = [replace(lost, number=2, outcome=TrialOutcome(state="pruned"))] if again else []
    with tuner(tmp_path) as study:
        study.recall([ended(0, 0.1), lost, *later], anew=True)
        study.retry([1])
    with tuner(tmp_path) as study:
        assert (study.ask().params == lost.params) == (not again)


def test_an_outdated_storage_is_rewritten(tmp_path: Path) -> None:
    """A machine whose trial was never known elsewhere takes over what the others have under the same number."""
    with tuner(tmp_path) as study:
        (first,) = answer(study, 1)
        study.ask()
    past = [
        RecordedTrial(
            number=0, params=dict(first), outcome=TrialOutcome(state="complete", values=(float(str(first["a"])),))
        )
    ]
    with tuner(tmp_path) as study:
        study.recall(past, anew=False)
        assert list(study.unfinished()) == [1]
        with pytest.raises(StoreError, match="give `storage` that was used before"):
            study.recall([*past, ended(1, 0.1)], anew=False)
        study.recall([*past, ended(1, 0.1)], anew=True)
        assert study.unfinished() == {}
        assert study.ask().number == 2


def test_numbers_at_the_ends_of_a_range_are_recalled(tmp_path: Path) -> None:
    """What rounding to six digits has moved out of its range, or off its steps, is no reason to refuse a trial."""
    space = {"a": Range(low=0.12345678, high=0.98765432), "b": Range(low=0.0, high=2 / 3, step=1 / 3)}
    past = [RecordedTrial(number=0, params={"a": 0.123457 - 1e-6, "b": 0.333333}, outcome=None)]
    with tuner(tmp_path, space=space) as study:
        study.recall(past, anew=True)
        assert study.ask().number == 1


def test_one_process_tunes_a_study(tmp_path: Path) -> None:
    """A second one is refused, with the way out."""
    with tuner(tmp_path), pytest.raises(StoreBusy, match="held by tuning of s"), open_storage(tmp_path, "s", None):
        pass


def test_a_database_holds_studies_too(tmp_path: Path) -> None:
    """SQLite by URL: trials are there when it is opened again."""
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    with tuner(tmp_path, url=url) as study:
        answer(study, 2)
    with tuner(tmp_path, url=url) as study:
        assert study.ask().number == 2


def test_a_storage_that_cannot_be_opened_is_bad_input(tmp_path: Path) -> None:
    """The message names what was found and the way out."""
    with (
        pytest.raises(StoreError, match="check `storage`"),
        tuner(tmp_path, url=f"sqlite:///{tmp_path / 'no' / 'folder' / 'x.db'}"),
    ):
        pass


def test_other_objectives_are_another_study(tmp_path: Path) -> None:
    """A study cannot change what it optimises."""
    with tuner(tmp_path):
        pass
    with pytest.raises(StoreError, match="another name"), tuner(tmp_path, directions=["minimize"]):
        pass


def test_a_grid_is_every_point_once(tmp_path: Path) -> None:
    """Points are proposed in order, and proposing them again adds none."""
    space = {"a": Range(low=1, high=3, whole=True), "b": Choices(("x", "y"))}
    with tuner(tmp_path, space=space, sampler="grid") as study:
        points = study.grid()
        study.propose(points)
        study.propose(points)
        assert [study.ask().params for _ in points] == points
    assert len(points) == 6


def test_the_parameter_that_matters_has_the_importance(tmp_path: Path) -> None:
    """fANOVA gives nearly all variance to what the objective depends on; without variance it says nothing."""
    with tuner(tmp_path, sampler="random") as study:
        assert study.importance(0) == {}
        answer(study, 20)
        assert study.importance(0)["a"] > 0.9


def test_hyperband_gives_up_what_is_worse_than_its_rung(tmp_path: Path) -> None:
    """Of many trials that report at growing steps, some worse ones are given up before the last step."""
    with tuner(tmp_path, pruner="hyperband", rungs=(1, 3, 9)) as study:
        given_up = []
        for value in [1.0, 0.9, 0.8, 0.1, 0.2, 0.3] * 4:
            number = study.ask().number
            stopped = any(study.report(number, value, step) for step in (1, 3))
            given_up += [value] if stopped else []
            study.tell(
                number, TrialOutcome(state="pruned") if stopped else TrialOutcome(state="complete", values=(value,))
            )

    assert given_up
    assert max(given_up) < 1.0


def test_the_median_pruner_stops_the_worst(tmp_path: Path) -> None:
    """A trial that is worse than the median of earlier ones at the same step is given up."""
    with tuner(tmp_path, pruner="median", startup=2) as study:
        for _ in range(3):
            number = study.ask().number
            assert not study.report(number, 1.0, 1)
            study.tell(number, TrialOutcome(state="complete", values=(1.0,)))
        assert study.report(study.ask().number, 0.1, 1)
