"""Pareto fronts, hypervolumes, and the test whether trials differ."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wmarena.experiments.study.pareto import best_of, costs, feasible, flatness, front, hypervolumes
from wmarena.orchestrator.plan.proposals import Direction

BOTH: dict[str, Direction] = {"gain": "maximize", "price": "minimize"}


def trial(number: int, *, feasible: bool = True, by_seed: list[float] | None = None, **values: float) -> dict[str, Any]:
    """A trial's document, as far as it is read here."""
    return {"number": number, "feasible": feasible, "values": values, "by_seed": {"gain": by_seed or []}}


def test_a_front_holds_undominated_trials() -> None:
    """Dominated, infeasible and repeated points are not on it."""
    found = [
        trial(0, gain=1, price=1),
        trial(1, gain=2, price=2),
        trial(2, gain=1, price=2),
        trial(3, gain=9, price=0, feasible=False),
        trial(4, gain=2, price=2),
    ]
    assert [t["number"] for t in front(found, BOTH)] == [0, 1]


def test_one_objective_has_one_best() -> None:
    """The first of the best."""
    found = [trial(0, gain=1), trial(1, gain=2), trial(2, gain=2)]
    assert [t["number"] for t in front(found, {"gain": "maximize"})] == [1]


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("shift", [0.0, -7.0])
def test_the_choice_does_not_depend_on_units(unit: float, shift: float) -> None:
    """Scaling and shifting an objective does not change the trial nearest to the ideal point."""
    points = [(1.0, 4.0), (0.9, 2.0), (0.5, 1.0), (0.0, 0.0)]
    found = [trial(i, gain=gain, price=unit * (price + shift)) for i, (gain, price) in enumerate(points)]
    study: Any = SimpleNamespace(objectives=BOTH)
    best = best_of(found, study)

    assert best is not None
    assert best["number"] == 1  # (1 - 0.9, 2/4) is 0.51 from the ideal, the others 0.56 and 1
    assert best_of([trial(0, gain=1, price=1, feasible=False)], study) is None


def test_an_objective_that_all_share_decides_nothing() -> None:
    """Where the front has one value of an objective there is no range to divide by: the other one decides."""
    study: Any = SimpleNamespace(objectives=BOTH)
    best = best_of([trial(0, gain=1, price=3), trial(1, gain=1, price=2)], study)

    assert best is not None
    assert best["number"] == 1


@given(st.lists(st.tuples(*[st.integers(0, 6)] * 3), min_size=1, max_size=12))
def test_volume_equals_counted_cells(points: list[tuple[int, int, int]]) -> None:
    """Exact in three objectives: on a lattice the volume is the number of unit cells that are dominated."""
    names: dict[str, Direction] = {"x": "minimize", "y": "minimize", "z": "minimize"}
    found = [trial(i, **dict(zip(names, map(float, p), strict=True))) for i, p in enumerate(points)]
    worst = np.max(points, axis=0)
    cells = np.stack(np.meshgrid(*(np.arange(w) for w in worst), indexing="ij"), axis=-1).reshape(-1, 3)
    counted = sum(any((np.array(p) <= cell).all() for p in points) for cell in cells)
    volumes = hypervolumes(found, names)

    assert volumes[-1] == pytest.approx(counted)
    assert volumes == sorted(volumes)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=15))
def test_no_feasible_trial_dominates_the_front(points: list[tuple[int, int]]) -> None:
    """Every trial is on the front, equal to one on it, or dominated by one on it."""
    found = [trial(i, gain=float(a), price=float(b)) for i, (a, b) in enumerate(points)]
    best = [costs(t, BOTH) for t in front(found, BOTH)]
    for t in feasible(found):
        assert any(all(x <= y for x, y in zip(one, costs(t, BOTH), strict=True)) for one in best)


def test_a_flat_surface_is_told_from_a_sloping_one() -> None:
    """Trials that differ less than seeds do are equally good; trials that differ more are not."""
    rng = np.random.default_rng(0)
    flat = [trial(i, gain=0, by_seed=list(rng.normal(size=3))) for i in range(8)]
    sloping = [trial(i, gain=0, by_seed=list(5 * i + rng.normal(size=3))) for i in range(8)]

    assert (flatness(flat, "gain") or 0) > 0.05
    assert (flatness(sloping, "gain") or 1) < 1e-6
    assert flatness(flat[:2], "gain") is None
    assert flatness([trial(i, gain=1, by_seed=[1.0, 1.0]) for i in range(3)], "gain") == 1.0


def test_flatness_needs_three_trials_of_two_seeds() -> None:
    """Trials of one seed and infeasible ones say nothing of the spread; without any spread a difference is certain."""
    spread = [trial(i, gain=0, by_seed=[float(i), i + 1.0]) for i in range(3)]
    single = [trial(i, gain=0, by_seed=[float(i)]) for i in range(3)]

    assert flatness(spread, "gain") == pytest.approx((1 + 2 * 4 / 3) ** -1.5)  # F(2, 3) = 4
    assert flatness([*spread[:2], *single], "gain") is None
    assert flatness([*spread[:2], trial(2, gain=0, by_seed=[2.0, 3.0], feasible=False)], "gain") is None
    assert flatness([trial(i, gain=0, by_seed=[float(i)] * 2) for i in range(3)], "gain") == 0.0


def test_volumes_grow_from_the_worst_point_seen() -> None:
    """One objective: the length between the best so far and the worst of all; without a trial there is none."""
    found = [trial(i, gain=gain) for i, gain in enumerate((2.0, 1.0, 5.0))]

    assert hypervolumes(found, {"gain": "maximize"}) == [1.0, 1.0, 4.0]
    assert hypervolumes([trial(0, gain=1.0, feasible=False)], {"gain": "maximize"}) == []
