"""Makespan of the published mix of attacks on virtual workers; deterministic."""

from pathlib import Path

import pytest

from benchmarks.scheduling import COLUMNS, compare, mix, spread
from wmarena.orchestrator.store.local import Store


@pytest.mark.parametrize("n_workers", [8, 32, 256])
def test_attacks_alone_take_no_longer_than_the_lower_bound_and_five_percent(tmp_path: Path, n_workers: int) -> None:
    """With existing models, only the policy separates a schedule from the bound."""
    found = mix(1, given=True)

    assert 1.0 <= compare(found, spread(found.plan, 0.0), n_workers, Store(tmp_path))["ours"] <= 1.05


@pytest.mark.parametrize("sigma", [0.0, 0.3])
@pytest.mark.parametrize("n_workers", [8, 16, 64, 256])
def test_the_policy_adds_little_to_what_the_graph_allows(tmp_path: Path, n_workers: int, sigma: float) -> None:
    """With training and embedding before, and durations that the loop cannot know: five percent at most."""
    found = mix(2)

    assert 1.0 <= compare(found, spread(found.plan, sigma), n_workers, Store(tmp_path))["ours/graph"] <= 1.05


def test_a_barrier_after_every_attack_costs_a_quarter(tmp_path: Path) -> None:
    """On eight workers, with one seed of eleven schemes; cutting the grid beforehand costs a fifth at least."""
    for given in (True, False):
        found = mix(1, given=given)
        row = compare(found, spread(found.plan, 0.0), 8, Store(tmp_path))

        assert row["saved"] >= 0.25
        assert row["ours"] <= 0.8 * row["static"]


def test_one_worker_takes_all_the_work_whatever_the_schedule(tmp_path: Path) -> None:
    """No schedule is better than another where nothing runs beside anything."""
    found = mix(1)
    row = compare(found, spread(found.plan, 0.3), 1, Store(tmp_path))

    assert [row[name] for name in COLUMNS] == pytest.approx([1.0] * len(COLUMNS))
