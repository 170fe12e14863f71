"""The attacker's cost by bisection: strengths tried, end of the search, no strength twice."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.experiments.spec_texts import with_lines
from wmarena import run
from wmarena.experiments.planning.cells import PlannedAttack
from wmarena.experiments.planning.expand import expand
from wmarena.experiments.planning.search import Search
from wmarena.experiments.results.rows import ResultRow
from wmarena.experiments.results.table import read_results
from wmarena.experiments.running.execution import RunSummary
from wmarena.experiments.running.pool import Pool
from wmarena.experiments.running.reporting import choose_run, rebuild
from wmarena.experiments.spec.entries import Bisection
from wmarena.experiments.spec.experiment import ExperimentSpec
from wmarena.experiments.spec.problems import SpecError
from wmarena.orchestrator.journal.journal import Journal
from wmarena.orchestrator.plan.task import TaskId
from wmarena.orchestrator.store.local import Store

SEARCHING = with_lines(
    attacks="attacks: [{name: prune_weights, strength: {bisect: sparsity, low: 0.1, high: 0.99, steps: 4}}]"
)


def flipping_at(point: float, bisection: Bisection, direction: int = 1) -> tuple[list[float], Search]:
    """Run a search against a mark that is removed from ``point`` on; return the strengths tried and the search."""

    def never(strength: float) -> PlannedAttack:
        raise AssertionError("expected a search that is stepped by hand")

    def found(strength: float) -> bool:
        return strength < point if direction > 0 else strength > point

    rows: Any = None
    low, high = TaskId("low"), TaskId("high")
    search = Search(rows, bisection, never, direction, {low: bisection.low, high: bisection.high})
    for end, strength in ((low, bisection.low), (high, bisection.high)):
        search.record(end, found(strength))
    tried: list[float] = []
    while (strength := search.next_strength()) is not None:
        tried.append(strength)
        search.steps += 1
        search.waiting = {TaskId(str(strength)): strength}
        search.record(TaskId(str(strength)), found(strength))
    return tried, search


@pytest.mark.parametrize("point", [2, 3, 17, 49, 50])
def test_integers_are_bracketed_exactly(point: int) -> None:
    """With enough steps both strengths around the flip are tried, wherever it is."""
    tried, search = flipping_at(point, Bisection("epochs", 1, 50, steps=10, whole=True))

    assert search.verdicts[point] is False
    assert search.verdicts[point - 1] is True
    assert len(tried) <= 7
    assert all(isinstance(strength, int) for strength in tried)


def test_smaller_may_be_stronger() -> None:
    """If fewer bits are a stronger attack, the search starts from above."""
    _, search = flipping_at(3, Bisection("bits", 1, 16, steps=10, whole=True), direction=-1)

    assert search.verdicts[3] is False
    assert search.verdicts[4] is True


@pytest.mark.parametrize("point", [0.5, 1000.0])
def test_a_search_without_a_flip_tries_nothing(point: float) -> None:
    """A mark removed at the weakest strength, or kept at the strongest, ends the search at once."""
    tried, _ = flipping_at(point, Bisection("lr", 1.0, 100.0))

    assert tried == []


def test_wide_ranges_are_halved_in_logarithms() -> None:
    """Over a decade or more the middle is the geometric mean, as learning rates need it."""
    tried, _ = flipping_at(0.02, Bisection("lr", 1e-4, 1.0, steps=3))

    assert tried == pytest.approx([1e-2, 1e-1, 10**-1.5])
    assert flipping_at(0.6, Bisection("sparsity", 0.5, 0.9, steps=1))[0] == pytest.approx([0.7])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunSummary]:
    """A spec with a search, run once."""
    store = tmp_path_factory.mktemp("search") / "store"
    return store, run(ExperimentSpec.parse(SEARCHING), store=store, record=False, pool=Pool(executor="inline"))


def searched(summary: RunSummary) -> list[ResultRow]:
    """The rows that a search made."""
    return [row for row in read_results(Path(summary.results)) if row.searched]


def test_a_search_brackets_the_flip(finished: tuple[Path, RunSummary]) -> None:
    """The rows of a search are ordinary rows: a strength that leaves the mark and a greater one that removes it."""
    rows = searched(finished[1])
    kept = [row.strength for row in rows if row.verdict]
    gone = [row.strength for row in rows if not row.verdict]

    assert len(rows) == 6
    assert max(kept) < min(gone)
    assert min(gone) - max(kept) < (0.99 - 0.1) / 2**3
    assert {row.strength_name for row in rows} == {"sparsity"}


def test_the_same_search_again_runs_nothing(finished: tuple[Path, RunSummary]) -> None:
    """The store has the verdicts of earlier steps: the second run repeats the search without computing."""
    store, first = finished
    again = run(ExperimentSpec.parse(SEARCHING), store=store, record=False, pool=Pool(executor="inline"))
    found, known = ([replace(r, run_id="", cached=True) for r in searched(s)] for s in (again, first))

    assert (again.executed, again.cached) == (0, first.executed)
    assert found == known


def test_the_report_is_rebuilt_with_what_the_search_added(finished: tuple[Path, RunSummary], tmp_path: Path) -> None:
    """The journal has the rows that the search added, so a report needs neither the spec nor the code."""
    store, first = finished
    home = Store(store)
    with Journal(home.journal_path) as journal:
        pages = rebuild(home, choose_run(journal, first.run_id), journal, tmp_path)

    assert len(read_results(pages.results)) == len(read_results(Path(first.results)))


def test_a_search_costs_what_it_needs_in_the_plan() -> None:
    """Before the run only the two ends are planned; the plan has the number of attacks that may be added."""
    expansion = expand(ExperimentSpec.parse(SEARCHING))

    assert len([cell for cell in expansion.plan.cells if cell.searched]) == 2
    assert (len(expansion.searches), expansion.searches.most_rows) == (1, 4)


def test_claims_have_nothing_to_search() -> None:
    """An attack that makes no suspect is left out of searches, with the reason."""
    text = with_lines(attacks="attacks: [{name: ambiguity, strength: {bisect: n_keys, low: 1, high: 9}}]")

    assert any("no suspect" in line for line in expand(ExperimentSpec.parse(text)).left_out)


@pytest.mark.parametrize(
    ("strength", "said"),
    [
        ("{bisect: epochz, low: 1, high: 5}", "expected a number of finetune, got 'epochz'"),
        ("{bisect: variant, low: 1, high: 5}", "expected a number of finetune, got 'variant'"),
        ("{bisect: epochs, low: 5, high: 5}", "expected numbers low < high"),
        ("{bisect: epochs, low: 1}", "expected numbers low < high"),
        ("{bisect: epochs, low: 1, high: 5, steps: 0}", "expected 1 to 30 steps"),
        ("{bisect: epochs, low: 1, high: 5, lo: 2}", "unknown"),
        ("{bisect: epochs, low: 0, high: 5}", "epochs"),
    ],
)
def test_an_invalid_search_is_refused(strength: str, said: str) -> None:
    """The problems of a search are reported before any task runs."""
    text = with_lines(attacks=f"attacks: [{{name: finetune, strength: {strength}}}]")
    with pytest.raises(SpecError) as refused:
        ExperimentSpec.parse(text)

    assert said in str(refused.value)


def test_a_field_is_not_given_beside_its_search() -> None:
    """A field that is searched and given has two meanings: refused."""
    text = with_lines(attacks="attacks: [{name: finetune, epochs: 3, strength: {bisect: epochs, low: 1, high: 5}}]")
    with pytest.raises(SpecError, match="once"):
        ExperimentSpec.parse(text)


def test_searched_rows_keep_their_order(finished: tuple[Path, RunSummary]) -> None:
    """Rows of a search are at the end of the table, sorted by strength."""
    rows = read_results(Path(finished[1].results))
    strengths = [row.strength for row in rows if row.searched]

    assert strengths == sorted(strengths)
    assert [row.searched for row in rows] == sorted(row.searched for row in rows)
    assert json.loads(rows[-1].attack_params)["sparsity"] == rows[-1].strength


def test_a_strength_that_is_listed_too_is_not_run_twice(tmp_path: Path) -> None:
    """A search that reaches a listed strength uses its verdict."""
    listed = with_lines(
        attacks="""
        attacks:
          - {name: prune_weights, sparsity: 0.545}
          - {name: prune_weights, strength: {bisect: sparsity, low: 0.1, high: 0.99, steps: 1}}
        """
    )
    summary = run(ExperimentSpec.parse(listed), store=tmp_path / "s", record=False, pool=Pool(executor="inline"))
    strengths = [row.strength for row in read_results(Path(summary.results)) if row.attack == "prune_weights"]

    assert strengths.count(0.545) == 1
    assert len(strengths) == 3
