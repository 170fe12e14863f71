"""Calibration: a true null model passes, a false one is flagged, also in the table of a real run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.experiments.spec_texts import with_lines
from wmarena import run
from wmarena.experiments.planning.expand import expand
from wmarena.experiments.results.calibration import CONTROL, Calibration, calibrations
from wmarena.experiments.results.table import build_rows, calibrated, read_results
from wmarena.experiments.running.pool import Pool
from wmarena.experiments.spec.experiment import ExperimentSpec
from wmarena.orchestrator.journal.journal import Journal
from wmarena.orchestrator.plan.evidence import Record
from wmarena.orchestrator.plan.plan import Cell
from wmarena.orchestrator.plan.task import State, TaskId
from wmarena.orchestrator.store.local import Store
from wmarena.schemes.statistics import binomial_threshold, log10_binomial_tail

N, Q = 128, 0.5


def pair(k: int) -> dict[str, Any]:
    """Evidence of one key in a calibration task."""
    passing = binomial_threshold(N, Q)
    return {
        "statistic": k / N,
        "k": k,
        "log10_p": log10_binomial_tail(k, N, Q),
        "verdict": k >= passing,
        "threshold": passing / N,
    }


def calibration_of(counts: np.ndarray, n_models: int = 10) -> Calibration:
    """The calibration of so many matches, spread over models."""
    cells, records = [], {}
    for number, part in enumerate(np.array_split(counts, n_models)):
        verify = TaskId(f"v{number}")
        cells.append(
            Cell(
                verify=verify,
                embed=TaskId("e"),
                suspect=TaskId(f"m{number}"),
                clean=TaskId("c"),
                workload="w",
                metric="accuracy",
                scheme="s",
                scheme_params={},
                attack="none",
                attack_params={},
                seed=0,
                control=CONTROL,
            )
        )
        found = {"p_method": "binomial", "n": N, "q": Q, "pairs": [pair(int(k)) for k in part]}
        records[verify] = Record(verify, State.DONE, result={"calibration": found})
    (one,) = calibrations(cells, records, {TaskId("c"): "{}"})
    return one


def test_a_true_null_model_is_not_contradicted() -> None:
    """Binomial counts give rates inside their intervals, an unremarkable distance, and no mismatch."""
    found = calibration_of(np.random.default_rng(1).binomial(N, Q, 300))

    assert (found.n_models, found.n_pairs, found.false_positives) == (10, 300, 0)
    assert found.fpr_low == 0.0
    assert 0.009 < found.fpr_high < 0.013
    assert not found.mismatch
    assert all(rate.low <= rate.expected <= rate.high for rate in found.rates)
    assert all(rate.expected <= rate.level for rate in found.rates)
    assert abs(found.mean - 0.5) < 0.01
    assert found.expected_sd == pytest.approx(0.0442, abs=1e-4)
    assert found.gauss_threshold == pytest.approx(0.573, abs=0.01)


@pytest.mark.parametrize("q", [0.54, 0.46])
def test_a_shifted_null_model_is_flagged(q: float) -> None:
    """Keys that match four points more, or less, often than chance are a mismatch."""
    assert calibration_of(np.random.default_rng(2).binomial(N, q, 300)).mismatch


def test_dependent_matches_are_flagged() -> None:
    """Counts with the right mean that scatter three times too far are a mismatch."""
    counts = np.clip(np.random.default_rng(3).normal(N * Q, 3 * (N * Q * (1 - Q)) ** 0.5, 300), 0, N).astype(int)

    assert calibration_of(counts).mismatch


CALIBRATED = with_lines(calibration="calibration: {models: 3, keys: 8}") + "only: {uchida: [digits_mlp]}\n"


def test_models_are_shared_and_keys_are_fresh(tmp_path: Path) -> None:
    """A calibrated run judges models x keys pairs, no two keys alike, and adds no row to the table."""
    spec = ExperimentSpec.parse(CALIBRATED)
    plain = ExperimentSpec.parse(with_lines())
    summary = run(spec, store=tmp_path / "s", record=False, pool=Pool(executor="inline"))
    plan = expand(spec).plan
    with Journal(Store(tmp_path / "s").journal_path) as journal:
        records = journal.finished(list(plan.tasks))
    (found,) = calibrated(plan, records)

    assert len(read_results(Path(summary.results))) == len(expand(plain).plan.cells)
    assert (found.n_models, found.n_pairs) == (3, 24)
    assert len(set(found.statistics)) > 3
    assert len(plan) == len(expand(plain).plan) + 3 + 3
    assert len(build_rows(plan, records, experiment="e", run_id="r")) == len(expand(plain).plan.cells)


def test_a_mismatch_stands_on_every_row_of_the_scheme(tmp_path: Path) -> None:
    """``null_mismatch`` is raised on all rows of a scheme whose calibration contradicts it, and on no other."""
    spec = ExperimentSpec.parse(CALIBRATED)
    run(spec, store=tmp_path / "s", record=False, pool=Pool(executor="inline"))
    plan = expand(spec).plan
    with Journal(Store(tmp_path / "s").journal_path) as journal:
        records = journal.finished(list(plan.tasks))
    for cell in plan.cells:
        if cell.control == CONTROL:
            wrong = {"p_method": "binomial", "n": N, "q": Q, "pairs": [pair(N // 2 + 12)] * 8}
            records[cell.verify] = Record(cell.verify, State.DONE, result={"calibration": wrong})
    rows = build_rows(plan, records, experiment="e", run_id="r")

    assert all("null_mismatch" in row.caveats for row in rows)
